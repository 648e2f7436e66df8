"""Cells with an unlikely label: they look like another class."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix

from cellglot.training.data.expression import CorpusExpression


FOLDS = 5
GENES = 500
DEVIATIONS = 3.0
LEAST_CELLS = 10


@dataclass
class LabelCheck:
    """The result of `check_labels`.

    Parameters
    ----------
    looks_like
        Class that a cell with an unlikely label looks like, -1 for all other cells; shape (cells,).
    margin
        Correlation with the mean cell of the own class minus that with the nearest other class; NaN for cells that
        were not checked. Shape (cells,).
    """

    looks_like: np.ndarray
    margin: np.ndarray

    @property
    def unlikely(self) -> np.ndarray:
        """Whether each cell's label is unlikely, shape (cells,)."""
        return self.looks_like >= 0

    def pairs(self, labels: np.ndarray, classes: Sequence[str]) -> dict[str, dict[str, int]]:
        """Count the unlikely labels: class -> class that its cells look like -> cells."""
        found = zip(labels[self.unlikely].tolist(), self.looks_like[self.unlikely].tolist(), strict=True)
        pairs: dict[str, dict[str, int]] = {}
        for (given, other), cells in Counter(found).most_common():
            pairs.setdefault(classes[given], {})[classes[other]] = cells
        return pairs


def check_labels(expression: CorpusExpression, labels: np.ndarray, seed: int = 0) -> LabelCheck:
    """Find cells that look like another class than that of their label.

    Sorted populations contain other cells, and clusters are labelled as a whole. A flexible model learns wrong labels
    from other properties of these cells, such as library or depth, and then fails on cells of other laboratories. Here
    each cell is compared, by Pearson correlation of log expression, with the mean cell of each class, over the genes
    that differ most between these means. The means are computed without the fold (a fifth) of the cell. A label is
    unlikely if another class is nearer and the margin is more than three robust standard deviations (1.4826 times the
    median absolute deviation) below the median margin of the class. Cells of classes that overlap, in which small
    margins are usual, are therefore not affected. Our choice, see docs/studies/transfer.md.

    Parameters
    ----------
    expression
        Expression of the cells; read twice, batch by batch.
    labels
        Class of each cell, -1 for none, shape (cells,).

    Returns
    -------
    LabelCheck
        Classes with fewer than 10 cells are not checked.
    """
    folds = np.random.default_rng([seed, 2]).integers(FOLDS, size=len(labels))
    known = labels >= 0
    classes = int(labels.max(initial=-1)) + 1
    sums = np.zeros((FOLDS * classes, expression.n_genes), dtype=np.float32)
    cells = np.zeros((FOLDS, classes))
    for rows, logs in _batches(expression, known):
        group = folds[rows] * classes + labels[rows]
        ones = csr_matrix((np.ones(len(rows)), (group, np.arange(len(rows)))), (FOLDS * classes, len(rows)))
        added = (ones @ logs).tocoo()
        sums[added.row, added.col] += added.data
        cells += np.bincount(group, minlength=FOLDS * classes).reshape(cells.shape)
    means = [_MeanCells.of(sums.reshape(FOLDS, classes, -1), cells, fold) for fold in range(FOLDS)]
    margin, nearest = np.full(len(labels), np.nan), np.full(len(labels), -1)
    for rows, logs in _batches(expression, known):
        for fold in range(FOLDS):
            at = np.flatnonzero(folds[rows] == fold)
            if len(at):
                margin[rows[at]], nearest[rows[at]] = means[fold].margins(logs[at], labels[rows[at]])
    looks_like = np.full(len(labels), -1)
    for number in range(classes):
        checked = np.flatnonzero((labels == number) & ~np.isnan(margin))
        if len(checked) >= LEAST_CELLS:
            unlikely = checked[(margin[checked] < 0) & (_deviations(margin[checked]) < -DEVIATIONS)]
            looks_like[unlikely] = nearest[unlikely]
    return LabelCheck(looks_like, margin)


@dataclass
class _MeanCells:
    """The mean cells of the classes over the genes that differ most between them, scaled for correlations."""

    genes: np.ndarray
    cells: np.ndarray
    present: np.ndarray

    @classmethod
    def of(cls, sums: np.ndarray, cells: np.ndarray, without: int) -> "_MeanCells":
        """Average all folds except one."""
        number = cells.sum(axis=0) - cells[without]
        means = (sums.sum(axis=0) - sums[without]) / np.maximum(number, 1)[:, None]
        genes = np.argsort(-means[number > 0].std(axis=0), kind="stable")[:GENES]
        return cls(genes, _scaled(means[:, genes]), number > 0)

    def margins(self, logs: csr_matrix, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the margin of each cell, and the nearest other class."""
        logs = logs[:, self.genes]
        length = np.sqrt(_row_sums(logs.power(2)) - _row_sums(logs) ** 2 / len(self.genes))
        correlations = logs @ self.cells.T / np.where(length > 0, length, 1.0)[:, None]  # the means are centred
        correlations[:, ~self.present] = -np.inf
        at = np.arange(len(labels))
        own = np.where(self.present[labels], correlations[at, labels], np.nan)
        correlations[at, labels] = -np.inf
        nearest = correlations.argmax(axis=1)
        return own - correlations[at, nearest], nearest


def _scaled(rows: np.ndarray) -> np.ndarray:
    """Centre rows and scale them to length 1; constant rows to 0."""
    centred = rows - rows.mean(axis=1, keepdims=True)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    return centred / np.where(length > 0, length, 1.0)


def _row_sums(rows: csr_matrix) -> np.ndarray:
    return np.asarray(rows.sum(axis=1, dtype=np.float64)).ravel()


def _deviations(values: np.ndarray) -> np.ndarray:
    """Return the distances from the median in robust standard deviations."""
    away = values - np.median(values)
    return away / max(1.4826 * float(np.median(np.abs(away))), 1e-12)


def _batches(expression: CorpusExpression, known: np.ndarray):
    rows, first = np.flatnonzero(known), 0
    for logs in expression.logs(known):
        yield rows[first : first + logs.shape[0]], logs
        first += logs.shape[0]


__all__ = ["LabelCheck", "check_labels"]
