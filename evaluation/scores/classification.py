"""Scores of predicted classes, with bootstrap confidence intervals."""

from collections.abc import Callable, Sequence

import numpy as np

from cellglot.evaluation.scores.bootstrap import DRAWS, bootstrap_scores


def classification_scores(
    true: Sequence[str] | np.ndarray, predicted: Sequence[str] | np.ndarray, draws: int = DRAWS, seed: int = 0
) -> dict[str, tuple[float, float, float]]:
    """Score predicted classes.

    Parameters
    ----------
    true, predicted
        Class of each cell.
    draws
        Number of bootstrap samples of cells.
    seed
        Of the bootstrap samples.

    Returns
    -------
    dict
        ``accuracy`` and ``macro_f1`` (mean over the classes in `true`, or in the sample), each as value and ends of
        the 95% interval.

    Raises
    ------
    ValueError
        If there are no cells, the numbers of cells and predictions differ, or `draws` is below 1.
    """
    a, b = np.asarray(true, dtype=str), np.asarray(predicted, dtype=str)
    if not len(a) or len(a) != len(b):
        raise ValueError(f"{len(b):,} predictions for {len(a):,} cells cannot be scored")
    if draws < 1:
        raise ValueError(f"draws={draws} must be at least 1")
    with_intervals = {}
    for name, score in bootstrap_scores(weighted_scores(a, b), len(a), draws, seed).items():
        assert score.low is not None and score.high is not None  # all are defined in every sample
        with_intervals[name] = (score.value, score.low, score.high)
    return {name: with_intervals[name] for name in ("accuracy", "macro_f1")}


def weighted_scores(
    true: Sequence[str] | np.ndarray, predicted: Sequence[str | None] | np.ndarray
) -> Callable[[np.ndarray], dict[str, float]]:
    """Return accuracy, balanced accuracy and macro F1 as a function of the weights of the cells.

    Means are over the classes of the cells with a weight. A prediction of None is an error.
    """
    names, codes = np.unique(np.asarray(true, dtype=str), return_inverse=True)
    place = {str(name): i for i, name in enumerate(names)}
    guesses = np.array([len(names) if p is None else place.get(str(p), len(names)) for p in predicted])
    right = (guesses == codes).astype(float)

    def scores(weights: np.ndarray) -> dict[str, float]:
        hits = np.bincount(codes, weights * right, minlength=len(names))
        cells = np.bincount(codes, weights, minlength=len(names))
        guessed = np.bincount(guesses, weights, minlength=len(names) + 1)[:-1]
        there = cells > 0
        return {
            "accuracy": float(hits.sum() / weights.sum()),
            "balanced_accuracy": float((hits[there] / cells[there]).mean()),
            "macro_f1": float((2 * hits[there] / (cells + guessed)[there]).mean()),
        }

    return scores


__all__ = ["classification_scores", "weighted_scores"]
