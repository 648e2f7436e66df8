"""A seeded fuzzer: damaged inputs, made from a number, that have to be read rightly or refused by name.

A file `fuzz_*.py` beside this one lists `TARGETS`. Each input is made and tried in a worker process, which is limited
in processor time and memory and started again when it ends. An input is known by its target and its number alone.
"""

import importlib.util
import json
import os
import resource
import select
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


SECONDS = 5  # of processor time for one input
SECONDS_BY_THE_CLOCK = 60
MEMORY = 1 << 30  # bytes that one input may add
FINE = ("read", "refused", "read where the reference refuses")


@dataclass(frozen=True)
class Target:
    """What is tried with damaged inputs.

    Parameters
    ----------
    name
        Of the target.
    build
        Makes an input in an empty folder; returns its path and what is wrong with it.
    use
        Reads the input and returns what it holds.
    refusals
        Errors that are right; their message names the input.
    reference
        Reads the input by another library; an error means that it refuses.
    difference
        Compares results of `use` and `reference`; None where they agree.
    """

    name: str
    build: Callable[[np.random.Generator, Path], tuple[Path, str]]
    use: Callable[[Path], Any]
    refusals: tuple[type[Exception], ...]
    reference: Callable[[Path, Any], Any] | None = None
    difference: Callable[[Any, Any], str | None] = lambda ours, theirs: None


@dataclass(frozen=True)
class Outcome:
    """What became of one input."""

    target: str
    number: int
    kind: str
    damage: str = ""
    text: str = ""

    @property
    def is_fault(self) -> bool:
        """Whether this is to be mended."""
        return self.kind not in FINE

    def __str__(self) -> str:
        again = f"python tests/fuzz/run.py {self.target} --seed {self.number} --number 1"
        return f"{self.kind}: {self.damage}\n  {self.text}\n  again by: {again}"


def load_targets(file: Path) -> dict[str, Target]:
    """Load the targets of a file, by name."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {target.name: target for target in module.TARGETS}


def judge(target: Target, number: int, folder: Path) -> tuple[str, str, str]:
    """Make an input and try it; returns kind, damage and text of its outcome."""
    try:
        path, damage = target.build(np.random.default_rng([number, *target.name.encode()]), folder)
    except Exception:  # noqa: BLE001
        return "input not made", "", traceback.format_exc(limit=-4)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        ours = target.use(path)
    except target.refusals as error:
        kind = "refused" if path.name in str(error) else "refused without the file's name"
        return _with_memory(before, kind, damage, f"{type(error).__name__}: {error}")
    except Exception:  # noqa: BLE001
        return "traceback", damage, traceback.format_exc(limit=-6)
    if target.reference is None:
        return _with_memory(before, "read", damage, "")
    try:
        theirs = target.reference(path, ours)
    except Exception as error:  # noqa: BLE001
        return _with_memory(before, "read where the reference refuses", damage, f"{type(error).__name__}: {error}")
    wrong = target.difference(ours, theirs)
    return _with_memory(before, "read" if wrong is None else "differs from the reference", damage, wrong or "")


def _with_memory(before: int, kind: str, damage: str, text: str) -> tuple[str, str, str]:
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return (f"took {grown >> 20} MiB", damage, text) if grown > MEMORY else (kind, damage, text)


def work(file: Path) -> None:
    """Be a worker: read lines of (target, number), answer lines of outcomes."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    targets = load_targets(file)
    for line in sys.stdin:
        name, number = json.loads(line)
        used = resource.getrusage(resource.RUSAGE_SELF)
        seconds = int(used.ru_utime + used.ru_stime) + SECONDS + 1
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            outcome = judge(targets[name], number, Path(folder))
        answers.write(json.dumps(outcome) + "\n")
        answers.flush()


class Runner:
    """Tries inputs of the targets of one file in a worker process."""

    def __init__(self, file: Path):
        self.file = file
        self.targets = list(load_targets(file))
        self._worker: subprocess.Popen | None = None

    def __enter__(self) -> "Runner":
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()

    def run(self, numbers: Iterator[int] | range, target: str | None = None) -> Iterator[Outcome]:
        """Try inputs by their numbers; by default each is one of the next target."""
        for number in numbers:
            yield self.try_one(target or self.targets[number % len(self.targets)], number)

    def try_one(self, target: str, number: int) -> Outcome:
        """Try one input."""
        if self._worker is None or self._worker.poll() is not None:
            self._start()
        worker = self._worker
        assert worker is not None and worker.stdin is not None and worker.stdout is not None
        worker.stdin.write(json.dumps([target, number]) + "\n")
        worker.stdin.flush()
        if not select.select([worker.stdout], [], [], SECONDS_BY_THE_CLOCK)[0]:
            self._stop()
            return Outcome(target, number, "hang", text=f"no answer after {SECONDS_BY_THE_CLOCK} s")
        line = worker.stdout.readline()
        if line:
            outcome = Outcome(target, number, *json.loads(line))
            if outcome.kind.startswith("took"):
                self._stop()
            return outcome
        code = worker.wait()
        kind = "hang" if -code in (24, 9) else "crash"  # SIGXCPU: the limit of processor time
        self._stop()
        return Outcome(target, number, kind, text=f"the worker ended with {code}")

    def _start(self) -> None:
        command = [sys.executable, "-W", "ignore", str(Path(__file__)), str(self.file)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self._worker = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def _stop(self) -> None:
        if self._worker is not None:
            self._worker.kill()
            self._worker.wait()
            for stream in (self._worker.stdin, self._worker.stdout):
                if stream is not None:
                    stream.close()
        self._worker = None


if __name__ == "__main__":
    sys.modules["frame"] = sys.modules["__main__"]
    work(Path(sys.argv[1]))
