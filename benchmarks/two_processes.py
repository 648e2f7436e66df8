"""Two processes compared with one: `cellglot tokenize`, and training.

python benchmarks/two_processes.py

Tokenizing: the cells of pbmc_facs in seeded shuffles, gzip-compressed as anndata writes them. h5py alone reads and
decompresses the matrix. One process already uses two cores: threads read ahead and write behind. So both sides are
compared with one process on one core. Target: two processes are 1.8 times as fast where decoding is the bound.

Training: scCello (sccello_small.yaml) on real tokens, the same batches of 64 cells; two processes with one thread
each, and one process with two threads. Cells a second of the run's record, without starting. Target: 0.9 at least.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from measure import alternate, median, parser, ratio, report
from repeated_corpus import small_corpus
from resampled_cells import SOURCE, write_cells

from cellglot.training.config import configs_folder


COMMAND = [sys.executable, "-m", "cellglot"]
STEPS = ["trainer.eval_strategy=no", "trainer.save_strategy=no", "trainer.use_cpu=true"]


def one_core() -> str:
    """Return the number of a core of this process."""
    return str(min(os.sched_getaffinity(0)))


def tokenize(file: Path, folder: Path, processes: int, pinned: bool) -> None:
    """Tokenize a file into a new folder, on one core if it is pinned."""
    shutil.rmtree(folder, ignore_errors=True)
    command = [*COMMAND, "tokenize", str(file), "-o", str(folder), "--processes", str(processes)]
    subprocess.run(
        [*(["taskset", "-c", one_core()] if pinned else []), *command, "--tokenizer", "rank-value"],
        check=True,
        capture_output=True,
    )


def tokenizing(cells: int, repeats: int, folder: Path) -> tuple[list[dict], list[tuple]]:
    """Measure `cellglot tokenize`."""
    file = folder / "cells.h5ad"
    write_cells(file, cells, SOURCE)
    empty = folder / "few.h5ad"
    write_cells(empty, 100, SOURCE)
    script = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import h5ad_to_parquet as b; "
    read = [sys.executable, "-c", f"{script} from pathlib import Path; b.read_by_h5py(Path({str(file)!r}))"]
    sides = {
        "h5py alone, one core": lambda: subprocess.run(["taskset", "-c", one_core(), *read], check=True),
        "starting, one core": lambda: tokenize(empty, folder / "few", 1, True),
        "1 process, one core": lambda: tokenize(file, folder / "one", 1, True),
        "1 process, two cores": lambda: tokenize(file, folder / "threads", 1, False),
        "2 processes, two cores": lambda: tokenize(file, folder / "two", 2, False),
    }
    times = alternate(sides, repeats)
    start = median(times["starting, one core"])
    rows = [
        {"work": f"tokenize: {name}", "cells": cells, "seconds": median(seconds),
         "cells/s after the start": cells / max(median(seconds) - (0 if name.startswith("h5py") else start), 1e-9),
         "times as fast as 1 process, one core": ratio(times["1 process, one core"], seconds)}
        for name, seconds in times.items() if name != "starting, one core"
    ]  # fmt: skip
    fast = ratio(times["1 process, one core"], times["2 processes, two cores"])
    decoding = ratio(times["h5py alone, one core"], times["1 process, one core"])
    print(f"starting takes {start:.1f} s; decoding by h5py is {decoding:.0%} of one process on one core")
    return rows, [("2 processes on two cores, times as fast as 1 on one core", 1.8, fast, fast >= 1.8)]


def trained(corpus: Path, folder: Path, processes: int, steps: int) -> float:
    """Train, and return cells a second."""
    shutil.rmtree(folder, ignore_errors=True)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", "cellglot", "pretrain"]
    command += ["--config", str(configs_folder() / "sccello_small.yaml"), "--corpus", str(corpus), "-o", str(folder)]
    settings = [*STEPS, f"trainer.max_steps={steps}", f"trainer.per_device_train_batch_size={64 // processes}"]
    for setting in settings:
        command += ["--set", setting]
    environment = os.environ | {"OMP_NUM_THREADS": str(2 // processes), "MKL_NUM_THREADS": str(2 // processes)}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return json.loads((folder / "training_run.json").read_text())["work"]["cells_per_second"]


def training(steps: int, repeats: int, folder: Path) -> tuple[list[dict], list[tuple]]:
    """Measure training."""
    corpus = small_corpus(folder / "corpus", expression=True)
    rates: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(repeats):
        for processes, found in rates.items():
            found.append(trained(corpus, folder / f"model-{processes}", processes, steps))
    rows = [
        {"work": f"train: {n} {'process' if n == 1 else 'processes'} of {2 // n} {'threads' if n == 1 else 'thread'}",
         "cells": steps * 64, "cells/s after the start": median(found)}
        for n, found in rates.items()
    ]  # fmt: skip
    share = ratio(rates[2], rates[1])
    return rows, [("training by two processes, compared with one of two threads", 0.9, share, share >= 0.9)]


def main() -> None:
    options = parser(__doc__, repeats=3)
    options.add_argument("--cells", type=int, default=200_000, help="cells to tokenize (default %(default)s)")
    options.add_argument("--steps", type=int, default=40, help="steps of training (default %(default)s)")
    options.add_argument("--folder", type=Path, help="folder for temporary files")
    given = options.parse_args()
    if given.quick:
        given.cells, given.steps, given.repeats = 20_000, 10, 1
    with tempfile.TemporaryDirectory(dir=given.folder) as temporary:
        rows, targets = tokenizing(given.cells, given.repeats, Path(temporary))
        more, further = training(given.steps, given.repeats, Path(temporary))
    columns = list(dict.fromkeys(name for row in [*rows, *more] for name in row))
    report(given, [{name: row.get(name, "") for name in columns} for row in [*rows, *more]], [*targets, *further])


if __name__ == "__main__":
    main()
