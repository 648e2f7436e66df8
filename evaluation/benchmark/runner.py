"""Runs the tasks of models, files of embeddings and baselines, and draws their maps; what is recorded is left out."""

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console

from cellglot.evaluation.benchmark import figures as evaluation_plots
from cellglot.evaluation.benchmark.embedding_file import EmbeddingFile
from cellglot.evaluation.benchmark.jobs import HARMONY, PCA, JobMaker, Jobs
from cellglot.evaluation.benchmark.models import EvaluatedModel
from cellglot.evaluation.benchmark.record import EvaluationRecord
from cellglot.evaluation.benchmark.tasks import RETRIEVAL
from cellglot.evaluation.drawing import drawing


@dataclass
class Runner:
    """Runs tasks and writes the record after each.

    Parameters
    ----------
    jobs
        The work of each task.
    wanted
        Tasks and judges to run.
    settings_of
        Function of a task; returns what its result depends on.
    record
        Results; with a folder, maps are drawn into it.
    console
        For a line about each task.
    genes
        Genes of the maps; None to draw none.
    without_batches
        Also run an embedding after Harmony removed its batches.
    asked
        Tasks that were named by the caller: a model that does not support one of them is said.
    """

    jobs: JobMaker
    wanted: Sequence[str]
    settings_of: Callable[[str], dict[str, Any]]
    record: EvaluationRecord
    console: Console
    genes: evaluation_plots.MapGenes | None = None
    without_batches: bool = False
    asked: Sequence[str] = ()

    def model(self, model: EvaluatedModel, name: str) -> None:
        """Run the tasks of a model, whose embedding is computed at most once."""
        facts = dict(model.facts)
        cache: list[np.ndarray] = []

        def embedding() -> np.ndarray:
            if not cache:
                start = time.perf_counter()
                self.console.print(f"{name}: embedding {len(self.jobs.data):,} cells")
                cache.append(model.embed(self.jobs.data, self.jobs.settings.progress))
                facts["embedding_size"] = cache[0].shape[1]
                facts["genes"] = model.genes.to_dict() if model.genes is not None else None
                facts["embedding_seconds"] = round(time.perf_counter() - start, 2)
                self.record.add_model(name, facts)
            return cache[0]

        jobs = self.jobs.of_model(model, embedding)
        if RETRIEVAL in self.asked and RETRIEVAL not in jobs:
            self.console.print(f"{name}: no retrieval, because the model does not read texts")
        self._run(name, jobs, facts)
        self._draw(name, embedding)
        if self.without_batches:
            self._harmony(name, embedding, facts)

    def file(self, file: EmbeddingFile, name: str) -> None:
        """Run the tasks of the embeddings of a file."""
        if file.facts["file"]["order"].startswith("not"):
            source = file.facts["source"]
            self.console.print(f"{name}: {source} has no names of cells, its rows are taken in the order of the cells")
        self._run(name, self.jobs.of_embedding(lambda: file.embedding), file.facts)
        self._draw(name, lambda: file.embedding)
        if self.without_batches:
            self._harmony(name, lambda: file.embedding, file.facts)

    def baseline(self, name: str) -> None:
        """Run the tasks of a baseline; the one of a Harmony only where batches are removed."""
        if name.endswith(HARMONY) and not self.without_batches:
            return
        if self._run(name, self.jobs.of_baseline(name), {"baseline": True}) and name == PCA:
            self._draw(name, lambda: self.jobs.components)

    def _harmony(self, name: str, embedding: Callable[[], np.ndarray], facts: dict[str, Any]) -> None:
        """Run the zero-shot tasks and judges of an embedding of which batches are removed."""
        kept = ("source", "weights_sha256", "model_type", "embedding_size")
        known = {key: facts[key] for key in kept if key in facts} | {"batches_removed_of": self.jobs.data.batch_column}
        if self._run(name + HARMONY, self.jobs.of_harmony(embedding), known):
            self._draw(name + HARMONY, lambda: self.jobs.without_batches(embedding()))

    def _run(self, name: str, jobs: Jobs, facts: dict[str, Any]) -> bool:
        """Run the wanted tasks that are not in the record; return whether any is wanted."""
        work = {task: job for task, job in jobs.items() if task in self.wanted}
        weights = facts.get("weights_sha256")
        if work:
            self.record.add_model(name, facts)
        for task, job in work.items():
            if self.record.has(name, task, self.settings_of(task), weights):
                self.console.print(f"{name}: {task} is already evaluated")
                continue
            start = time.perf_counter()
            rows = job()
            seconds = time.perf_counter() - start
            self.record.add(name, task, rows, self.settings_of(task), weights, seconds)
            self.console.print(f"{name}: {task} ({seconds:.1f} s)")
        return bool(work)

    def _draw(self, name: str, embedding: Callable[[], np.ndarray]) -> None:
        """Draw the UMAPs of an embedding that do not exist, if there is a folder."""
        folder, data = self.record.folder, self.jobs.data
        if folder is None or self.genes is None:
            return
        colours = {by: v for by, v in (("cell type", data.labels), ("batch", data.batches)) if v is not None}
        colours = colours or {"cell": np.array(["cells"] * len(data), dtype=object)}
        files = [evaluation_plots.map_file(name), *(evaluation_plots.umap_file(name, by) for by in colours)]
        if all((folder / file).exists() for file in files):
            return
        values = embedding()
        with drawing(f"the UMAP of {name}", shlex.split(self.record.content["command"])):
            evaluation_plots.draw_umap(values, colours, name, folder, self.jobs.settings.seed, self.genes)


__all__ = ["Runner"]
