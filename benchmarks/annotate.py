"""`cellglot annotate` from its start to the written file, beside the bare imports, and what the time is spent on.

python benchmarks/annotate.py

Blood cells of pbmc_facs, 2,700 and 10,000 of them (drawn again and again), by the classifier that ships with the
package, on two threads: by the graph that ships with it, which onnxruntime computes, and 2,700 cells by PyTorch, too.
Every side is a new process; in each round all sides run after one another. Targets: 2 times the seconds of ``import
torch, transformers`` for 2,700 cells, 4 times for 10,000. The ratios of processor time are given too: where other
programs use the machine, they vary less than seconds.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import median, parser, ratio, report
from resampled_cells import write_cells


BARE = "import torch, transformers"
SIZES = {2_700: 2.0, 10_000: 4.0}
STEPS = """
import json, sys, time
started = time.perf_counter()
spent = {}

def timed(name, function):
    def run(*given, **named):
        began = time.perf_counter()
        try:
            return function(*given, **named)
        finally:
            spent[name] = spent.get(name, 0) + time.perf_counter() - began
    return run

began = time.perf_counter()
import cellglot.cli
import cellglot.evaluation.annotation.file as steps
spent["importing"] = time.perf_counter() - began
steps.read_cells = timed("opening the cells", steps.read_cells)
steps.load_annotator = timed("loading the model", steps.load_annotator)
steps._annotated = timed("computing", steps._annotated)
steps.write_annotated = timed("writing", steps.write_annotated)
sys.argv = ["cellglot", "annotate", sys.argv[1], "-o", sys.argv[2], "--overwrite"]
try:
    cellglot.cli.app()
except SystemExit as ended:
    assert not ended.code
spent["all else"] = time.perf_counter() - started - sum(spent.values())
print(json.dumps(spent))
"""


def run(words: list[str]) -> tuple[float, float, str]:
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def row(what: str, seconds: float, times: float) -> dict[str, Any]:
    return {"what": what, "seconds": seconds, "of bare imports": times, "processor time, of bare imports": ""}


def main() -> None:
    given = parser(__doc__, repeats=5).parse_args()
    sizes = {300: 2.0} if given.quick else SIZES
    rows: list[dict[str, Any]] = []
    targets = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sides = {BARE: [sys.executable, "-c", BARE]}
        for size in sizes:
            write_cells(folder / f"{size}.h5ad", size)
            place = [str(folder / f"{size}.h5ad"), "-o", str(folder / "out.h5ad"), "--overwrite"]
            sides[f"annotate {size:,} cells"] = [sys.executable, "-m", "cellglot", "annotate", *place]
        few = [str(folder / f"{min(sizes)}.h5ad"), "-o", str(folder / "out.h5ad"), "--overwrite", "--backend", "torch"]
        sides[f"annotate {min(sizes):,} cells by PyTorch"] = [sys.executable, "-m", "cellglot", "annotate", *few]
        found: dict[str, list[tuple[float, float, str]]] = {side: [] for side in sides}
        for turn in range(-1, 2 if given.quick else given.repeats):
            for side, words in sides.items():
                measured = run(words)
                if turn >= 0:
                    found[side].append(measured)
        seconds = {side: [s for s, _, _ in times] for side, times in found.items()}
        processor = {side: [p for _, p, _ in times] for side, times in found.items()}
        for side in sides:
            rows.append(row(side, median(seconds[side]), ratio(seconds[side], seconds[BARE])))
            rows[-1]["processor time, of bare imports"] = round(ratio(processor[side], processor[BARE]), 2)
        for size, most in sizes.items():
            over = ratio(seconds[f"annotate {size:,} cells"], seconds[BARE])
            targets.append((f"annotate {size:,} cells, of the bare imports", most, over, over <= most))
            printed = run([sys.executable, "-c", STEPS, str(folder / f"{size}.h5ad"), str(folder / "out.h5ad")])[2]
            for step, part in json.loads(printed.strip().split("\n")[-1]).items():
                rows.append(row(f"{size:,} cells: {step}", part, part / median(seconds[BARE])))
    report(given, rows, targets)


if __name__ == "__main__":
    main()
