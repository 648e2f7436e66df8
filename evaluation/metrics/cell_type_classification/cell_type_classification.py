"""Scores of predicted cell types: accuracy, balanced accuracy, macro F1, AUROC; unseen classes count as errors."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from sklearn.metrics import f1_score, recall_score, roc_auc_score


DESCRIPTION = """\
Accuracy, balanced accuracy, macro F1 and one-versus-rest AUROC of predicted cell types. Cells without a label are left
out and counted. Cells without a prediction, and cells of classes that training never saw, count as errors and are
reported. A score that is not defined is None, with the reason.
"""

INPUTS = """\
Args:
    predictions: predicted class of each cell; None, NaN or '' where there is none.
    references: class of each cell; None, NaN or '' where it is not known.
    scores (optional): array of shape (cells, classes), larger where a class is likelier; for AUROC.
    classes (optional): class of each column of `scores`.
    training_classes (optional): classes that training saw; `classes` where it is not given.
Returns:
    accuracy, balanced_accuracy, macro_f1, auroc: floats, or None where undefined.
    f1_per_class, auroc_per_class, cells_per_class: one number for each class among the references.
    unseen_classes: class that training never saw -> its cells; None where no classes of training are known.
    cells, cells_without_label, cells_without_prediction, cells_without_scores: numbers of cells.
    undefined: score that is None -> the reason.
"""


def texts(values: Iterable[Any]) -> list[str]:
    """Return labels as text, '' where one is None, NaN or blank."""
    given = [v if isinstance(v, str) else "" if str(v) in ("None", "nan", "<NA>", "NaT") else str(v) for v in values]
    return [v if v.strip() else "" for v in given]


def classification_scores(
    references: Iterable[Any],
    predictions: Iterable[Any],
    scores: Any = None,
    classes: Sequence[Any] | None = None,
    training_classes: Iterable[Any] | None = None,
) -> dict[str, Any]:
    """Score predicted classes.

    Means over classes go over the classes among the references. AUROC of a class is that of its column against all
    other classes; a class of the references without column has the same score for every cell, hence AUROC 0.5 (our
    choice: a class that training never saw is not left out of the mean).

    Parameters
    ----------
    references
        Class of each cell; None, NaN or blank where it is not known.
    predictions
        Predicted class of each cell; None, NaN or blank where there is none, which counts as an error.
    scores
        Larger where a class is likelier, shape (cells, classes); cells with NaN are left out of AUROC and counted.
    classes
        Class of each column of `scores`.
    training_classes
        Classes that training saw; `classes` where it is None.

    Returns
    -------
    dict
        As the metric's description says; plain types.

    Raises
    ------
    ValueError
        If there are not as many predictions as cells, no cell has a label, or `scores` and `classes` do not fit.
    """
    true, predicted = np.array(texts(references), dtype=str), np.array(texts(predictions), dtype=str)
    if len(true) != len(predicted):
        raise ValueError(f"{len(predicted):,} predictions for {len(true):,} cells cannot be scored")
    labelled = true != ""
    if not labelled.any():
        raise ValueError(f"none of {len(true):,} cells has a label: there is nothing to score predictions against")
    a, b = true[labelled], predicted[labelled]
    names = np.unique(a)
    per_class = f1_score(a, b, labels=names, average=None, zero_division=0)
    by_column = None if scores is None else _scores_by_class(scores, classes, len(true))
    known = training_classes if training_classes is not None else classes
    counts = Counter(a.tolist())
    result: dict[str, Any] = {
        "accuracy": float((a == b).mean()),
        "balanced_accuracy": float(recall_score(a, b, labels=names, average="macro", zero_division=0)),
        "macro_f1": float(per_class.mean()),
        "auroc": None,
        "f1_per_class": dict(zip(names.tolist(), per_class.tolist(), strict=True)),
        "auroc_per_class": {},
        "cells_per_class": {str(n): counts[str(n)] for n in names},
        "unseen_classes": None if known is None else _unseen(counts, known),
        "cells": int(labelled.sum()),
        "cells_without_label": int((~labelled).sum()),
        "cells_without_prediction": int((b == "").sum()),
        "cells_without_scores": 0,
        "undefined": {},
    }
    if by_column is None:
        result["undefined"]["auroc"] = "no scores of classes were given"
        return result
    return result | _aurocs(a, {name: column[labelled] for name, column in by_column.items()})


def _unseen(counts: Counter[str], known: Iterable[Any]) -> dict[str, int]:
    seen = set(texts(known))
    return {name: n for name, n in sorted(counts.items()) if name not in seen}


def _scores_by_class(scores: Any, classes: Sequence[Any] | None, n_cells: int) -> dict[str, np.ndarray]:
    if classes is None:
        raise ValueError("scores without classes: name the class of each column")
    names, table = texts(classes), np.asarray(scores, dtype=np.float64)
    if not names or len(set(names)) < len(names):
        raise ValueError(f"the {len(names)} classes of the scores must have different names, and be at least one")
    if table.shape != (n_cells, len(names)):
        raise ValueError(f"scores have the shape {table.shape} for {n_cells:,} cells and {len(names)} classes")
    return dict(zip(names, table.T, strict=True))


def _aurocs(true: np.ndarray, by_column: dict[str, np.ndarray]) -> dict[str, Any]:
    finite = np.isfinite(np.stack(list(by_column.values()))).all(axis=0)
    true, without = true[finite], int((~finite).sum())
    names = np.unique(true)
    if len(names) < 2:
        reason = f"the cells with scores are of {len(names)} class: AUROC needs two"
        return {"cells_without_scores": without, "undefined": {"auroc": reason}}
    constant = np.zeros(len(finite))
    per_class = {str(n): float(roc_auc_score(true == n, by_column.get(str(n), constant)[finite])) for n in names}
    mean = float(np.mean(list(per_class.values())))
    return {"auroc": mean, "auroc_per_class": per_class, "cells_without_scores": without}


class CellTypeClassification(evaluate.Metric):
    """The scores as a module of `evaluate`."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": text, "references": text}),
            reference_urls=["https://scikit-learn.org/stable/modules/model_evaluation.html"],
        )

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Add cells; labels may be of any type."""
        super().add_batch(predictions=texts(predictions), references=texts(references), **kwargs)

    def _compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> dict[str, Any]:
        return classification_scores(references, predictions, **kwargs)
