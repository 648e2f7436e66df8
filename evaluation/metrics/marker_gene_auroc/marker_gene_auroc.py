"""AUROC of scores of each cell's genes against the marker genes of its cell type."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from scipy.stats import rankdata


DESCRIPTION = """\
Area under the ROC curve, for each cell, of scores of its genes against the known marker genes of its cell type;
averaged over the cells that have at least one marker and one other gene, and over cell types. The other cells are
counted. A mean over no cells is None, with the reason.
"""

INPUTS = """\
Args:
    predictions: for each cell, a score of each of its genes, larger for more important genes.
    references: for each cell, 1 for each gene that is a marker, else 0.
    cell_types (optional): cell type of each cell, for means per type; None, NaN or '' if unknown.
Returns:
    auroc: mean over cells, or None if undefined.
    auroc_macro: mean over cell types of the means over their cells, or None if undefined.
    auroc_per_type: cell type -> mean over its cells; cells_per_type: its cells that have an AUROC.
    auroc_per_cell: AUROC of each cell, None if undefined.
    cells: cells that have an AUROC; cells_without_markers, cells_of_markers_alone: cells that do not.
    undefined: score that is None -> the reason.
"""


def cell_auroc(scores: Sequence[float] | np.ndarray, is_marker: Sequence[int] | np.ndarray) -> float | None:
    """Return the AUROC of one cell from one value per gene, None without a marker or without another gene.

    Ties count half.
    """
    values, flags = np.asarray(scores, dtype=np.float64), np.asarray(is_marker).astype(bool)
    if values.shape != flags.shape or values.ndim != 1:
        raise ValueError(f"scores of shape {values.shape} for markers of shape {flags.shape}")
    if np.isnan(values).any():
        raise ValueError(f"{int(np.isnan(values).sum()):,} of the {len(values):,} genes of a cell have the score NaN")
    markers, others = int(flags.sum()), int((~flags).sum())
    if not markers or not others:
        return None
    above = rankdata(values)[flags].sum() - markers * (markers + 1) / 2
    return float(above / (markers * others))


def marker_auroc(scores: Sequence[Any], is_marker: Sequence[Any], cell_types: Iterable[Any] | None = None) -> dict:
    """Average the AUROC of cells.

    Parameters
    ----------
    scores, is_marker
        For each cell, one value per gene.
    cell_types
        Cell type of each cell; cells without one are not in the means per type.

    Returns
    -------
    dict
        Fields of the metric's description; plain types.
    """
    types = [""] * len(scores) if cell_types is None else texts(cell_types)
    if not len(scores) or len({len(scores), len(is_marker), len(types)}) > 1:
        raise ValueError(f"scores, markers and types of {len(scores):,}, {len(is_marker):,} and {len(types):,} cells")
    per_cell = [cell_auroc(s, m) for s, m in zip(scores, is_marker, strict=True)]
    by_type: dict[str, list[float]] = defaultdict(list)
    for value, cell_type in zip(per_cell, types, strict=True):
        if value is not None and cell_type:
            by_type[cell_type].append(value)
    defined = [v for v in per_cell if v is not None]
    per_type = {t: float(np.mean(v)) for t, v in sorted(by_type.items())}
    without = sum(not np.any(m) for m in is_marker)
    undefined = {}
    if not defined:
        undefined["auroc"] = f"none of {len(per_cell):,} cells has a marker and another gene"
    if not per_type:
        undefined["auroc_macro"] = "no cell types were given" if cell_types is None else "no cell with a type has one"
    return {
        "auroc": float(np.mean(defined)) if defined else None,
        "auroc_macro": float(np.mean(list(per_type.values()))) if per_type else None,
        "auroc_per_type": per_type,
        "cells_per_type": {t: len(v) for t, v in sorted(by_type.items())},
        "auroc_per_cell": per_cell,
        "cells": len(defined),
        "cells_without_markers": without,
        "cells_of_markers_alone": len(per_cell) - len(defined) - without,
        "undefined": undefined,
    }


def texts(values: Iterable[Any]) -> list[str]:
    """Return labels as text, '' for None, NaN or blank."""
    given = [v if isinstance(v, str) else "" if str(v) in ("None", "nan", "<NA>", "NaT") else str(v) for v in values]
    return [v if v.strip() else "" for v in given]


class MarkerGeneAuroc(evaluate.Metric):
    """The scores as a module of `evaluate`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Sequence(datasets.Value("int8")),
                }
            ),
            reference_urls=["https://scikit-learn.org/stable/modules/model_evaluation.html#roc-metrics"],
        )

    def _compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> dict[str, Any]:
        return marker_auroc(predictions, references, **kwargs)
