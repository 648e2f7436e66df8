"""The expectation of weighted sums over genes by factor analysis, for tensors of PyTorch and arrays of NumPy."""

from collections.abc import Callable
from typing import Any


WEIGHT_SCALE = 1 / 3  # of the weights of gene sums: they learn at the rate that suits the other weights
LEAST_VARIANCE = 1e-3  # of a gene, apart from factors


def expected_weights(
    weight: Any, means: Any, loadings: Any, variances: Any, measured: Any, solve: Callable[[Any, Any], Any]
) -> tuple[Any, Any]:
    """Return weights of measured genes, and what to add, so that sums are those expected of all genes.

    In factor analysis the log expression of a gene is its mean, plus loadings times factors, plus noise of its own.
    Given the measured genes, the expectation of the factors is linear in these (Bishop 2006, section 12.2.4), and so
    is that of the other genes and of a weighted sum over all.

    Parameters
    ----------
    weight
        Shape (genes, sums).
    means, variances
        Of each gene, shape (genes,).
    loadings
        Shape (genes, factors).
    measured
        1 for genes that were measured, else 0, shape (genes,).
    solve
        Solves linear equations, as `numpy.linalg.solve`.

    Returns
    -------
    tuple
        Weights, 0 for genes that were not measured, shape (genes, sums); what to add, shape (sums,).
    """
    there, missing = measured[:, None], (1 - measured)[:, None]
    scaled = loadings * there / variances.clip(LEAST_VARIANCE)[:, None]
    of_factors = solve(_plus_one(loadings.T @ scaled), loadings.T @ (weight * missing))
    added = scaled @ of_factors
    return weight * there + added, means @ (weight * missing - added)


def _plus_one(matrix: Any) -> Any:
    """Return a matrix plus the identity."""
    matrix = matrix + 0
    for i in range(len(matrix)):
        matrix[i, i] += 1
    return matrix


__all__ = ["WEIGHT_SCALE", "expected_weights"]
