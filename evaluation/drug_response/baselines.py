"""Baselines of drug response: means, and ridge regressions on expression."""

from collections.abc import Callable

import numpy as np

from cellglot.evaluation.drug_response.grid import Grid, kernel_ridge, line_kernel
from cellglot.evaluation.drug_response.line_expression import standardised
from cellglot.evaluation.drug_response.regressor import predict_pairs, solve_pairs


DRUG_MEAN, MEANS = "mean of the drug", "drug and line means"
RIDGE, KERNEL = "ridge on expression and fingerprint", "drug means + kernel ridge on expression"
MEANS_KERNEL, PAIR_KERNEL = "drug and line means + kernel ridge on expression", "our regressor on expression"
BASELINES = (DRUG_MEAN, MEANS, RIDGE, KERNEL, MEANS_KERNEL, PAIR_KERNEL)
KERNEL_RIDGE, LINEAR_RIDGE = 1.0, 100.0
_EXACT = 1e-4


def predict_baseline(
    name: str,
    grid: Grid,
    expression: np.ndarray,
    fingerprints: np.ndarray,
    similarity: np.ndarray,
    *,
    lines_are_new: bool = False,
) -> np.ndarray:
    """Predict all pairs by a baseline.

    Parameters
    ----------
    name
        One of `BASELINES`.
    grid
        Training pairs.
    expression
        Shape (lines, genes).
    fingerprints, similarity
        Of the drugs, shapes (drugs, bits) and (drugs, drugs).
    lines_are_new
        As for `predict_pairs`.

    Returns
    -------
    numpy.ndarray
        ln IC50, shape (drugs, lines).
    """
    rules: dict[str, Callable[[], np.ndarray]] = {
        DRUG_MEAN: lambda: _broadcast(grid, grid.drug_effects(), np.zeros(grid.known.shape[1])),
        MEANS: lambda: _broadcast(grid, *grid.effects()),
        RIDGE: lambda: _ridge(grid, standardised(expression, grid.lines), fingerprints),
        KERNEL: lambda: _per_drug(grid, _broadcast(grid, grid.drug_effects(), np.zeros(1)), expression),
        MEANS_KERNEL: lambda: _means_and_kernel(grid, expression),
        PAIR_KERNEL: lambda: predict_pairs(grid, expression, similarity, lines_are_new=lines_are_new),
    }
    return rules[name]()


def _broadcast(grid: Grid, drugs: np.ndarray, lines: np.ndarray) -> np.ndarray:
    return np.broadcast_to(grid.mean + drugs[:, None] + lines[None], grid.known.shape)


def _means_and_kernel(grid: Grid, expression: np.ndarray) -> np.ndarray:
    """Add to the means a kernel ridge for each drug; means of lines without pairs by kernel ridge on expression."""
    drugs, lines = grid.effects()
    kernel = line_kernel(expression, grid.lines)
    by_expression = kernel_ridge(kernel, grid.lines, lines[grid.lines], KERNEL_RIDGE)
    lines = np.where(grid.known.any(axis=0), lines, by_expression)
    return _per_drug(grid, _broadcast(grid, drugs, lines), expression)


def _per_drug(grid: Grid, base: np.ndarray, expression: np.ndarray) -> np.ndarray:
    """Add to `base` a kernel ridge on expression for each drug; drugs without pairs keep `base`."""
    kernel = line_kernel(expression, grid.lines).astype(np.float32)
    return base + solve_pairs(grid.minus(base), grid.known, lambda x: x @ kernel, KERNEL_RIDGE, _EXACT)


def _ridge(grid: Grid, expression: np.ndarray, fingerprints: np.ndarray) -> np.ndarray:
    """Fit ridge regression on expression and fingerprint from sums over the grid, without a row for each pair."""
    known, rest = grid.known, grid.minus(np.full(1, grid.mean))
    n_drug, n_line = known.sum(axis=1), known.sum(axis=0)
    total = known.sum()
    bits, genes = _rotated(fingerprints), _rotated(expression)
    bits, genes = bits - n_drug @ bits / total, genes - n_line @ genes / total
    between = bits.T @ known @ genes
    inner = np.block([[(bits.T * n_drug) @ bits, between], [between.T, (genes.T * n_line) @ genes]])
    inner[np.diag_indices_from(inner)] += LINEAR_RIDGE
    found = np.linalg.solve(inner, np.concatenate([bits.T @ rest.sum(axis=1), genes.T @ rest.sum(axis=0)]))
    return _broadcast(grid, bits @ found[: bits.shape[1]], genes @ found[bits.shape[1] :])


def _rotated(features: np.ndarray) -> np.ndarray:
    """Rotate features so that those beyond the number of rows are 0 and can be left out; ridge does not change."""
    features = np.asarray(features, dtype=np.float64)
    if features.shape[0] >= features.shape[1]:
        return features
    left, sizes, _ = np.linalg.svd(features, full_matrices=False)
    return left * sizes


__all__ = ["BASELINES", "predict_baseline"]
