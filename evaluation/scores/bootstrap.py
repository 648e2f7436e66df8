"""Confidence intervals by the bootstrap over cells."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np


DRAWS = 1000


@dataclass
class Score:
    """A score and the ends of its 95% interval, None without an interval."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:.3f}"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap_scores(
    scores: Callable[[np.ndarray], Mapping[str, float]],
    n_cells: int,
    draws: int = DRAWS,
    seed: int = 0,
    biased: Collection[str] = (),
) -> dict[str, Score]:
    """Score cells, with intervals over bootstrap samples.

    Cells enter as weights, so that scores are computed without copying cells (`scipy.stats.bootstrap` copies them).

    Parameters
    ----------
    scores
        Function of the weights of the cells, float64, shape (cells,); returns scores by name, NaN if undefined.
    draws
        Number of samples.
    biased
        Scores in [0, 1] that repeated cells raise. Their quantiles are shifted so that the median over the samples is
        the score of the cells themselves (our choice), and clipped to [0, 1].

    Returns
    -------
    dict
        Scores of the cells themselves, each with the 2.5% and 97.5% quantiles over the samples in which it is defined;
        without undefined scores.
    """
    random = np.random.default_rng(seed)
    found = scores(np.ones(n_cells))
    drawn: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(draws if n_cells else 0):
        weights = np.bincount(random.integers(0, n_cells, n_cells), minlength=n_cells).astype(np.float64)
        for name, value in scores(weights).items():
            drawn[name].append(value)
    return {
        name: _with_interval(value, drawn[name], name in biased) for name, value in found.items() if np.isfinite(value)
    }


def _with_interval(value: float, drawn: list[float], biased: bool) -> Score:
    defined = np.array([v for v in drawn if np.isfinite(v)])
    if not len(defined):
        return Score(float(value))
    low, middle, high = np.quantile(defined, [0.025, 0.5, 0.975])
    if biased:
        low, high = max(low + value - middle, min(0, value)), min(high + value - middle, max(1, value))
    return Score(float(value), float(low), float(high))


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> float:
    """Return the weighted mean, NaN if all weights are 0."""
    total = weights.sum()
    return float(values @ weights / total) if total else float("nan")


__all__ = ["DRAWS", "Score", "bootstrap_scores", "weighted_mean"]
