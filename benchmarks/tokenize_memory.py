"""Peak memory of `cellglot tokenize` with a growing number of cells: it should not grow.

python benchmarks/tokenize_memory.py

Simulated files have the density of pbmc_facs (its cells in seeded shuffles). Memory is the polled sum over the
processes of the command; shared pages count for each of them. A million cells need some GB of disk and some minutes. A
file with few cells is one unit of work, for one process. Target: with the same number of processes, the peak grows by
less than a fifth from 10,000 to 1,000,000 cells.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from measure import MIB, median, parser, report, run
from resampled_cells import SOURCE, write_cells


def main() -> None:
    options = parser(__doc__, repeats=1)
    options.add_argument(
        "--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="numbers of cells, ascending"
    )
    options.add_argument("--source", type=Path, default=SOURCE, help="small .h5ad file to draw cells from")
    options.add_argument("--tokenizer", default="rank-value", help="rank-value or exceiver (default %(default)s)")
    options.add_argument(
        "--processes", type=int, nargs="+", default=[1, 2], help="processes of cellglot (default 1 2)"
    )
    options.add_argument("--folder", type=Path, help="folder for temporary files")
    given = options.parse_args()
    if given.quick:
        given.sizes = [10_000, 40_000]
    rows = []
    for n in given.sizes:
        with tempfile.TemporaryDirectory(dir=given.folder) as temporary:
            path, output = Path(temporary) / "cells.h5ad", Path(temporary) / "tokens"
            n_values = write_cells(path, n, given.source, compression_level=1)
            sizes = {"cells": n, "counts in memory, MiB": n_values * 8 / MIB, "file, MiB": path.stat().st_size / MIB}
            for processes in given.processes:
                command = [str(Path(sys.executable).with_name("cellglot")), "tokenize", str(path)]
                command += ["--output", str(output), "--tokenizer", given.tokenizer, "--processes", str(processes)]
                runs = []
                for _ in range(given.repeats):
                    shutil.rmtree(output, ignore_errors=True)
                    runs.append(run(command))
                seconds = median([r["seconds"] for r in runs])
                worked = min(processes, max(r["processes"] for r in runs))  # some others run only at the start
                row = sizes | {"workers asked for": processes, "processes": worked}
                row |= {"seconds": seconds, "cells per second": n / seconds}
                rows.append(row | {"peak MiB": max(r["peak_mib"] for r in runs)})
    report(given, rows, targets(rows))


def targets(rows: list[dict]) -> list[tuple[str, float, float, bool]]:
    """Compare the peaks of the smallest and largest number of cells on which equally many processes worked."""
    compared = []
    for n_processes in sorted({row["processes"] for row in rows}):
        alike = [row for row in rows if row["processes"] == n_processes]
        if alike[0]["cells"] < alike[-1]["cells"]:
            growth = alike[-1]["peak MiB"] / alike[0]["peak MiB"]
            what = f"{n_processes} processes: peak of {alike[-1]['cells']:,} cells over that of {alike[0]['cells']:,}"
            compared.append((what, 1.2, growth, growth <= 1.2))
    return compared


if __name__ == "__main__":
    main()
