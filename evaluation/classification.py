"""Scores of predicted classes, with bootstrap confidence intervals."""

from collections.abc import Sequence

import numpy as np

from cellglot.evaluation.bootstrap import DRAWS, bootstrap_scores


def classification_scores(
    true: Sequence[str] | np.ndarray, predicted: Sequence[str] | np.ndarray, draws: int = DRAWS, seed: int = 0
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
        ``accuracy`` and ``macro_f1`` (mean over the classes among `true`, in a sample over those that it has), each
        with the ends of its 95% interval.

    Raises
    ------
    ValueError
        If there are no cells, not as many predictions, or no draws.
    """
    a, b = np.asarray(true, dtype=str), np.asarray(predicted, dtype=str)
    if not len(a) or len(a) != len(b):
        raise ValueError(f"{len(b):,} predictions for {len(a):,} cells cannot be scored")
    if draws < 1:
        raise ValueError(f"{draws} draws give no interval: at least one is needed")
    classes, codes = np.unique(np.concatenate([a, b]), return_inverse=True)
    n = len(classes)
    pairs = codes[: len(a)] * n + codes[len(a) :]

    def scores(weights: np.ndarray) -> dict[str, float]:
        confusion = np.bincount(pairs, weights, minlength=n * n).reshape(n, n)
        right, having, named = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
        there = having > 0
        f1 = 2 * right[there] / (having + named)[there]
        return {"accuracy": right.sum() / having.sum(), "macro_f1": f1.mean()}

    with_intervals = {}
    for name, score in bootstrap_scores(scores, len(a), draws, seed).items():
        assert score.low is not None and score.high is not None  # both are defined in every sample
        with_intervals[name] = (score.value, score.low, score.high)
    return with_intervals


__all__ = ["classification_scores"]
