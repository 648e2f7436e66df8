"""Agreement of clusters with cell types: normalised mutual information and adjusted Rand index."""

from collections.abc import Iterable
from typing import Any

import datasets
import evaluate
import numpy as np
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score


DESCRIPTION = """\
Normalised mutual information (arithmetic mean of the entropies) and adjusted Rand index of clusters and cell types.
Cells without a label are excluded and counted. An undefined score is None, with the reason.
"""

INPUTS = """\
Args:
    predictions: cluster of each cell, a number or a text.
    references: cell type of each cell; None, NaN, '' or a text such as 'Unknown' or 'NA' if unknown.
Returns:
    nmi, ari: floats, or None if undefined.
    clusters, cell_types, cells, cells_without_label: numbers.
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


def clustering_agreement(labels: Iterable[Any], clusters: Iterable[Any]) -> dict[str, Any]:
    """Compare clusters with cell types; unknown labels are None, NaN, blank or a text of `MISSING`.

    Return the fields of the metric's description.
    """
    types, found = np.array(known_labels(labels), dtype=str), np.array(texts(clusters), dtype=str)
    if len(types) != len(found):
        raise ValueError(f"{len(found):,} clusters for {len(types):,} labels: pass one of each per cell")
    labelled = types != ""
    if not labelled.any():
        raise ValueError(f"none of {len(types):,} cells has a label: pass the type of at least one cell")
    a, b = types[labelled], found[labelled]
    if (b == "").any():
        raise ValueError(f"{int((b == '').sum()):,} cells have no cluster")
    result: dict[str, Any] = {"nmi": None, "ari": None, "undefined": {}}
    if len(np.unique(a)) < 2:
        reason = f"all {len(a):,} cells have the same cell type: at least two types are needed"
        result["undefined"] = {"nmi": reason, "ari": reason}
    else:
        result["nmi"] = float(normalized_mutual_info_score(a, b))
        result["ari"] = float(adjusted_rand_score(a, b))
    return result | {
        "clusters": len(np.unique(b)),
        "cell_types": len(np.unique(a)),
        "cells": len(a),
        "cells_without_label": int((~labelled).sum()),
    }


class ClusteringAgreement(evaluate.Metric):
    """The scores as a module of `evaluate`."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": text, "references": text}),
            reference_urls=[
                "https://scikit-learn.org/stable/modules/clustering.html#clustering-performance-evaluation"
            ],
        )

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Add cells; clusters and labels may be of any type."""
        super().add_batch(predictions=texts(predictions), references=texts(references), **kwargs)

    def _compute(self, *, predictions: Any = None, references: Any = None) -> dict[str, Any]:
        return clustering_agreement(references, predictions)
