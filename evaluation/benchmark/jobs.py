"""What each task does with a model or a baseline: every piece of work of an evaluation, ready to be run or left."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix

from cellglot.evaluation.benchmark import annotation as annotation_task
from cellglot.evaluation.benchmark import baselines
from cellglot.evaluation.benchmark.embedding import score_embedding
from cellglot.evaluation.benchmark.marker_genes import CELLS, MarkerSample, draw_marker_sample, score_marker_genes
from cellglot.evaluation.benchmark.models import EvaluatedModel
from cellglot.evaluation.benchmark.novel_types import score_novel_types
from cellglot.evaluation.benchmark.results import TaskResult
from cellglot.evaluation.benchmark.split import TEST_FRACTION, CellSplit, split_cells
from cellglot.evaluation.labelled_cells import LabelledCells
from cellglot.evaluation.scores.bootstrap import DRAWS
from cellglot.evaluation.scores.marker_table import MarkerGenes, markers_of
from cellglot.progress import progress_bars
from cellglot.tokenization.ontology.cell_ontology import CellOntology
from cellglot.tokenization.reading.cells import read_cells


PROBE, FINE_TUNED, ZERO_SHOT = "annotation: probe", "annotation: fine-tuned", "annotation: zero-shot by texts"
PCA, NEIGHBORS, MAJORITY, EXPRESSION = "log counts + PCA", "HVG + kNN", "most frequent class", "expression"
BASELINES = (PCA, NEIGHBORS, MAJORITY, EXPRESSION)
NO_LABELS = "no cell types: name the column of obs that holds them"

Rows = dict[str, TaskResult]  # row of the table -> result
Jobs = dict[str, Callable[[], Rows]]  # task -> its work


@dataclass
class Settings:
    """How an evaluation is done.

    Parameters
    ----------
    seed
        Of splits, samples, clustering, bootstrap and baselines.
    draws
        Bootstrap samples of cells.
    test_fraction
        Share of labelled cells (donors) to hold out for annotation.
    shots
        Training cells of each class in few-shot annotation.
    marker_cells
        Cells whose genes are hidden one at a time.
    """

    seed: int = 0
    draws: int = DRAWS
    test_fraction: float = TEST_FRACTION
    shots: int = annotation_task.SHOTS
    marker_cells: int = CELLS
    batch_size: int = 64
    device: str | torch.device | None = None
    progress: bool = True

    def of_task(self, task: str, marker_facts: dict[str, Any]) -> dict[str, Any]:
        """Return those that the result of a task depends on."""
        own = {
            "annotation": {"test_fraction": self.test_fraction, "shots": self.shots},
            "markers": {"marker_cells": self.marker_cells} | marker_facts,
        }
        return {"seed": self.seed, "draws": self.draws} | own.get(task, {})


@dataclass
class JobMaker:
    """Makes the work of models and baselines on some cells; what they share is computed once.

    Parameters
    ----------
    ontology
        Where labels are looked up.
    markers
        Cell type -> genes, where there is a table.
    marker_types
        Label -> cell type of that table.
    """

    data: LabelledCells
    settings: Settings
    ontology: CellOntology
    markers: dict[str, list[str]] | None = None
    marker_types: dict[str, str] = field(default_factory=dict)

    # ---------------------------------------------------------------- shared

    @cached_property
    def split(self) -> CellSplit | None:
        """Training and test cells; None where no cell has a label."""
        if not self.data.labelled.any():
            return None
        return split_cells(self.data, self.settings.test_fraction, self.settings.seed)

    @cached_property
    def test_cells(self) -> tuple[np.ndarray, Any]:
        """Numbers of the test cells, and their counts."""
        assert self.split is not None
        numbers = np.flatnonzero(self.split.test)
        return numbers, self.data.subset(numbers)

    @cached_property
    def log_counts(self) -> csr_matrix:
        """Log counts of all cells."""
        return baselines.log_counts(self.data.cells)

    @cached_property
    def pca(self) -> baselines.LogCountsPca:
        """Components of all cells."""
        return baselines.LogCountsPca.fit(self.log_counts, seed=self.settings.seed)

    @cached_property
    def matched_markers(self) -> MarkerGenes | str:
        """Markers of the labels, or why there are none."""
        if self.markers is None:
            return "no table of marker genes was given"
        if not self.data.classes():
            return NO_LABELS
        try:
            return markers_of(self.data.classes(), self.markers, self.ontology, self.marker_types)
        except ValueError as error:
            if self.marker_types:
                raise
            return str(error)

    @cached_property
    def marker_sample(self) -> MarkerSample:
        """The cells whose genes are hidden."""
        assert isinstance(self.matched_markers, MarkerGenes)
        return draw_marker_sample(self.data, self.matched_markers, self.settings.marker_cells, self.settings.seed)

    # ---------------------------------------------------------------- models

    def of_model(self, model: EvaluatedModel, embedding: Callable[[], np.ndarray]) -> Jobs:
        """Return the work of a model on each task.

        Parameters
        ----------
        embedding
            Gives the embeddings of all cells; computed once, at the first call.
        """
        jobs = self._of_embedding(embedding) | {"markers": lambda: self._markers(self._model_scores(model))}
        jobs["annotation"] = lambda: self._learned(embedding()) | self._predicted(model)
        return jobs

    def _predicted(self, model: EvaluatedModel) -> Rows:
        if self.split is None:
            return {}
        rows: Rows = {}
        test, cells = self.test_cells
        options: dict[str, Any] = {
            "ontology": self.ontology,
            "seed": self.settings.seed,
            "draws": self.settings.draws,
            "progress": self.settings.progress,
        }
        if model.classes:
            rows[FINE_TUNED] = annotation_task.fine_tuned(model, self.data, test, cells, **options)
        if model.processor is not None:
            rows[ZERO_SHOT] = annotation_task.zero_shot(model, self.data, test, cells, **options)
        return rows

    def _model_scores(self, model: EvaluatedModel) -> Callable[[], tuple[list[np.ndarray], list[np.ndarray]]]:
        def scores() -> tuple[list[np.ndarray], list[np.ndarray]]:
            sample = self.marker_sample
            bar = progress_bars(shown=self.settings.progress)
            with bar:
                task = bar.add_task("masking genes", total=len(sample.labels))
                return model.gene_scores(
                    sample.cells, sample.markers, sample.labels, lambda: bar.advance(task), **self.data.options
                )

        return scores

    # ---------------------------------------------------------------- any embedding

    def _of_embedding(self, embedding: Callable[[], np.ndarray]) -> Jobs:
        found: dict[str, TaskResult] = {}

        def scored(task: str) -> Rows:
            if not found:
                options = {"seed": self.settings.seed, "draws": self.settings.draws}
                found.update(score_embedding(embedding(), self.data.labels, self.data.batches, **options))
            return {task: found[task]}

        return {
            "clustering": lambda: scored("clustering"),
            "integration": lambda: scored("integration"),
            "novel": lambda: {"novel": self._novel(embedding())},
        }

    def _novel(self, embedding: np.ndarray) -> TaskResult:
        options = {"seed": self.settings.seed, "draws": self.settings.draws}
        return score_novel_types(embedding, self.data.labels, self.ontology, **options)

    def _learned(self, embedding: np.ndarray) -> Rows:
        """Probe and few shots."""
        few = f"annotation: {self.settings.shots} cells per class"
        if self.split is None:
            return {row: annotation_task.undefined_annotation(NO_LABELS) for row in (PROBE, few)}
        options = {"seed": self.settings.seed, "draws": self.settings.draws}
        return {
            PROBE: annotation_task.probe(embedding, self.data, self.split, **options),
            few: annotation_task.few_shot(embedding, self.data, self.split, shots=self.settings.shots, **options),
        }

    def _markers(self, scores: Callable[[], tuple[list[np.ndarray], list[np.ndarray]]]) -> Rows:
        if not isinstance(self.matched_markers, MarkerGenes):
            return {"markers": TaskResult({}, dict.fromkeys(("auroc", "auroc_macro"), self.matched_markers))}
        found = score_marker_genes(*scores(), self.marker_sample, self.settings.draws, self.settings.seed)
        return {"markers": found}

    # ---------------------------------------------------------------- baselines

    def of_baseline(self, name: str) -> Jobs:
        """Return the work of a baseline, one of `BASELINES`, on the tasks that it can do."""
        if name == PCA:
            jobs = self._of_embedding(lambda: self.pca.embed(self.log_counts))
            jobs["annotation"] = lambda: self._learned(self._components_of_training())
            jobs["markers"] = lambda: self._markers(self._baseline_scores(self.pca.gene_distances))
            return jobs
        if name == EXPRESSION:
            return {"markers": lambda: self._markers(self._baseline_scores(baselines.expression_scores))}
        return {"annotation": lambda: {PROBE: self._voted(name)}}

    def _components_of_training(self) -> np.ndarray:
        """Components that the training cells alone decide."""
        if self.split is None:
            return np.zeros((len(self.data), 0))
        train = self.log_counts[self.split.train]
        return baselines.LogCountsPca.fit(train, seed=self.settings.seed).embed(self.log_counts)

    def _baseline_scores(self, score: Callable[[csr_matrix], np.ndarray]) -> Callable[[], tuple[list, list]]:
        def scores() -> tuple[list[np.ndarray], list[np.ndarray]]:
            sample = self.marker_sample
            return baselines.baseline_gene_scores(
                score, read_cells(sample.cells), sample.markers, sample.labels, self.data.options.get("gene_column")
            )

        return scores

    def _voted(self, name: str) -> TaskResult:
        """Score the nearest neighbours by variable genes, or the most frequent class."""
        if self.split is None or self.data.labels is None:
            return annotation_task.undefined_annotation(NO_LABELS)
        train, test = self.split.train, self.split.test
        labels = self.data.labels[train].astype(str)
        if name == NEIGHBORS:
            model = baselines.VariableGeneNeighbors.fit(self.log_counts[train], labels)
            classes = [str(c) for c in model.classifier.classes_]
            scores = model.probabilities(self.log_counts[test])
        else:
            names, counts = np.unique(labels, return_counts=True)
            classes, scores = [str(n) for n in names], np.tile(counts / counts.sum(), (int(test.sum()), 1))
        details = {"split": self.split.facts()}
        options = {"draws": self.settings.draws, "seed": self.settings.seed}
        return annotation_task.score_classes(self.data.labels[test], scores, classes, details=details, **options)


__all__ = ["BASELINES", "JobMaker", "Jobs", "Settings"]
