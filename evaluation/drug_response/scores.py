"""Pearson correlations of predicted and measured ln IC50: over all pairs, within a drug, within a line."""

from typing import Any

import numpy as np

from cellglot.evaluation.drug_response.folder import DrugResponse
from cellglot.evaluation.drug_response.splits import BOTH, DRUGS, LINES, PairSplit
from cellglot.evaluation.scores.bootstrap import DRAWS, Score, bootstrap_scores


ALL, IN_DRUG, IN_LINE = "pearson", "pearson_in_drug", "pearson_in_line"
LEAST_PAIRS = 10  # of a drug or a line, for its own correlation
_CONSTANT = 1e-9  # of a standard deviation, relative to that of all measured values


def score_pairs(
    data: DrugResponse, split: PairSplit, predicted: np.ndarray, *, seed: int = 0, draws: int = DRAWS
) -> tuple[dict[str, Score], dict[str, str], dict[str, Any]]:
    """Score the predicted test pairs.

    Parameters
    ----------
    predicted
        ln IC50 of all pairs, shape (drugs, lines).
    draws
        Bootstrap samples: of held-out lines, of held-out drugs (also where both are held out), or of pairs.

    Returns
    -------
    scores, undefined, details
        ``pearson`` over all pairs; the medians ``pearson_in_drug`` and ``pearson_in_line`` over drugs and lines with
        ten test pairs or more; undefined scores with the reason; numbers of pairs, drugs and lines.
    """
    drug, line = data.drug[split.test], data.line[split.test]
    true, found = data.ln_ic50[split.test], np.asarray(predicted, dtype=np.float64)[drug, line]
    least = _CONSTANT * max(float(true.std()), 1e-12)
    groups = {ALL: np.zeros(len(true), dtype=np.int64), IN_DRUG: drug, IN_LINE: line}
    parts = {name: _Groups(of, found, true, 2 if name == ALL else LEAST_PAIRS, least) for name, of in groups.items()}
    undefined = {name: why for name, part in parts.items() if (why := part.undefined(_WORDS[name]))}
    units = {LINES: line, DRUGS: drug, BOTH: drug}.get(split.name, np.arange(len(true)))
    _, unit = np.unique(units, return_inverse=True)

    def scores(weights: np.ndarray) -> dict[str, float]:
        return {name: part.median(weights[unit]) for name, part in parts.items() if name not in undefined}

    details = {
        "training_pairs": int(split.train.sum()),
        "test_pairs": len(true),
        "split": split.note,
        "drugs_scored": int(parts[IN_DRUG].usable.sum()),
        "lines_scored": int(parts[IN_LINE].usable.sum()),
        "rmse": float(np.sqrt(np.mean((found - true) ** 2))),
    }
    return bootstrap_scores(scores, int(unit.max()) + 1, draws, seed), undefined, details


_WORDS = {ALL: "", IN_DRUG: "drug", IN_LINE: "line"}


class _Groups:
    """Correlations within groups of pairs.

    Parameters
    ----------
    groups
        Group of each pair, shape (pairs,).
    least_pairs, least_deviation
        Groups with fewer pairs, or with smaller standard deviations, have no correlation.
    """

    def __init__(self, groups: np.ndarray, found: np.ndarray, true: np.ndarray, least_pairs: int, least: float):
        _, self.group = np.unique(groups, return_inverse=True)
        self.least_pairs, self.least = least_pairs, least
        self.sizes = np.bincount(self.group)
        centred = [v - np.bincount(self.group, v)[self.group] / self.sizes[self.group] for v in (found, true)]
        self.terms = (*centred, centred[0] ** 2, centred[1] ** 2, centred[0] * centred[1])
        found_varies, true_varies = (np.bincount(self.group, v**2) > self.sizes * least**2 for v in centred)
        self.large = self.sizes >= least_pairs
        self.varies, self.usable = self.large & true_varies, self.large & true_varies & found_varies

    def undefined(self, word: str) -> str:
        """Return why there is no correlation, an empty text if there is one."""
        if self.usable.any():
            return ""
        if not self.large.any():
            return f"no {word} has {self.least_pairs} test pairs" if word else "there is one test pair"
        if not self.varies.any():
            return f"the measured values are constant{f' within every {word}' if word else ''}"
        return f"the predictions are constant{f' within every {word}' if word else ''}"

    def median(self, weights: np.ndarray) -> float:
        """Return the median of the groups' correlations, each with its mean weight."""
        total: np.ndarray = np.bincount(self.group, weights)
        x, y, xx, yy, xy = (np.bincount(self.group, weights * term) for term in self.terms)
        kept = self.usable & (total > 0)
        n: np.ndarray = np.where(kept, total, 1)
        x, y = np.divide(x, n), np.divide(y, n)
        variances = (xx / n - x * x), (yy / n - y * y)
        kept &= (variances[0] > self.least**2) & (variances[1] > self.least**2)
        if not kept.any():
            return float("nan")
        r = (xy / n - x * y)[kept] / np.sqrt(variances[0][kept] * variances[1][kept])
        return _weighted_median(r, (total / self.sizes)[kept])


def _weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    """Return the mean of the lower and upper weighted medians: with equal weights the usual median."""
    order = np.argsort(values)
    sums = np.cumsum(weights[order])
    half = sums[-1] / 2
    low = np.searchsorted(sums, half * (1 - 1e-12))
    high = np.searchsorted(sums, half * (1 + 1e-12), side="right")
    return float(values[order[low]] + values[order[min(high, len(order) - 1)]]) / 2


__all__ = ["ALL", "IN_DRUG", "IN_LINE", "score_pairs"]
