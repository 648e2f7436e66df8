"""From effects on cells to one line for each gene: means, control genes, permutations, false discovery rate."""

from dataclasses import dataclass

import numpy as np


AT_ONCE = 1 << 22  # drawn values in memory


@dataclass
class GeneEffects:
    """One effect of each tested gene on the cells in which it was changed.

    Parameters
    ----------
    cells
        Places of cells, ordered by gene, shape (pairs,).
    values
        Of the effect, float64, shape (pairs,).
    starts
        Where each gene begins, shape (genes + 1,).
    """

    cells: np.ndarray
    values: np.ndarray
    starts: np.ndarray

    @classmethod
    def sort(cls, cells: np.ndarray, genes: np.ndarray, values: np.ndarray, n_genes: int) -> "GeneEffects":
        """Order values by gene."""
        order = np.lexsort((cells, genes))
        starts = np.searchsorted(genes[order], np.arange(n_genes + 1))
        return cls(cells[order], values[order].astype(np.float64), starts)

    def of(self, gene: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the cells of a gene, ascending, and its effects on them."""
        part = slice(self.starts[gene], self.starts[gene + 1])
        return self.cells[part], self.values[part]

    def means(self) -> np.ndarray:
        """Return the mean effect of each gene, NaN without cells, shape (genes,)."""
        numbers = np.diff(self.starts)
        sums = np.zeros(len(numbers))
        filled = np.flatnonzero(numbers)
        if len(filled):
            sums[filled] = np.add.reduceat(self.values, self.starts[filled])
        return np.where(numbers > 0, sums / np.maximum(numbers, 1), np.nan)


def rank_among(value: float, controls: np.ndarray) -> float:
    """Return the share of a gene and its controls that reach its value: (1 + reached) / (1 + controls).

    It is the p-value of an exact test in which the gene is any of them; NaN without controls.
    """
    known = controls[~np.isnan(controls)]
    return (1 + int((known >= value).sum())) / (1 + len(known)) if len(known) and not np.isnan(value) else float("nan")


def permutation_p(effects: GeneEffects, gene: int, controls: np.ndarray, permutations: int, seed: int) -> float:
    """Test whether a gene has a larger mean effect than control genes in the same cells.

    A permutation exchanges, in every cell by itself, the gene with one that is drawn from it and those of its controls
    that were changed in the cell.

    Parameters
    ----------
    gene
        Place of the gene.
    controls
        Places of its controls.
    permutations
        Number of permutations.
    seed
        Of the drawing.

    Returns
    -------
    float
        (1 + permutations whose mean reaches that of the gene) / (1 + permutations); NaN if no cell has a control.
    """
    cells, own = effects.of(gene)
    if not len(cells):
        return float("nan")
    table = np.full((len(cells), 1 + len(controls)), np.nan)
    table[:, 0] = own
    for column, control in enumerate(controls.tolist(), start=1):
        others, values = effects.of(control)
        at = np.searchsorted(cells, others)
        same = (at < len(cells)) & (cells[np.minimum(at, len(cells) - 1)] == others)
        table[at[same], column] = values[same]
    known = ~np.isnan(table)
    number = known.sum(axis=1)
    if not (number > 1).any():
        return float("nan")
    table = np.take_along_axis(table, np.argsort(~known, axis=1, kind="stable"), axis=1)  # those without a value last
    random, reached, rows = np.random.default_rng(seed), 0, np.arange(len(cells))
    observed = own.sum()
    at_once = max(1, AT_ONCE // len(cells))
    for start in range(0, permutations, at_once):
        drawn = random.random((min(at_once, permutations - start), len(cells)), dtype=np.float32)
        chosen = np.minimum((drawn * number).astype(np.intp), number - 1)
        reached += int((table[rows, chosen].sum(axis=1) >= observed * (1 - 1e-12 * np.sign(observed))).sum())
    return (1 + reached) / (1 + permutations)


def false_discovery_rate(p: np.ndarray) -> np.ndarray:
    """Adjust p-values by Benjamini and Hochberg; NaN stays NaN and does not count, shape (genes,)."""
    found = np.full(len(p), np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    scaled = p[order] * len(order) / np.arange(1, len(order) + 1)
    found[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return found


__all__ = ["GeneEffects", "false_discovery_rate", "permutation_p", "rank_among"]
