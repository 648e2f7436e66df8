"""Rank-value tokens in memory: sparse blocks against the dense way of the released tokenizers, on one core.

python benchmarks/rank_tokens.py

The dense way makes each run of 512 cells dense, divides by totals and medians, and sorts the genes of each cell
(Geneformer's code, which scCello and LangCell use). Target: at least 12 times as fast. A tokenizer uses NumPy until
its process has read 134 million counts, then compiled loops; copies in model repositories always use NumPy. Both are
timed, without the loading of the compiled loops (half a second, once).
"""

import os


for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

from pathlib import Path  # noqa: E402

import anndata  # noqa: E402
import numpy as np  # noqa: E402
from measure import DATA, alternate, median, memory_of, parser, ratio, report  # noqa: E402

from cellglot.tokenization import GeneVocabulary, RankValueTokenizer  # noqa: E402
from cellglot.tokenization.count_matrix import open_counts  # noqa: E402
from cellglot.tokenization.kernels import encoding as compiled_encoding  # noqa: E402


SIDES = ("dense", "numpy", "compiled")
LARGE = 100_000  # cells, of which fewer rounds are timed
PBMC_FACS = 3_874  # cells


def prepare(side: str, cells: Path, genes: Path, n_cells: int):
    """Return the function that makes the tokens of `n_cells` cells; cells are repeated if the file has fewer."""
    released = (genes / "token_dictionary.pkl", genes / "gene_median_dictionary.pkl")
    tokenizer = RankValueTokenizer.from_vocabulary(GeneVocabulary.from_released(*released))
    adata = anndata.read_h5ad(cells)
    counts = open_counts(adata[np.arange(n_cells) % adata.n_obs].copy())
    columns = tokenizer.gene_columns(counts)
    columns.compiled = compiled_encoding if side == "compiled" else None
    if side != "dense":
        return lambda: [t for _, rows in counts.chunks() for t in tokenizer.encode_rows(rows, columns)]
    known = np.flatnonzero(columns.known)
    ids, medians = columns.token_ids[known], 1.0 / columns.weights[known]
    return lambda: dense_tokens(counts.matrix, known, ids, medians, tokenizer.cls_token_id)


def dense_tokens(matrix, known, ids, medians, cls_token_id, max_length=2048) -> list[np.ndarray]:
    """Compute tokens as the released tokenizers do."""
    tokens = []
    for start in range(0, matrix.shape[0], 512):
        part = matrix[start : start + 512]
        scaled = part[:, known].toarray() / np.asarray(part.sum(axis=1)) * 10_000 / medians
        for cell in scaled:
            expressed = np.nonzero(cell)[0]
            ranked = ids[expressed][np.argsort(-cell[expressed])]
            tokens.append(np.concatenate([[cls_token_id], ranked])[:max_length])
    return tokens


def check(sides) -> float:
    """Return the share of our tokens that are the same as those of the dense way; they differ for tied values."""
    ours, same = (
        [t for block in sides[side]() for t in np.split(block.tokens, block.indptr[1:-1])] for side in SIDES[1:]
    )
    assert all(np.array_equal(a, b) for a, b in zip(ours, same, strict=True))
    theirs = sides["dense"]()
    assert [len(a) for a in ours] == [len(b) for b in theirs]
    assert all(set(a) == set(b) for a, b in zip(ours, theirs, strict=True) if len(a) < 2048)
    return float((np.concatenate(ours) == np.concatenate(theirs)).mean())


def main() -> None:
    options = parser(__doc__, repeats=15)
    options.add_argument("--cells", type=Path, default=DATA / "cells" / "pbmc_facs.h5ad", help="file (.h5ad)")
    options.add_argument("--genes", type=Path, default=DATA / "genes", help="folder of the released dictionaries")
    options.add_argument(
        "--sizes", type=int, nargs="+", default=[500, 1000, 2000, PBMC_FACS, 200_000], help="numbers of cells"
    )
    given = options.parse_args()
    if given.quick:
        given.sizes, given.repeats = given.sizes[:2], 3
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rows, targets = [], []
    for n in given.sizes:
        arguments = (given.cells, given.genes, n)
        sides = {side: prepare(side, *arguments) for side in SIDES}
        same = check(sides)
        times = alternate(sides, given.repeats if n < LARGE else min(given.repeats, 5), untimed=0)  # all have run
        row = {"cells": n}
        for side in SIDES:
            row[f"{side}, us per cell"] = median(times[side]) / n * 1e6
        ratios = {side: ratio(times["dense"], times[side]) for side in SIDES[1:]}
        row |= {f"{side}, ratio": value for side, value in ratios.items()}
        for side in SIDES:
            row[f"{side}, peak MiB"] = memory_of(prepare, side, *arguments)
        rows.append(row | {"same place": f"{same:.2%}"})
        if n in given.sizes[-2:]:
            ways = SIDES[2:] if n >= LARGE else SIDES[1:]  # for this many cells only compiled loops are used
            targets += [(f"times as fast, {n:,} cells, {side}", 12, ratios[side], ratios[side] >= 12) for side in ways]
    report(given, rows, targets)


if __name__ == "__main__":
    main()
