"""Factor analysis of sparse log expression, for cells of data sets that measured different genes."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_matrix

from cellglot.modeling.expected_weights import LEAST_VARIANCE


RIDGE = 1e-6  # on the products of factors, for genes that hardly any cell was measured for


class Factors(NamedTuple):
    """Factor analysis of genes.

    Parameters
    ----------
    means, variances
        Mean of each gene, and its variance that factors do not explain; shape (genes,).
    loadings
        Shape (genes, factors).
    """

    means: np.ndarray
    loadings: np.ndarray
    variances: np.ndarray


def fit_factors(
    logs: csr_matrix,
    measured: np.ndarray,
    data_sets: np.ndarray,
    factors: int,
    iterations: int,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> Factors:
    """Fit factor analysis by expectation maximisation (Rubin and Thayer 1982), each gene by the cells that have it.

    No dense copy of the expression is made.

    Parameters
    ----------
    logs
        Log expression, 0 for genes that were not measured, shape (cells, genes).
    measured
        Whether each data set measured each gene, bool, shape (data sets, genes).
    data_sets
        Of each cell, shape (cells,).
    factors
        Number of factors.
    iterations
        Number of iterations.
    seed
        Of the loadings at the start.
    advance
        Called after each iteration.
    """
    cells, genes = logs.shape
    parts = [(measured[i].astype(float), np.flatnonzero(data_sets == i)) for i in np.unique(data_sets)]
    blocks = [logs[rows] for _, rows in parts]
    number = sum(there * len(rows) for there, rows in parts)
    each = np.maximum(number, 1)
    means = sum(there * _sums(block) for (there, _), block in zip(parts, blocks, strict=True)) / each
    squares = sum(there * _sums(block.multiply(block)) for (there, _), block in zip(parts, blocks, strict=True))
    variances = np.maximum(squares / each - means**2, LEAST_VARIANCE)
    start = np.random.default_rng(seed).normal(size=(genes, factors))
    loadings = 0.1 * start * np.sqrt(variances)[:, None]
    for _ in range(iterations):
        products, crossed = np.zeros((genes, factors, factors)), np.zeros((genes, factors))
        for (there, rows), block in zip(parts, blocks, strict=True):
            scaled = loadings * (there / variances)[:, None]
            covariance = np.linalg.inv(np.eye(factors) + loadings.T @ scaled)
            expected = (block @ scaled - means @ scaled) @ covariance
            second = expected.T @ expected + len(rows) * covariance
            products[there > 0] += second
            crossed += there[:, None] * (block.T @ expected - np.outer(means, expected.sum(axis=0)))
        loadings = np.linalg.solve(products + RIDGE * np.eye(factors), crossed[:, :, None])[:, :, 0]
        explained = (crossed * loadings).sum(axis=1)
        variances = np.maximum((squares - number * means**2 - explained) / each, LEAST_VARIANCE)
        advance()
    return Factors(means, loadings, variances)


def _sums(block: csr_matrix) -> np.ndarray:
    return np.asarray(block.sum(axis=0)).ravel()


__all__ = ["Factors", "fit_factors"]
