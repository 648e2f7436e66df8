"""Scores of predicted cell types: accuracy, balanced accuracy, macro F1, AUROC; unseen classes count as errors."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from sklearn.metrics import f1_score, recall_score, roc_auc_score


DESCRIPTION = """\
Accuracy, balanced accuracy, macro F1 and one-versus-rest AUROC of predicted cell types. Cells without a label (also
"Unknown", "NA", "unassigned" and the like) are excluded and counted. Cells without a prediction, and cells of classes
that are not in the training data, count as errors and are reported. An undefined score is None, with the reason.
"""

INPUTS = """\
Args:
    predictions: predicted class of each cell; None, NaN or '' without a prediction.
    references: class of each cell; None, NaN, '' or a text such as 'Unknown' or 'NA' if unknown.
    scores (optional): array of shape (cells, classes), larger for more likely classes; for AUROC.
    classes (optional): class of each column of `scores`.
    training_classes (optional): classes of the training data; by default `classes`.
Returns:
    accuracy, balanced_accuracy, macro_f1, auroc: floats, or None if undefined.
    f1_per_class, auroc_per_class, cells_per_class: one number for each class among the references.
    unseen_classes: class that is not in the training data -> its cells; None if the training classes are unknown.
    cells, cells_without_label, cells_without_prediction, cells_without_scores: numbers of cells.
    undefined: score that is None -> the reason.
"""


# Labels that mean that the type is unknown, compared without case.
MISSING = frozenset(
    (
        "", "nan", "na", "n/a", "n.a.", "<na>", "#n/a", "nat", "none", "null", "missing", "-", "--", "?", ".",
        "unknown", "unassigned", "unannotated", "unlabelled", "unlabeled", "undefined", "undetermined",
        "not available", "not applicable", "not provided", "not annotated", "not assigned",
    )
)  # fmt: skip


def texts(values: Iterable[Any]) -> list[str]:
    """Return labels as text, '' for None, NaN or blank."""
    given = [v if isinstance(v, str) else "" if str(v) in ("None", "nan", "<NA>", "NaT") else str(v) for v in values]
    return [v if v.strip() else "" for v in given]


def known_labels(values: Iterable[Any]) -> list[str]:
    """Return labels as text, '' for those that are missing, of which many data sets write ``Unknown``."""
    return ["" if v.strip().casefold() in MISSING else v for v in texts(values)]


def classification_scores(
    references: Iterable[Any],
    predictions: Iterable[Any],
    scores: Any = None,
    classes: Sequence[Any] | None = None,
    training_classes: Iterable[Any] | None = None,
) -> dict[str, Any]:
    """Score predicted classes.

    Means are over the classes among the references. The AUROC of a class compares its column with all other classes; a
    class without a column has the AUROC 0.5 (our choice: a class that is not in the training data stays in the mean).

    Parameters
    ----------
    references
        Class of each cell; None, NaN, blank or a text of `MISSING` if unknown.
    predictions
        Predicted class of each cell; None, NaN or blank without a prediction, which is an error.
    scores
        Larger for more likely classes, shape (cells, classes); cells with NaN are excluded from AUROC and counted.
    classes
        Class of each column of `scores`.
    training_classes
        Classes of the training data; by default `classes`.

    Returns
    -------
    dict
        Fields of the metric's description; plain types.

    Raises
    ------
    ValueError
        If the numbers of predictions and cells differ, no cell has a label, or `scores` do not match `classes`.
    """
    true, predicted = np.array(known_labels(references), dtype=str), np.array(texts(predictions), dtype=str)
    if len(true) != len(predicted):
        raise ValueError(f"{len(predicted):,} predictions for {len(true):,} cells cannot be scored")
    labelled = true != ""
    if not labelled.any():
        raise ValueError(f"none of {len(true):,} cells has a label: pass the class of at least one cell")
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
        raise ValueError(f"the {len(names)} classes of the scores must have distinct names, and be at least one")
    if table.shape != (n_cells, len(names)):
        raise ValueError(f"scores have shape {table.shape} for {n_cells:,} cells and {len(names)} classes")
    return dict(zip(names, table.T, strict=True))


def _aurocs(true: np.ndarray, by_column: dict[str, np.ndarray]) -> dict[str, Any]:
    finite = np.isfinite(np.stack(list(by_column.values()))).all(axis=0)
    true, without = true[finite], int((~finite).sum())
    names = np.unique(true)
    if len(names) < 2:
        reason = f"the cells with scores have {len(names)} class: AUROC needs two"
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
