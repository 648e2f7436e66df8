"""Genes that a plot of cells is worth being coloured by: those that tell groups of cells apart."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

from cellglot.evaluation.normalising import log_scaled
from cellglot.tokenization.gene_names import bare_id
from cellglot.tokenization.gene_vocabulary import NAME_COLUMNS, column_key
from cellglot.tokenization.genes.tables import human_genes
from cellglot.tokenization.reading.cells import Cells


PER_GROUP = 5  # genes that are higher in a group than in all other cells
LEAST_IN_GROUP = 3


@dataclass
class GeneValues:
    """Log-normalised counts of some genes.

    Parameters
    ----------
    names
        Symbols, or names as in the file.
    values
        float32, shape (cells, genes).
    """

    names: list[str]
    values: np.ndarray


def gene_values(
    cells: Cells, groups: "Sequence[str | None] | np.ndarray | None", shown: np.ndarray, n_genes: int
) -> GeneValues:
    """Choose genes that differ between groups, the best of each group first, then those that vary most.

    Reads the file twice; values are log1p of counts per 10,000.

    Parameters
    ----------
    cells
        Opened cells.
    groups
        Group of each cell of the file, or None; without groups the most variable genes are chosen.
    shown
        Numbers of the cells to read, ascending.
    n_genes
        Number of genes at most.
    """
    codes = np.full(len(cells), -1)
    if groups is not None:
        codes = pd.factorize(np.asarray(groups, dtype=object))[0]
    chosen = _informative(cells, _largest(codes, shown, n_genes), shown, n_genes)
    names = _names(cells)
    values = np.zeros((len(shown), len(chosen)), dtype=np.float32)
    done = 0
    for rows, part in _chunks(cells, shown):
        values[done : done + len(rows)] = part[:, chosen].toarray()
        done += len(rows)
    return GeneValues([names[gene] for gene in chosen], values)


def _chunks(cells: Cells, shown: np.ndarray) -> Iterator[tuple[np.ndarray, csr_matrix]]:
    """Yield (numbers of cells, their log-normalised counts) for the shown cells."""
    start = 0
    for chunk in cells.chunks():
        mine = shown[(shown >= start) & (shown < start + chunk.shape[0])]
        if len(mine):
            yield mine, log_scaled(chunk if len(mine) == chunk.shape[0] else chunk[mine - start])
        start += chunk.shape[0]


def _largest(codes: np.ndarray, shown: np.ndarray, number: int) -> np.ndarray:
    """Return numbers from 0 for the largest groups of the shown cells, -1 for all others: memory is bounded."""
    groups, cells = np.unique(codes[shown][codes[shown] >= 0], return_counts=True)
    kept = groups[np.argsort(-cells, kind="stable")[:number]]
    numbers = np.full(codes.max(initial=-1) + 2, -1)  # the last is for cells without a group
    numbers[kept] = np.arange(len(kept))
    return numbers[codes]


def _informative(cells: Cells, codes: np.ndarray, shown: np.ndarray, n_genes: int) -> np.ndarray:
    n_groups = int(codes.max(initial=-1)) + 1
    sums = np.zeros((n_groups + 1, cells.n_genes))  # the last row is for cells without a group
    squares = np.zeros(cells.n_genes)
    for rows, part in _chunks(cells, shown):
        group = np.where(codes[rows] < 0, n_groups, codes[rows])
        ones = np.ones(len(rows), dtype=np.float32)
        sums += (csr_matrix((ones, (group, np.arange(len(rows)))), (n_groups + 1, len(rows))) @ part).toarray()
        squares += np.bincount(part.indices, part.data.astype(np.float64) ** 2, minlength=cells.n_genes)
    total = sums.sum(axis=0)
    numbers = np.bincount(np.where(codes[shown] < 0, n_groups, codes[shown]), minlength=n_groups + 1)
    best: list[list[int]] = []
    for group in np.argsort(-numbers[:n_groups], kind="stable"):
        inside, outside = numbers[group], len(shown) - numbers[group]
        if inside < LEAST_IN_GROUP or outside < LEAST_IN_GROUP:
            continue
        higher = sums[group] / inside - (total - sums[group]) / outside
        best.append([int(gene) for gene in np.argsort(-higher, kind="stable")[:PER_GROUP] if higher[gene] > 0])
    chosen = {gene: None for rank in zip_longest(*best) for gene in rank if gene is not None}
    variance = squares / max(len(shown), 1) - (total / max(len(shown), 1)) ** 2
    varying = np.argsort(-variance, kind="stable")[:n_genes]
    chosen |= dict.fromkeys(int(gene) for gene in varying if variance[gene] > 0)
    return np.array(list(chosen)[:n_genes], dtype=np.int64)


def _names(cells: Cells) -> list[str]:
    """Return a readable name of each gene: its symbol, if the file or the table of human genes has one."""
    index = [str(name) for name in cells.counts.index]
    columns = dict(cells.counts.columns or {})
    named = next((c for usual in NAME_COLUMNS for c in columns if column_key(str(c)) == usual), None)
    symbols = index if named is None else [str(name) for name in columns[named]]
    ids = [bare_id(name) for name in index]
    table = human_genes() if named is None and any(ids) else None
    found = []
    for name, gene, symbol in zip(index, ids, symbols, strict=True):
        if gene is not None and table is not None:
            symbol = table.symbol(gene) if gene in table else name
        found.append(symbol if symbol and symbol != "nan" else name)
    return found


__all__ = ["GeneValues", "gene_values"]
