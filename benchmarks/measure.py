"""Code that the benchmarks share: alternating timings, peak memory of processes, tables, results as JSON."""

import argparse
import ctypes
import datetime
import gc
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil


ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("CELLGLOT_REFERENCE_DATA", ROOT.parent / "shared" / "data"))
MIB = 1 << 20
M_MMAP_THRESHOLD = -3  # from malloc.h


def parser(doc: str, repeats: int = 9) -> argparse.ArgumentParser:
    """Return a parser with the options of all benchmarks; the docstring of the script is its help."""
    options = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    name = Path(sys.argv[0]).stem
    results = Path(__file__).parent / "results" / f"{name}.json"
    options.add_argument("--quick", action="store_true", help="small sizes, few repeats; figures are rough")
    options.add_argument("--repeats", type=int, default=repeats, help="timed runs of each side (default %(default)s)")
    options.add_argument("--output", type=Path, default=results, help="JSON to write (default results/NAME.json)")
    return options


def add_parts(options: argparse.ArgumentParser, parts: Collection[str]) -> None:
    """Let a benchmark be run part by part; see `chosen_parts`."""
    options.add_argument("parts", nargs="*", default=[], help=f"of {', '.join(parts)} (default all)")


def chosen_parts(options: argparse.ArgumentParser, given: argparse.Namespace, parts: Collection[str]) -> Iterator[str]:
    """Yield the parts to run, by default all; the output of each is its own file, ``NAME_PART.json``."""
    unknown = set(given.parts) - set(parts)
    if unknown:
        options.error(f"no part {', '.join(sorted(unknown))}: there are {', '.join(parts)}")
    whole = given.output
    for name in given.parts or parts:
        given.output = whole.with_name(f"{whole.stem}_{name}.json")
        yield name


def alternate(sides: Mapping[str, Callable[[], Any]], repeats: int, untimed: int = 1) -> dict[str, list[float]]:
    """Time functions in turn, so that all have the same noise, after untimed rounds.

    Parameters
    ----------
    sides
        Name -> function without arguments.
    repeats
        Timed rounds; each starts with another side.
    untimed
        Rounds before them; 0 if both sides have already run.

    Returns
    -------
    dict
        Name -> seconds of each round.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for turn in range(-untimed, repeats):
        first = max(turn, 0) % len(names)
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            sides[name]()
            if turn >= 0:
                times[name].append(time.perf_counter() - start)
    return times


def median(times: Sequence[float]) -> float:
    """Return the median of the rounds."""
    return statistics.median(times)


def ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Return the median over rounds of the time of the first side divided by that of the second."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


# -------------------------------------------------------------------- memory


class TreeMemory:
    """Peak resident memory of a process and its children, polled; shared pages count for each of them.

    Parameters
    ----------
    interval
        Seconds between polls.

    Attributes
    ----------
    peak, processes : int
        Bytes, and the highest number of processes at once with more than 32 MiB.
    """

    def __init__(self, pid: int, interval: float = 0.02):
        self.root, self.interval, self.peak, self.processes = psutil.Process(pid), interval, 0, 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)

    def _poll(self) -> None:
        while not self._done.is_set():
            sizes = self._now()
            self.peak = max(self.peak, sum(sizes))
            self.processes = max(self.processes, sum(size > 32 * MIB for size in sizes))
            self._done.wait(self.interval)

    def _now(self) -> list[int]:
        sizes: list[int] = []
        try:
            for process in [self.root, *self.root.children(recursive=True)]:
                sizes.append(process.memory_info().rss)
        except psutil.Error:  # the process has ended
            pass
        return sizes

    def __enter__(self) -> "TreeMemory":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()


def run(command: Sequence[str]) -> dict[str, float]:
    """Run a command; return its seconds and the peak memory of its process tree, in MiB.

    Raises
    ------
    RuntimeError
        If the command fails; the message has the end of its output.
    """
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    with TreeMemory(process.pid) as memory:
        printed, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{printed[-2000:]}")
    return {"seconds": time.perf_counter() - start, "peak_mib": memory.peak / MIB, "processes": memory.processes}


def memory_of(prepare: Callable[..., Callable[[], Any]], *arguments: Any, returned_from: int | None = None) -> float:
    """Return the memory, in MiB, that a function needs at its peak beyond the memory before it.

    Parameters
    ----------
    prepare
        Function at the top of a module; called with `arguments` in a new process, returns the function to measure.
    returned_from
        Size in bytes from which the C library returns freed blocks to the system at once. By default it raises this
        size to that of the largest block freed so far, and keeps smaller blocks, which fragment.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_memory_in_child, args=(sender, prepare, arguments, returned_from))
    child.start()
    sender.close()
    try:
        return receiver.recv()
    finally:
        child.join()


def _memory_in_child(
    sender: Any, prepare: Callable[..., Callable[[], Any]], arguments: tuple[Any, ...], returned_from: int | None
) -> None:
    if returned_from is not None:
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, returned_from)
    function = prepare(*arguments)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # memory that `prepare` freed is not part of the memory before
    before = psutil.Process().memory_info().rss
    Path("/proc/self/clear_refs").write_text("5")  # reset the kernel's high-water mark
    function()
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) << 10 for line in status.split("\n") if line.startswith("VmHWM"))
    sender.send((peak - before) / MIB)


# -------------------------------------------------------------------- results


def machine() -> dict[str, Any]:
    """Describe the machine and the software."""
    import numpy
    import torch

    names = [line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / (1 << 30), 1),
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "torch": torch.__version__,
        "load": round(os.getloadavg()[0], 2),
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().split("\n") if Path(path).exists() else []


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as a Markdown table; the first column is text, the others are aligned to the right."""
    head = list(rows[0])
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    lines += ["| " + " | ".join(_text(row[name]) for name in head) + " |" for row in rows]
    return "\n".join(lines)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _without_folder(word: str) -> str:
    """Return the name of a file or folder of this machine, and any other word as it is."""
    return Path(word).name if Path(word).is_absolute() else word


def report(
    options: argparse.Namespace, rows: Sequence[Mapping[str, Any]], targets: Sequence[tuple[str, float, float, bool]]
) -> None:
    """Print the table and the targets, and write both as JSON.

    Parameters
    ----------
    options
        From `parser`.
    rows
        Rows of the table.
    targets
        (target, its bound, measured value, whether it is met).
    """
    print(table(rows))
    print()
    for what, bound, measured, met in targets:
        print(f"{'met' if met else 'MISSED'}: {what}: target {bound:g}, measured {measured:.3g}")
    content = {
        "benchmark": options.output.stem,
        "date": datetime.date.today().isoformat(),
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *map(_without_folder, sys.argv[1:])]),
        "machine": machine(),
        "results": [dict(row) for row in rows],
        "targets": [
            {"target": what, "asked": bound, "measured": round(measured, 4), "met": met}
            for what, bound, measured, met in targets
        ],
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(content, indent=1, default=float) + "\n", encoding="utf-8")
