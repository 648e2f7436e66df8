"""Scores of a predicted value of each cell: Pearson and Spearman correlation, R2 and mean absolute error."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import mean_absolute_error, r2_score


DESCRIPTION = """\
Pearson and Spearman correlation, coefficient of determination (R2) and mean absolute error of a predicted value of
each cell. Cells without a value are excluded and counted. An undefined score is None, with the reason.
"""

INPUTS = """\
Args:
    predictions: predicted value of each cell.
    references: value of each cell, NaN if unknown.
Returns:
    pearson, spearman, r2, mae: floats, or None if undefined; mae is in the unit of the values.
    cells, cells_without_value: numbers of cells.
    undefined: score that is None -> the reason.
"""


def regression_scores(references: Sequence[float] | np.ndarray, predictions: Sequence[float] | np.ndarray) -> dict:
    """Score predicted values; an unknown value is NaN. Return the fields of the metric's description."""
    true, predicted = np.asarray(references, dtype=np.float64), np.asarray(predictions, dtype=np.float64)
    if true.shape != predicted.shape or true.ndim != 1:
        raise ValueError(f"predictions of shape {predicted.shape} for values of shape {true.shape} cannot be scored")
    known = ~np.isnan(true)
    if not known.any():
        raise ValueError(f"none of {len(true):,} cells has a value: pass the value of at least one cell")
    a, b = true[known], predicted[known]
    wrong = int((~np.isfinite(a)).sum() + (~np.isfinite(b)).sum())
    if wrong:
        raise ValueError(f"{wrong:,} values or predictions of {len(a):,} cells with a value are not finite")
    undefined = _undefined(a, b)
    scores = {
        "pearson": lambda: pearsonr(a, b).statistic,
        "spearman": lambda: spearmanr(a, b).statistic,
        "r2": lambda: r2_score(a, b),
        "mae": lambda: mean_absolute_error(a, b),
    }
    result: dict[str, Any] = {name: None if name in undefined else float(f()) for name, f in scores.items()}
    return result | {"cells": len(a), "cells_without_value": int((~known).sum()), "undefined": undefined}


def _undefined(a: np.ndarray, b: np.ndarray) -> dict[str, str]:
    if len(a) < 2:
        return dict.fromkeys(("pearson", "spearman", "r2"), "a single cell has a value: at least two are needed")
    if np.ptp(a) == 0:
        return dict.fromkeys(("pearson", "spearman", "r2"), f"all {len(a):,} cells have the same value")
    if np.ptp(b) == 0:
        return dict.fromkeys(("pearson", "spearman"), f"all {len(a):,} predictions are the same")
    return {}


class CellValueRegression(evaluate.Metric):
    """The scores as a module of `evaluate`."""

    def _info(self) -> evaluate.MetricInfo:
        number = datasets.Value("float64")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": number, "references": number}),
            reference_urls=["https://scikit-learn.org/stable/modules/model_evaluation.html#regression-metrics"],
        )

    def _compute(self, *, predictions: Any = None, references: Any = None) -> dict[str, Any]:
        return regression_scores(references, predictions)
