"""Plain baselines that every model stands beside."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix, vstack
from sklearn.linear_model import LogisticRegression

from cellglot.tokenization.cells import Cells


@dataclass
class BaselineResult:
    """Predictions of a baseline.

    Parameters
    ----------
    name
        What it is.
    predicted
        Class of each test cell.
    """

    name: str
    predicted: np.ndarray


def log_counts(cells: Cells, target_sum: float = 1e4) -> csr_matrix:
    """Give log1p of counts scaled to `target_sum` per cell, sparse, shape (cells, genes)."""
    parts = []
    for chunk in cells.chunks():
        totals = np.asarray(chunk.sum(axis=1), dtype=np.float64).ravel()
        scaled = chunk.astype(np.float64)
        scaled.data *= np.repeat(target_sum / np.where(totals > 0, totals, 1.0), np.diff(scaled.indptr))
        parts.append(scaled.log1p().astype(np.float32))
    return vstack(parts, format="csr")


def logistic_regression(features: Any, labels: np.ndarray, train: np.ndarray, test: np.ndarray) -> BaselineResult:
    """Train multinomial logistic regression (L2, C 1) on some cells and predict others.

    Parameters
    ----------
    features
        Shape (cells, features), dense or sparse.
    labels
        Class names, shape (cells,).
    train, test
        Whether each cell is for training, for testing, shape (cells,).
    """
    model = LogisticRegression(max_iter=2000)
    model.fit(features[train], labels[train])
    return BaselineResult("logistic regression on log counts", model.predict(features[test]))


def majority(labels: np.ndarray, train: np.ndarray, test: np.ndarray) -> BaselineResult:
    """Predict the most frequent class of the training cells."""
    names, counts = np.unique(labels[train], return_counts=True)
    return BaselineResult("most frequent class", np.full(int(test.sum()), names[counts.argmax()], dtype=object))


__all__ = ["BaselineResult", "log_counts", "logistic_regression", "majority"]
