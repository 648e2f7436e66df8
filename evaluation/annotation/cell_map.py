"""Annotated cells as an interactive plot: coloured by prediction, scores, metadata of the file, genes."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from cellglot.evaluation.cell_plot.plot import CellPlot
from cellglot.evaluation.output import KEY
from cellglot.modeling.annotation_calibration import UNASSIGNED
from cellglot.tokenization.reading.cells import Cells


# Columns of an annotation -> names in the plot; the others repeat these.
LABELS = {
    "cell_type": "cell type", "cell_type_voted": "cell type by vote", "reason": "why unassigned",
    "broader_type": "broader type",
}  # fmt: skip
SCORES = {
    "confidence": "confidence", "score_calibrated": "score", "score_uncalibrated": "score", "novelty": "novelty",
    "margin": "margin", "mass": "share of the type", "similarity": "similarity", "matching": "matching",
}  # fmt: skip


def annotation_plot(columns: Mapping[str, Any], cells: Cells, coordinates: np.ndarray, title: str) -> CellPlot:
    """Return a plot of annotated cells, coloured by predicted type first.

    Parameters
    ----------
    columns
        Column of obs, with the prefix ``cellglot_`` -> one value per cell.
    cells
        The opened file.
    coordinates
        Shape (cells, 2).
    """
    plot = CellPlot(coordinates, cells.names(), title)
    own = {name.removeprefix(f"{KEY}_"): values for name, values in columns.items()}
    predicted = [None if pd.isna(v) or v == UNASSIGNED else str(v) for v in own["cell_type"]]
    missing = UNASSIGNED if "assigned" in own else "no prediction"
    plot.add_classes(LABELS["cell_type"], predicted, missing)
    if "cell_type_voted" in own:
        voted = [None if pd.isna(v) or v == UNASSIGNED else str(v) for v in own["cell_type_voted"]]
        plot.add_classes(LABELS["cell_type_voted"], voted, missing)
    scores = [name for name in SCORES if name in own]
    if "confidence" in own or "score_calibrated" in own:
        scores = [name for name in scores if name != "score_uncalibrated"]
    for name in scores:
        plot.add_numbers(SCORES[name], own[name])
    for name in ("broader_type", "reason"):
        if name in own and any(isinstance(value, str) and value for value in own[name]):
            plot.add_classes(
                LABELS[name], [value if isinstance(value, str) and value else None for value in own[name]], "–"
            )
    known = cells.metadata_columns.get("cell_type")
    earlier = [name for name in cells.obs.names if name.startswith(f"{KEY}_")]
    plot.add_obs(cells, first=[] if known is None else [known], without=earlier)
    plot.add_genes(cells, predicted)
    return plot


__all__ = ["annotation_plot"]
