"""Attention between genes, summed over cells: exact sums in bounded memory, of which the largest are kept."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd


SUMS_AT_ONCE = 1 << 26  # pairs of genes in memory, eight bytes each
COLUMNS = ("from_gene", "to_gene", "from_symbol", "to_symbol", "weight", "cells", "lift")

Add = Callable[[np.ndarray, np.ndarray], None]  # takes token ids of a cell's genes, and the attention between them


@dataclass
class GeneEdges:
    """The strongest attention between genes.

    Parameters
    ----------
    edges
        One row for each pair of genes, the strongest first: ``from_gene, to_gene, from_symbol, to_symbol``;
        ``weight``, attention summed over cells; ``cells`` that have both genes; ``lift``, the weight divided by what
        the totals of both genes predict (the product of both, divided by the sum over all pairs).
    genes
        Number of genes between which it was summed.
    pairs
        Number of pairs of different genes that a cell has.
    total
        Attention between different genes, summed over cells and all pairs.
    symmetric
        Whether it has no direction; each pair is then once in `edges`.
    passes
        How often the cells were read.
    """

    edges: pd.DataFrame
    genes: int
    pairs: int
    total: float
    symmetric: bool
    passes: int

    def summary(self) -> str:
        """Summarise the edges in words."""
        kept = float(self.edges["weight"].sum()) * (2 if self.symmetric else 1)
        share = kept / self.total if self.total > 0 else 0.0
        kind = "without direction" if self.symmetric else "from the gene that attends to the gene that is attended to"
        return (
            f"attention between {self.genes:,} genes, {kind}: the {len(self.edges):,} strongest of {self.pairs:,} "
            f"pairs, {share:.1%} of the attention between different genes"
        )


def sum_attention(
    read: Callable[[Add], None],
    genes: np.ndarray,
    *,
    edges: int,
    min_cells: int,
    symmetric: bool,
    ids: np.ndarray,
    symbols: np.ndarray,
    at_once: int = SUMS_AT_ONCE,
) -> GeneEdges:
    """Sum attention between genes over cells, and keep the strongest pairs.

    The sums of a block of genes with all others are in memory; with more genes than fit into one block the cells are
    read once for each.

    Parameters
    ----------
    read
        Reads all cells, and calls a function with the token ids and the attention of each.
    genes
        Token ids of the genes, ascending, shape (genes,). Others are left out.
    edges
        Number of pairs to keep.
    min_cells
        Least number of cells that have both genes.
    symmetric
        Whether attention has no direction.
    ids, symbols
        Names by token id, shape (vocabulary,).
    at_once
        Pairs in memory.
    """
    number = len(genes)
    place = np.full(len(ids), -1, dtype=np.int64)
    place[genes] = np.arange(number)
    rows = max(1, min(at_once // max(number, 1), number))
    blocks = range(0, number, rows)
    given, received = np.zeros(number), np.zeros(number)
    kept, pairs = [], 0
    for start in blocks:
        weights, cells = _block(read, place, start, min(start + rows, number), number)
        own = np.arange(len(weights))
        weights[own, start + own], cells[own, start + own] = 0.0, 0
        given[start : start + len(weights)] = weights.sum(axis=1, dtype=np.float64)
        received += weights.sum(axis=0, dtype=np.float64)
        if symmetric:
            cells[np.arange(number) <= (start + own)[:, None]] = 0
        pairs += int((cells > 0).sum())
        kept.append(_strongest(weights, cells, start, edges, min_cells))
    source, target, weight, both = (np.concatenate(parts) for parts in zip(*kept, strict=True))
    order = np.lexsort((target, source, -weight))[:edges]
    source, target, weight, both = source[order], target[order], weight[order], both[order]
    total = float(given.sum())
    expected = given[source] * received[target] / max(total, 1e-300)
    names, shown = ids[genes], symbols[genes]
    columns = (names[source], names[target], shown[source], shown[target], weight, both, weight / expected)
    return GeneEdges(
        pd.DataFrame(dict(zip(COLUMNS, columns, strict=True))), number, pairs, total, symmetric, len(blocks)
    )


def _block(
    read: Callable[[Add], None], place: np.ndarray, start: int, stop: int, number: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sum the attention from the genes `start` to `stop` to all, and count cells; both of shape (block, genes)."""
    weights = np.zeros((stop - start, number), dtype=np.float32)
    counts = np.zeros((stop - start, number), dtype=np.int32)

    def add(tokens: np.ndarray, attention: np.ndarray) -> None:
        at = place[tokens]
        to = np.flatnonzero(at >= 0)
        of = np.flatnonzero((at >= start) & (at < stop))
        where = np.ix_(at[of] - start, at[to])
        weights[where] += attention[np.ix_(of, to)]
        counts[where] += 1

    read(add)
    return weights, counts


def _strongest(
    weights: np.ndarray, cells: np.ndarray, start: int, edges: int, min_cells: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the genes, the weight and the cells of the strongest pairs of a block."""
    usable = np.flatnonzero(cells.ravel() >= max(min_cells, 1))
    values = weights.ravel()[usable]
    if len(values) > edges:
        usable = usable[np.argpartition(-values, edges - 1)[:edges]]
    source, target = np.divmod(usable, weights.shape[1])
    return source + start, target, weights[source, target].astype(np.float64), cells[source, target]


__all__ = ["COLUMNS", "Add", "GeneEdges", "sum_attention"]
