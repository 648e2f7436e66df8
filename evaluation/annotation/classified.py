"""Cells with the classes that a head predicts, and what a calibration says of them. PyTorch is not imported."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cellglot.evaluation.annotation.summary import headline, reasons, type_table
from cellglot.evaluation.output import KEY
from cellglot.modeling.annotation_calibration import (
    NO_GENES,
    UNASSIGNED,
    AnnotationCalibration,
    CellDecisions,
    softmax,
)
from cellglot.tokenization.gene_report import GeneReport
from cellglot.tokenization.reading.cells import Cells


if TYPE_CHECKING:
    from matplotlib.figure import Figure


DEFAULT_COVERAGE = 0.9  # share of prediction sets that should hold the true type


@dataclass(frozen=True)
class Classes:
    """The classes of a classifier.

    Parameters
    ----------
    source
        Name of the model, for messages.
    names
        In the order of the logits.
    cell_types
        Cell Ontology id of each, or None.
    """

    source: str
    names: list[str]
    cell_types: list[str | None]


@dataclass
class ClassifiedCells:
    """Cells and the classes that a head predicts. Rows of cells that express no known gene are NaN.

    Parameters
    ----------
    cell_names
        Shape (cells,).
    cell_types
        Cell Ontology id of each class, or None.
    scores
        Softmax of the logits, float32, shape (cells, classes).
    embedding
        Cell embeddings of the trained classifier's encoder, shape (cells, size).
    genes
        Genes matched and lost.
    calibration, decisions
        What the model knows of its own limits, and what follows for each cell; None for a model without a calibration.
    """

    cell_names: np.ndarray
    classes: list[str]
    cell_types: list[str | None]
    scores: np.ndarray
    embedding: np.ndarray
    genes: GeneReport
    calibration: AnnotationCalibration | None = None
    decisions: CellDecisions | None = None

    def __len__(self) -> int:
        return len(self.scores)

    @cached_property
    def said(self) -> dict[str, list[Any]]:
        """What the calibration says of each cell in words, as `AnnotationCalibration.columns`; empty without one."""
        if self.calibration is None or self.decisions is None:
            return {}
        return self.calibration.columns(self.decisions)

    @property
    def best(self) -> np.ndarray:
        """Class of each cell, -1 for cells without known genes; shape (cells,)."""
        if self.decisions is not None:
            return np.where(self.decisions.reason == NO_GENES, -1, self.decisions.best)
        return np.where(np.isnan(self.scores[:, 0]), -1, self.scores.argmax(axis=1))

    @property
    def predicted(self) -> list[str | None]:
        """Name of each cell's class, or None; with a calibration ``"unassigned"`` where the model does not know."""
        if self.said:
            return self.said["cell_type"]
        return [None if i < 0 else self.classes[i] for i in self.best]

    def columns(self) -> dict[str, Any]:
        """Return one value per cell: class, its id, its score, and the difference to the second-best score.

        With a calibration also what `AnnotationCalibration.columns` returns.
        """
        two = np.sort(self.scores, axis=1)[:, -2:]
        columns = {
            "cell_type": pd.Categorical(self.predicted),
            "cell_type_ontology_term_id": pd.Categorical([None if i < 0 else self.cell_types[i] for i in self.best]),
            "score_uncalibrated": self.scores.max(axis=1),
            "margin": two[:, 1] - two[:, 0],
        }
        for name, values in self.said.items():
            columns[name] = np.array(values) if isinstance(values[0], float | bool) else pd.Categorical(values)
        return columns

    def table(self) -> pd.DataFrame:
        """Return a table with one row per cell; the scores of all classes are columns ``score: B cell``, ..."""
        frame = pd.DataFrame(self.columns(), index=pd.Index([str(n) for n in self.cell_names], name="cell_id"))
        names = [f"score: {name}" for name in self.classes]
        return pd.concat([frame, pd.DataFrame(self.scores, index=frame.index, columns=names)], axis=1)

    def matrices(self) -> dict[str, np.ndarray]:
        """Return arrays with one row per cell: embedding and scores."""
        return {f"X_{KEY}": self.embedding, f"{KEY}_scores": self.scores}

    def facts(self) -> dict[str, Any]:
        """Return the classes as plain types, for ``adata.uns``."""
        facts = {
            "classes": np.array(self.classes, dtype=object),
            "cell_types": np.array([t or "" for t in self.cell_types], dtype=object),
        }
        return facts | ({} if self.decisions is None else {"set_coverage": self.decisions.level})

    def plot(self, coordinates: np.ndarray, title: str = "predicted cell types") -> "Figure":
        """Draw cells by class: the 19 most frequent in colours, the others as one class, unassigned cells in grey.

        Parameters
        ----------
        coordinates
            Shape (cells, 2).
        """
        from cellglot.evaluation import plots  # imports matplotlib

        shown = [None if name == UNASSIGNED else name for name in self.predicted]
        missing = "no prediction" if self.decisions is None else UNASSIGNED
        return plots.embedding_plot(coordinates, plots.frequent(shown), title, missing=missing)

    @property
    def headline(self) -> str:
        """What has to be known first: how many cells are assigned, and whether the cells are mostly foreign."""
        return headline(self.predicted, self.genes, self.calibration, self.decisions)

    def summary(self) -> str:
        """Summarise the predictions and the matched genes; the first line is `headline`."""
        known = sum(t is not None for t in self.cell_types)
        sure = self.scores.max(axis=1) if self.decisions is None else self.decisions.confidence
        broader = None if self.decisions is None else self.decisions.broader >= 0
        lines = [self.headline, type_table(self.predicted, sure, broader)]
        nothing = sum(name is None for name in self.predicted)
        lines += reasons(self.decisions) if self.decisions is not None else []
        lines += [f"{nothing:,} cells have no prediction"] if nothing else []
        lines.append(f"{len(self.classes):,} classes, {known:,} of them cell types of the Cell Ontology")
        lines.append(self.genes.summary())
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.summary()


