"""The task "retrieval": texts of cell types for cells, and cells for texts, by the cosine of their embeddings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from cellglot.evaluation.benchmark.models import EvaluatedModel
from cellglot.evaluation.benchmark.results import TaskResult
from cellglot.evaluation.benchmark.tasks import RETRIEVAL
from cellglot.evaluation.labelled_cells import LabelledCells
from cellglot.evaluation.scores.bootstrap import DRAWS, Score, bootstrap_scores, weighted_mean
from cellglot.evaluation.search.retrieval import Recall, measure_recall
from cellglot.evaluation.text_model import embed_texts
from cellglot.tokenization.ontology.candidates import Candidates, make_candidates
from cellglot.tokenization.ontology.cell_ontology import CellOntology


KS = (1, 5, 10)
TO_TEXT, TO_CELL = "cell_to_text_recall", "text_to_cell_recall"
CELLS = 1000  # our choice: the paper's code of this task is not released


@dataclass
class RetrievalJobs:
    """Scores models that read texts.

    Parameters
    ----------
    data
        Cells with labels.
    ontology
        Of the labels: gives their names and definitions.
    cells
        Labelled cells; more are drawn.
    seed, draws
        As for `cellglot.evaluation.benchmark.jobs.Settings`.
    """

    data: LabelledCells
    ontology: CellOntology
    cells: int = CELLS
    seed: int = 0
    draws: int = DRAWS

    @cached_property
    def candidates(self) -> Candidates:
        """The different types of all labelled cells, each with one text."""
        return make_candidates(self.data.classes(), self.ontology)

    @cached_property
    def drawn(self) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the drawn cells, ascending, and the text of each, shape (cells,)."""
        assert self.data.labels is not None
        numbers = np.flatnonzero(self.data.labelled)
        if len(numbers) > self.cells:
            numbers = np.sort(np.random.default_rng(self.seed).choice(numbers, self.cells, replace=False))
        row = self.candidates.class_of(self.data.classes())
        return numbers, np.array([row[str(label)] for label in self.data.labels[numbers]], dtype=np.int64)

    def of_model(self, model: EvaluatedModel, embedding: Callable[[], np.ndarray]) -> dict[str, TaskResult]:
        """Score a model; `embedding` returns the embeddings of all cells."""
        if not self.data.classes():
            return _undefined("no cell types: pass the column of obs with the cell types (labels)")
        numbers, ids = self.drawn
        cells = embedding()[numbers]
        known = np.isfinite(cells).all(axis=1)
        texts = [own[0] for own in self.candidates.texts]
        if not known.any():
            return _undefined("no drawn cell expresses a gene of the model")
        if len(texts) < 2:
            return _undefined("the labelled cells have 1 cell type: at least two are needed")
        features = embed_texts(model.network, model.processor, texts, device=model.device)
        recall = measure_recall(cells[known], features, ids[known], KS)
        return {RETRIEVAL: self._result(recall, texts, int((~known).sum()))}

    def _result(self, recall: Recall, texts: Sequence[str], lost: int) -> TaskResult:
        """Score recall at each k below the number of items to choose from."""
        scores: dict[str, Score] = {}
        for name, hits, items in ((TO_TEXT, recall.to_text, len(texts)), (TO_CELL, recall.to_cell, recall.cells)):
            for k, found in zip(KS, hits.T.astype(np.float64), strict=True):
                if k < items:
                    scores |= bootstrap_scores(_mean(f"{name}@{k}", found), len(found), self.draws, self.seed)
        details: dict[str, Any] = {
            "cells": recall.cells,
            "cells_without_embedding": lost,
            "texts": list(texts),
            "chance": recall.chance,
        }
        return TaskResult(scores, {}, details)


def _undefined(why: str) -> dict[str, TaskResult]:
    return {RETRIEVAL: TaskResult({}, {f"{name}@1": why for name in (TO_TEXT, TO_CELL)})}


def _mean(metric: str, found: np.ndarray) -> Callable[[np.ndarray], dict[str, float]]:
    return lambda weights: {metric: weighted_mean(found, weights)}


__all__ = ["RetrievalJobs"]
