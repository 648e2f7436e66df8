"""Scores of predicted classes, with bootstrap confidence intervals."""

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import accuracy_score, f1_score


def classification_scores(
    true: Sequence[str] | np.ndarray, predicted: Sequence[str] | np.ndarray, draws: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float, float]]:
    """Score predictions.

    Parameters
    ----------
    true, predicted
        Class of each cell.
    draws
        Bootstrap samples of cells.
    seed
        Of the samples.

    Returns
    -------
    dict
        ``accuracy`` and ``macro_f1`` (mean over the classes among `true`), each with the ends of its 95% interval.

    Raises
    ------
    ValueError
        If there are no cells, or not as many predictions.
    """
    a, b = np.asarray(true, dtype=str), np.asarray(predicted, dtype=str)
    if not len(a) or len(a) != len(b):
        raise ValueError(f"{len(b):,} predictions for {len(a):,} cells cannot be scored")
    random = np.random.default_rng(seed)
    samples = [random.integers(0, len(a), len(a)) for _ in range(draws)]
    scores = {}
    for name, score in (("accuracy", accuracy_score), ("macro_f1", _macro_f1)):
        drawn = [score(a[s], b[s]) for s in samples]
        low, high = np.quantile(drawn, [0.025, 0.975])
        scores[name] = (float(score(a, b)), float(low), float(high))
    return scores


def _macro_f1(true: np.ndarray, predicted: np.ndarray) -> float:
    return f1_score(true, predicted, labels=np.unique(true), average="macro", zero_division=0)


__all__ = ["classification_scores"]