def check_coverage(calibration: AnnotationCalibration | None, set_coverage: float | None, classes: Classes) -> None:
    """Refuse a calibration of other classes, a coverage that it does not have, or a coverage without calibration."""
    if calibration is not None:
        calibration.check(classes.source, classes.names)
        calibration.threshold(DEFAULT_COVERAGE if set_coverage is None else set_coverage)
    elif set_coverage is not None:
        raise ValueError(f"{classes.source} has no calibration: set_coverage is for models that have one")


def classified(
    cells: Any,
    classes: Classes,
    logits: np.ndarray,
    embedding: np.ndarray,
    n_genes: np.ndarray,
    report: GeneReport,
    calibration: AnnotationCalibration | None = None,
    set_coverage: float | None = None,
) -> ClassifiedCells:
    """Return what the outputs of a head say of cells.

    Parameters
    ----------
    cells
        Cells opened by `read_cells`, for their names; others get numbers.
    logits, embedding, n_genes
        One row or number for each cell; NaN for cells without a gene of the model.
    report
        Genes matched and lost.
    calibration, set_coverage
        As for `cellglot.evaluation.annotation.by_classifier.classify_cells`.

    Raises
    ------
    ValueError
        If no cell expresses a gene of the vocabulary, or the calibration does not fit.
    """
    if np.isnan(logits).all():
        raise ValueError(f"none of {len(logits):,} cells expresses a gene of the model's vocabulary")
    names = cells.names() if isinstance(cells, Cells) else np.arange(len(logits)).astype(str)
    decisions = None
    if calibration is not None:
        calibration.check(classes.source, classes.names, embedding.shape[1])
        distances = calibration.reference.distances(embedding)
        level = DEFAULT_COVERAGE if set_coverage is None else set_coverage
        decisions = calibration.decide(logits, distances, n_genes, level)
    return ClassifiedCells(
        names, classes.names, classes.cell_types, softmax(logits), embedding, report, calibration, decisions
    )


__all__ = ["ClassifiedCells", "Classes", "check_coverage", "classified"]
