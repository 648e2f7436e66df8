"""From h5ad on disk to token Parquet: the rate compared with h5py only reading the same matrix.

python benchmarks/h5ad_to_parquet.py

The file is gzip-compressed, as anndata writes it: pbmc_facs cells in seeded shuffles. h5py reads and decompresses data
and indices in one process. Target: at least half of its rate, both for all steps (statistics, vocabulary, tokens) and
for tokens with a given vocabulary, with the default number of processes of cellglot: one on two processors, whose
threads read ahead and write behind.
"""

import shutil
import tempfile
from pathlib import Path

import h5py
from measure import MIB, alternate, median, parser, ratio, report
from resampled_cells import SOURCE, write_cells

from cellglot.tokenization.corpus.tokenize import default_processes, tokenize_corpus


VALUES_AT_ONCE = 1 << 21


def read_by_h5py(path: Path) -> None:
    """Read only the matrix."""
    with h5py.File(path, "r") as file:
        x = file["X"]
        for start in range(0, x["data"].shape[0], VALUES_AT_ONCE):
            x["data"][start : start + VALUES_AT_ONCE]
            x["indices"][start : start + VALUES_AT_ONCE]


def tokenize(path: Path, folder: Path, tokenizer: str, processes: int, vocabulary: Path | None = None) -> None:
    """Tokenize a file into an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    tokenize_corpus([path], folder, tokenizer=tokenizer, vocabulary=vocabulary, processes=processes, progress=False)


def main() -> None:
    options = parser(__doc__, repeats=5)
    options.add_argument("--sizes", type=int, nargs="+", default=[20_000, 100_000, 400_000], help="numbers of cells")
    options.add_argument("--source", type=Path, default=SOURCE, help="small .h5ad file to draw cells from")
    options.add_argument("--tokenizers", nargs="+", default=["rank-value", "exceiver"], help="kinds of tokens")
    options.add_argument(
        "--processes", type=int, default=default_processes(), help="processes of cellglot (default %(default)s)"
    )
    options.add_argument("--folder", type=Path, help="folder for temporary files")
    given = options.parse_args()
    if given.quick:
        given.sizes, given.repeats = [20_000], 2
    rows, targets = [], []
    for n in given.sizes:
        with tempfile.TemporaryDirectory(dir=given.folder) as temporary:
            path, made = Path(temporary) / "cells.h5ad", Path(temporary)
            write_cells(path, n, given.source)
            for kind in given.tokenizers:
                tokenize(path, made / f"{kind}-vocabulary", kind, given.processes)
            sides = {"h5py alone": lambda p=path: read_by_h5py(p)}
            for kind in given.tokenizers:
                vocabulary, folder = made / f"{kind}-vocabulary", made / kind
                common = (path, folder, kind, given.processes)
                sides[f"{kind}, both passes"] = lambda c=common: tokenize(*c)
                sides[f"{kind}, tokens alone"] = lambda c=common, v=vocabulary: tokenize(*c, v)
            times = alternate(sides, given.repeats)
            for side, seconds in times.items():
                share = ratio(times["h5py alone"], seconds)
                row = {"work": side, "cells": n, "file, MiB": path.stat().st_size / MIB}
                row |= {"seconds": median(seconds), "cells per second": n / median(seconds), "share of h5py": share}
                rows.append(row)
                if n == given.sizes[-1] and side != "h5py alone":
                    targets.append((f"{side}: share of h5py's rate", 0.5, share, share >= 0.5))
    report(given, rows, targets)


if __name__ == "__main__":
    main()
