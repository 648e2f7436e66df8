"""Measured pairs as a grid of drugs and lines, and means of drugs and lines."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np


PRIOR_PAIRS = 1.0  # pairs at the overall mean that the mean of a drug or a line counts beside its own


@dataclass
class Grid:
    """Training pairs as dense arrays.

    Parameters
    ----------
    known
        1 where a pair is in training, shape (drugs, lines), float64.
    values
        ln IC50, 0 where there is none, shape (drugs, lines).
    """

    known: np.ndarray
    values: np.ndarray

    @classmethod
    def of(cls, drug: np.ndarray, line: np.ndarray, values: np.ndarray, shape: tuple[int, int]) -> "Grid":
        """Put pairs on a grid.

        Parameters
        ----------
        drug, line, values
            Of each pair, shape (pairs,); no pair twice.
        shape
            Numbers of drugs and lines.
        """
        grid = cls(np.zeros(shape), np.zeros(shape))
        grid.known[drug, line], grid.values[drug, line] = 1.0, values
        return grid

    @cached_property
    def mean(self) -> float:
        """Mean of all pairs."""
        return float(self.values.sum() / self.known.sum())

    @cached_property
    def drugs(self) -> np.ndarray:
        """Numbers of the drugs with pairs."""
        return np.flatnonzero(self.known.any(axis=1))

    @cached_property
    def lines(self) -> np.ndarray:
        """Numbers of the lines with pairs."""
        return np.flatnonzero(self.known.any(axis=0))

    def minus(self, predicted: np.ndarray) -> np.ndarray:
        """Return the residuals, 0 where there is no pair, shape (drugs, lines)."""
        return (self.values - predicted) * self.known

    def drug_effects(self) -> np.ndarray:
        """Return each drug's mean minus that of all, drawn towards 0; 0 for drugs without pairs; shape (drugs,)."""
        return self.minus(np.full(1, self.mean)).sum(axis=1) / (self.known.sum(axis=1) + PRIOR_PAIRS)

    def effects(self, rounds: int = 30) -> tuple[np.ndarray, np.ndarray]:
        """Return effects of drugs and lines whose sum fits the pairs, shapes (drugs,) and (lines,)."""
        drugs, lines = np.zeros(self.known.shape[0]), np.zeros(self.known.shape[1])
        n_drug, n_line = self.known.sum(axis=1) + PRIOR_PAIRS, self.known.sum(axis=0) + PRIOR_PAIRS
        for _ in range(rounds):
            drugs = self.minus(self.mean + lines).sum(axis=1) / n_drug
            lines = self.minus(self.mean + drugs[:, None]).sum(axis=0) / n_line
        return drugs, lines


def line_kernel(features: np.ndarray, lines: np.ndarray) -> np.ndarray:
    """Return a Gaussian kernel of standardised features; its width is the median distance of two training lines.

    Parameters
    ----------
    features
        Shape (lines, features).
    lines
        Numbers of the training lines.

    Returns
    -------
    numpy.ndarray
        Shape (lines, lines), float64.
    """
    from cellglot.evaluation.drug_response.line_expression import standardised

    z = standardised(features, lines)
    squares = (z**2).sum(axis=1)
    distances = np.maximum(squares[:, None] + squares[None] - 2 * z @ z.T, 0)
    inside = distances[np.ix_(lines, lines)][np.triu_indices(len(lines), 1)]
    width = float(np.median(inside)) if len(inside) else 0.0
    return np.exp(-distances / (width if width > 0 else 1.0))


def kernel_ridge(kernel: np.ndarray, known: np.ndarray, values: np.ndarray, ridge: float) -> np.ndarray:
    """Predict values of all items from those of some.

    Parameters
    ----------
    kernel
        Shape (items, items).
    known
        Numbers of the items with values.
    values
        Shape (known,) or (known, outputs).

    Returns
    -------
    numpy.ndarray
        Shape (items, ...).
    """
    inner = kernel[np.ix_(known, known)] + ridge * np.eye(len(known))
    return kernel[:, known] @ np.linalg.solve(inner, values)


__all__ = ["Grid", "kernel_ridge", "line_kernel"]
