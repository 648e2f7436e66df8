"""Scores of an embedding on cells of other laboratories: clustering, and learning from a few labels."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix, issparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from cellglot.evaluation.benchmark.baselines import LogCountsPca
from cellglot.evaluation.scores.clustering import evaluate_embedding


NUMBERS = (5, 10, 20, 50)  # labelled cells of a class
DRAWS = 5
COMPONENTS = 50
CLUSTERING = ("nmi", "ari", "asw_label", "avg_bio")
FEWEST_CELLS = 20  # of a class that is scored


def frequent(labels: np.ndarray, fewest: int = FEWEST_CELLS) -> np.ndarray:
    """Return which cells have a label (not ``""``) that `fewest` cells or more have, bool, shape (cells,)."""
    names, counts = np.unique(labels, return_counts=True)
    return np.isin(labels, [n for n, count in zip(names, counts, strict=True) if n and count >= fewest])


def clustering_scores(embedding: np.ndarray, labels: np.ndarray, seed: int = 0) -> dict[str, float]:
    """Return NMI, ARI, silhouette and their mean AvgBIO of an embedding, from 0 to 1 (ari from -0.5).

    Parameters
    ----------
    embedding
        Shape (cells, size).
    labels
        Type of each cell, shape (cells,).
    seed
        Of the clustering.
    """
    found = evaluate_embedding(embedding, labels.tolist(), seed=seed)
    return {name: round(float(found[name]), 4) for name in CLUSTERING}


def few_label_scores(
    features: np.ndarray | csr_matrix,
    labels: np.ndarray,
    numbers: Sequence[int] = NUMBERS,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Train logistic regression on a few labelled cells of each class, and score it on the other cells.

    Dense features are divided by one number, their standard deviation over the labelled cells: components of small
    variance stay small, which is better for principal components and for embeddings. At most half of the cells of a
    class are drawn. The same cells are drawn for all features.

    Parameters
    ----------
    features
        Shape (cells, features), dense or sparse.
    labels
        Class of each cell, shape (cells,).
    numbers
        Labelled cells of a class.
    draws
        Times that cells are drawn.
    seed
        Of the draws.

    Returns
    -------
    dict
        Number of labelled cells, as text -> ``mean`` and ``std`` of macro F1 over the draws, ``draws``, the values.
    """
    made = {}
    for number in numbers:
        values = []
        for draw in range(draws):
            train = drawn_cells(labels, number, [seed, number, draw])
            test = np.setdiff1d(np.arange(len(labels)), train)
            values.append(_macro_f1(features[train], labels[train], features[test], labels[test]))
        made[str(number)] = _summed_up(values)
    return made


def transfer_scores(
    features: Any,
    labels: np.ndarray,
    other_features: Any,
    other_labels: np.ndarray,
    numbers: Sequence[int] = NUMBERS,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Train as `few_label_scores` does on a few labelled cells of one data set, and score on cells of another.

    Parameters
    ----------
    features, labels
        Of the cells to draw from, shapes (cells, features) and (cells,).
    other_features, other_labels
        Of the cells to score, shapes (other cells, features) and (other cells,).
    numbers, draws, seed
        As for `few_label_scores`.

    Returns
    -------
    dict
        As `few_label_scores`.
    """
    made = {}
    for number in numbers:
        values = []
        for draw in range(draws):
            train = drawn_cells(labels, number, [seed, number, draw])
            values.append(_macro_f1(features[train], labels[train], other_features, other_labels))
        made[str(number)] = _summed_up(values)
    return made


def drawn_cells(labels: np.ndarray, number: int, seed: Sequence[int]) -> np.ndarray:
    """Draw `number` cells of each class, at most half of its cells; return their rows, sorted."""
    random, drawn = np.random.default_rng(list(seed)), []
    for name in np.unique(labels):
        cells = np.flatnonzero(labels == name)
        drawn.append(random.permutation(cells)[: min(number, len(cells) // 2)])
    return np.sort(np.concatenate(drawn))


def _summed_up(values: Sequence[float]) -> dict[str, Any]:
    return {
        "mean": round(float(np.mean(values)), 4),
        "std": round(float(np.std(values)), 4),
        "draws": [round(value, 4) for value in values],
    }


def _macro_f1(train: Any, labels: np.ndarray, test: Any, truth: np.ndarray) -> float:
    if not issparse(train):
        mean, deviation = train.mean(axis=0), max(float(train.std()), 1e-12)
        train, test = (train - mean) / deviation, (test - mean) / deviation
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        predicted = LogisticRegression(max_iter=300).fit(train, labels).predict(test)
    return float(f1_score(truth, predicted, average="macro", zero_division=0))


def log_counts(counts: csr_matrix) -> csr_matrix:
    """Return log1p of counts per 10,000, float32, shape (cells, genes)."""
    made = csr_matrix(counts, dtype=np.float64)
    totals = np.maximum(np.asarray(made.sum(axis=1)).ravel(), 1.0)
    made.data = np.log1p(made.data * np.repeat(1e4 / totals, np.diff(made.indptr)))
    return made.astype(np.float32)


def principal_components(logs: csr_matrix, seed: int = 0) -> np.ndarray:
    """Return 50 principal components of all genes of the cells that are scored, shape (cells, components).

    That is what an analysis without a model has; it was as good as components of variable genes, or better.
    """
    return LogCountsPca.fit(logs, COMPONENTS, seed).embed(logs)


def embedding_scores(
    embeddings: Mapping[str, np.ndarray], counts: csr_matrix, labels: np.ndarray, seed: int = 0
) -> dict[str, Any]:
    """Score embeddings of the same cells beside PCA and logistic regression on all genes.

    Parameters
    ----------
    embeddings
        Name -> shape (cells, size).
    counts
        Of the same cells, shape (cells, genes).
    labels
        Type of each cell; cells with ``""`` and rare types are left out, shape (cells,).
    seed
        Of clustering and draws.

    Returns
    -------
    dict
        ``cells``, ``types`` (their number) and ``scores``: name -> ``clustering`` and ``few_labels``, with ``principal
        components`` and ``logistic regression`` (without clustering) beside the names given. ``scores`` is empty where
        fewer than two types are frequent enough.
    """
    kept = frequent(labels)
    types = labels[kept].astype(str)
    made: dict[str, Any] = {"cells": len(types), "types": len(np.unique(types)), "scores": {}}
    if made["types"] < 2:
        return made
    logs = log_counts(counts[kept])
    features = {name: values[kept] for name, values in embeddings.items()}
    features["principal components"] = principal_components(logs, seed)
    found: dict[str, dict[str, Any]] = {
        name: {
            "clustering": clustering_scores(values, types, seed),
            "few_labels": few_label_scores(values, types, seed=seed),
        }
        for name, values in features.items()
    }
    found["logistic regression"] = {"few_labels": few_label_scores(logs, types, seed=seed)}
    return made | {"scores": found}


__all__ = [
    "CLUSTERING",
    "NUMBERS",
    "clustering_scores",
    "drawn_cells",
    "embedding_scores",
    "few_label_scores",
    "frequent",
    "log_counts",
    "principal_components",
    "transfer_scores",
]
