"""The work of each task for a model or a baseline, as functions that the evaluation runs if needed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix

from cellglot.evaluation.batch_removal import check_batches, remove_batches
from cellglot.evaluation.benchmark import annotation as annotation_task
from cellglot.evaluation.benchmark import baselines
from cellglot.evaluation.benchmark.drug_response import DrugJobs
from cellglot.evaluation.benchmark.embedding import score_embedding
from cellglot.evaluation.benchmark.gene_sets import BASELINES as GENE_BASELINES
from cellglot.evaluation.benchmark.gene_sets import GeneSetJobs
from cellglot.evaluation.benchmark.marker_genes import CELLS, MarkerSample, draw_marker_sample, score_marker_genes
from cellglot.evaluation.benchmark.models import EvaluatedModel
from cellglot.evaluation.benchmark.novel_types import score_novel_types
from cellglot.evaluation.benchmark.pathways import PathwayJobs
from cellglot.evaluation.benchmark.perturbation import PerturbationJobs
from cellglot.evaluation.benchmark.results import TaskResult
from cellglot.evaluation.benchmark.retrieval import CELLS as RETRIEVAL_CELLS
from cellglot.evaluation.benchmark.retrieval import RetrievalJobs
from cellglot.evaluation.benchmark.split import TEST_FRACTION, CellSplit, split_cells
from cellglot.evaluation.benchmark.tasks import DRUG_RESPONSE, GENE_SETS, PATHWAYS, PERTURBATION, RETRIEVAL
from cellglot.evaluation.drug_response.baselines import BASELINES as DRUG_BASELINES
from cellglot.evaluation.judges.cz import CzBenchmarks
from cellglot.evaluation.judges.names import CZ, JUDGES, SCIB
from cellglot.evaluation.judges.scib import scib_scores
from cellglot.evaluation.labelled_cells import LabelledCells
from cellglot.evaluation.perturbation.knock_outs import CELLS as PERTURBATION_CELLS
from cellglot.evaluation.scores.bootstrap import DRAWS
from cellglot.evaluation.scores.marker_table import MarkerGenes, markers_of
from cellglot.progress import progress_bars
from cellglot.tokenization.ontology.cell_ontology import CellOntology
from cellglot.tokenization.reading.cells import read_cells


PROBE, FINE_TUNED, ZERO_SHOT = "annotation: probe", "annotation: fine-tuned", "annotation: zero-shot by texts"
PCA, NEIGHBORS, MAJORITY, EXPRESSION = "log counts + PCA", "HVG + kNN", "most frequent class", "expression"
VARIABLE = "HVG"
HARMONY = " + Harmony"  # end of the name of embeddings of which batches were removed
BASELINES = (PCA, PCA + HARMONY, VARIABLE, NEIGHBORS, MAJORITY, EXPRESSION, *GENE_BASELINES, *DRUG_BASELINES)
MOST_VARIABLE_CELLS = 50_000  # whose variable genes are a dense embedding: 400 MB
OF_EMBEDDINGS = ("clustering", "integration", *JUDGES)  # tasks of HVG and of embeddings without batches
NO_LABELS = "no cell types: pass the column of obs with the cell types (labels)"

Rows = dict[str, TaskResult]  # row of the table -> result
Jobs = dict[str, Callable[[], Rows]]  # task -> its work


@dataclass
class Settings:
    """Settings of an evaluation.

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
        Number of cells whose genes are masked one at a time.
    retrieval_cells
        Number of labelled cells for which texts are searched, and the other way round.
    perturbation_cells
        Number of control cells, and most cells of each knock-out.
    """

    seed: int = 0
    draws: int = DRAWS
    test_fraction: float = TEST_FRACTION
    shots: int = annotation_task.SHOTS
    marker_cells: int = CELLS
    retrieval_cells: int = RETRIEVAL_CELLS
    perturbation_cells: int = PERTURBATION_CELLS
    batch_size: int = 64
    device: str | torch.device | None = None
    progress: bool = True

    def of_task(self, task: str, facts: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        """Return the settings that the result of a task depends on; `facts` has what was given for each task."""
        own: dict[str, dict[str, Any]] = {
            "annotation": {"test_fraction": self.test_fraction, "shots": self.shots},
            "markers": {"marker_cells": self.marker_cells},
            RETRIEVAL: {"retrieval_cells": self.retrieval_cells},
            PATHWAYS: {"test_fraction": self.test_fraction},
            CZ: {"requirements": CzBenchmarks.VERSION},
        }
        return {"seed": self.seed, "draws": self.draws} | own.get(task, {}) | facts.get(task, {})


@dataclass
class JobMaker:
    """Makes the jobs of models and baselines on some cells; shared values are computed once.

    Parameters
    ----------
    markers
        Cell type -> genes.
    marker_types
        Label -> cell type of `markers`.
    drugs
        Cell lines and drugs, None without such a folder.
    gene_sets
        Name -> genes, None without gene sets.
    perturbations
        Real knock-outs, None without such a column.
    """

    data: LabelledCells
    settings: Settings
    ontology: CellOntology
    markers: dict[str, list[str]] | None = None
    marker_types: dict[str, str] = field(default_factory=dict)
    drugs: DrugJobs | None = None
    gene_sets: dict[str, list[str]] | None = None
    perturbations: PerturbationJobs | None = None
    judge: CzBenchmarks = field(default_factory=CzBenchmarks)

    # ---------------------------------------------------------------- shared

    @property
    def _sampling(self) -> dict[str, Any]:
        return {"seed": self.settings.seed, "draws": self.settings.draws}

    @cached_property
    def split(self) -> CellSplit | None:
        """Training and test cells; None without labels."""
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
        """PCA of all cells."""
        return baselines.LogCountsPca.fit(self.log_counts, seed=self.settings.seed)

    @cached_property
    def genes(self) -> GeneSetJobs | None:
        """Scores embeddings of genes; None without gene sets."""
        return (
            None
            if self.gene_sets is None
            else GeneSetJobs(self.data, lambda: self.log_counts, self.gene_sets, **self._sampling)
        )

    @cached_property
    def pathways(self) -> PathwayJobs | None:
        """Scores the active pathways of cells; None without gene sets."""
        return None if self.genes is None else PathwayJobs(self.genes, self.settings.test_fraction)

    @cached_property
    def retrieval(self) -> RetrievalJobs:
        """Scores the search of texts for cells, and of cells for texts."""
        return RetrievalJobs(self.data, self.ontology, self.settings.retrieval_cells, **self._sampling)

    @cached_property
    def components(self) -> np.ndarray:
        """Principal components of all cells, shape (cells, components)."""
        return self.pca.embed(self.log_counts)

    @cached_property
    def variable(self) -> np.ndarray:
        """Log counts of highly variable genes, shape (cells, genes).

        Raises
        ------
        ValueError
            If there are too many cells for a dense matrix.
        """
        if len(self.data) > MOST_VARIABLE_CELLS:
            raise ValueError(
                f"{len(self.data):,} cells: {VARIABLE} is a dense embedding of {MOST_VARIABLE_CELLS:,} at most"
            )
        return self.log_counts[:, baselines.variable_genes(self.log_counts)].toarray()

    def without_batches(self, embedding: np.ndarray) -> np.ndarray:
        """Remove the batches of the cells from an embedding."""
        column = str(self.data.batch_column)
        assert self.data.batches is not None
        batches = check_batches(self.data.batches, column, self.data.source)
        return remove_batches(embedding, batches, column, self.settings.seed).embedding

    @cached_property
    def matched_markers(self) -> MarkerGenes | str:
        """Markers of the labels, or the reason why there are none."""
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
        """The cells whose genes are masked."""
        assert isinstance(self.matched_markers, MarkerGenes)
        return draw_marker_sample(self.data, self.matched_markers, self.settings.marker_cells, self.settings.seed)

    # ---------------------------------------------------------------- models

    def of_model(self, model: EvaluatedModel, embedding: Callable[[], np.ndarray]) -> Jobs:
        """Return the jobs of a model; `embedding` returns the embeddings of all cells, computed at the first call."""
        jobs = self._of_embedding(embedding) | {"markers": lambda: self._markers(self._model_scores(model))}
        jobs["annotation"] = lambda: self._learned(embedding()) | self._predicted(model)
        if self.genes is not None and self.pathways is not None:
            genes, pathways = self.genes, self.pathways
            jobs[PATHWAYS] = lambda: pathways.of_model(model, self.settings.progress)
            jobs[GENE_SETS] = lambda: genes.of_model(model, self.settings.progress)
        if model.processor is not None:
            jobs[RETRIEVAL] = lambda: self.retrieval.of_model(model, embedding)
        if self.perturbations is not None:
            perturbations = self.perturbations
            jobs[PERTURBATION] = lambda: perturbations.of_model(model, self.settings.progress)
        if self.drugs is not None:
            drugs = self.drugs
            jobs[DRUG_RESPONSE] = lambda: drugs.of_model(model, self.settings.progress)
        return jobs

    def of_embedding(self, embedding: Callable[[], np.ndarray]) -> Jobs:
        """Return the jobs of an embedding without a model: of a file, or without batches."""
        jobs = self._of_embedding(embedding)
        jobs["annotation"] = lambda: self._learned(embedding())
        return jobs

    def _predicted(self, model: EvaluatedModel) -> Rows:
        if self.split is None:
            return {}
        rows: Rows = {}
        test, cells = self.test_cells
        options = self._sampling | {"ontology": self.ontology, "progress": self.settings.progress}
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
                found.update(score_embedding(embedding(), self.data.labels, self.data.batches, **self._sampling))
            return {task: found[task]}

        def novel() -> Rows:
            return {"novel": score_novel_types(embedding(), self.data.labels, self.ontology, **self._sampling)}

        def judged() -> Rows:
            given = embedding(), self.data.labels, self.data.batches
            return {SCIB: scib_scores(*given, self.components)}

        def judged_elsewhere() -> Rows:
            return {CZ: self.judge.scores(embedding(), self.data.labels, self.data.batches)}

        return {
            "clustering": lambda: scored("clustering"),
            "integration": lambda: scored("integration"),
            "novel": novel,
            SCIB: judged,
            CZ: judged_elsewhere,
        }

    def _learned(self, embedding: np.ndarray) -> Rows:
        """Score a probe and few-shot probes."""
        few = f"annotation: {self.settings.shots} cells per class"
        if self.split is None:
            return {row: annotation_task.undefined_annotation(NO_LABELS) for row in (PROBE, few)}
        given, options = (embedding, self.data, self.split), self._sampling
        return {
            PROBE: annotation_task.probe(*given, **options),
            few: annotation_task.few_shot(*given, shots=self.settings.shots, **options),
        }

    def _markers(self, scores: Callable[[], tuple[list[np.ndarray], list[np.ndarray]]]) -> Rows:
        if not isinstance(self.matched_markers, MarkerGenes):
            return {"markers": TaskResult({}, dict.fromkeys(("auroc", "auroc_macro"), self.matched_markers))}
        return {"markers": score_marker_genes(*scores(), self.marker_sample, **self._sampling)}

    # ---------------------------------------------------------------- baselines

    def of_baseline(self, name: str) -> Jobs:
        """Return the jobs of a baseline, one of `BASELINES`, for the tasks that it supports."""
        if name in DRUG_BASELINES:
            drugs = self.drugs
            return {} if drugs is None else {DRUG_RESPONSE: lambda: drugs.of_baseline(name)}
        genes = self.genes
        if name in GENE_BASELINES:
            return {} if genes is None else {GENE_SETS: lambda: genes.of_baseline(name)}
        if name == PCA + HARMONY:
            return self.of_harmony(lambda: self.components)
        if name == VARIABLE:
            if len(self.data) > MOST_VARIABLE_CELLS:
                return {}
            return {
                task: job for task, job in self._of_embedding(lambda: self.variable).items() if task in OF_EMBEDDINGS
            }
        if name == PCA:
            jobs = self._of_embedding(lambda: self.components)
            jobs["annotation"] = lambda: self._learned(self._components_of_training())
            jobs["markers"] = lambda: self._markers(self._baseline_scores(self.pca.gene_distances))
            if genes is not None and self.pathways is not None:
                jobs[PATHWAYS] = self.pathways.of_components
                jobs[GENE_SETS] = lambda: genes.of_loadings(self.pca.loadings())
            if self.perturbations is not None:
                jobs[PERTURBATION] = self.perturbations.of_components
            return jobs
        if name == EXPRESSION:
            return {"markers": lambda: self._markers(self._baseline_scores(baselines.expression_scores))}
        return {"annotation": lambda: {PROBE: self._voted(name)}}

    def of_harmony(self, embedding: Callable[[], np.ndarray]) -> Jobs:
        """Return the jobs of an embedding of which batches are removed: zero-shot tasks and judges."""
        cache: list[np.ndarray] = []

        def removed() -> np.ndarray:
            if not cache:
                cache.append(self.without_batches(embedding()))
            return cache[0]

        return {task: job for task, job in self._of_embedding(removed).items() if task in OF_EMBEDDINGS}

    def _components_of_training(self) -> np.ndarray:
        """Return components that are fitted to the training cells only."""
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
        true = self.data.labels[test]
        return annotation_task.score_classes(true, scores, classes, details=details, **self._sampling)


__all__ = ["BASELINES", "HARMONY", "JobMaker", "Jobs", "Settings"]
