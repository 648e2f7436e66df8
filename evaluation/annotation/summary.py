"""What is printed of annotated cells: first what has to be known, then a table of types."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from cellglot.modeling.annotation_calibration import (
    ASSIGNED,
    REASONS,
    UNASSIGNED,
    AnnotationCalibration,
    CellDecisions,
)
from cellglot.tokenization.gene_report import GeneReport


MOST_TYPES = 20
MOST_NAMED = 6
FEW_COUNTS = 0.6  # share of the counts on genes of the model below which a warning is the first line


def headline(
    predicted: Sequence[str | None],
    genes: GeneReport,
    calibration: AnnotationCalibration | None = None,
    decisions: CellDecisions | None = None,
) -> str:
    """Return the first line: how many cells are assigned; or that the file is mostly foreign to the model, and why.

    Parameters
    ----------
    predicted
        Type of each cell; None or ``"unassigned"`` for cells without one.
    genes
        Genes matched and lost.
    calibration, decisions
        Of a model that has a calibration.
    """
    n_cells = len(predicted)
    assigned = [name for name in predicted if name is not None and name != UNASSIGNED]
    if calibration is not None and decisions is not None and len(assigned) < n_cells / 2:
        counts = np.bincount(decisions.reason[decisions.reason != ASSIGNED], minlength=len(REASONS))
        known = [name for name in calibration.classes if name not in calibration.foreign]
        more = f" and {len(known) - MOST_NAMED:,} more" if len(known) > MOST_NAMED else ""
        return (
            f"WARNING: these cells are mostly foreign to the model: {n_cells - len(assigned):,} of {n_cells:,} "
            f"({1 - len(assigned) / n_cells:.0%}) are unassigned. Main reason: {REASONS[counts.argmax()]}. "
            f"The model knows {', '.join(known[:MOST_NAMED])}{more}."
        )
    if genes.coverage < FEW_COUNTS:
        return (
            f"WARNING: the model knows few genes of these cells: {genes.matched:,} of {genes.genes:,}, with "
            f"{genes.coverage:.0%} of the counts. {len(assigned):,} of {n_cells:,} cells are assigned by these genes."
        )
    return f"{len(assigned):,} of {n_cells:,} cells are assigned to {len(set(assigned)):,} cell types"


def type_table(predicted: Sequence[str | None], confidence: np.ndarray, broader: np.ndarray | None = None) -> str:
    """Return a table of types: number of cells, share, median confidence; the most frequent first.

    Parameters
    ----------
    predicted
        Type of each cell, or None; cells without a type are not listed.
    confidence
        Of each cell's type, shape (cells,).
    broader
        Whether a broader type is given for a cell, shape (cells,); its share is a column.
    """
    names = pd.Series(list(predicted), dtype=object)
    rows = []
    for name, count in names.value_counts().head(MOST_TYPES).items():
        mine = (names == name).to_numpy()
        known = confidence[mine][~np.isnan(confidence[mine])]
        row = [str(name), f"{count:,}", f"{count / len(names):.1%}", f"{np.median(known):.2f}" if len(known) else "-"]
        rows.append(row if broader is None else [*row, f"{broader[mine].mean():.0%}"])
    head = ["cell type", "cells", "share", "median confidence", "broader type given"]
    rows.insert(0, head if broader is not None else head[:-1])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(t.rjust(w) for t, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    left = names.nunique() - MOST_TYPES
    return "\n".join([*lines, *([f"and {left:,} more cell types"] if left > 0 else [])])


def reasons(decisions: CellDecisions) -> list[str]:
    """Return why cells are unassigned, in lines with numbers of cells; none where all are assigned."""
    counts = np.bincount(decisions.reason, minlength=len(REASONS))
    return [
        f"unassigned, {text}: {count:,} cells"
        for code, (text, count) in enumerate(zip(REASONS, counts, strict=True))
        if count and code != ASSIGNED
    ]


__all__ = ["headline", "reasons", "type_table"]
