"""The task "drug-response" for models and baselines of an evaluation."""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from anndata import AnnData

from cellglot.evaluation.benchmark.models import EvaluatedModel
from cellglot.evaluation.benchmark.results import TaskResult
from cellglot.evaluation.benchmark.tasks import DRUG_RESPONSE
from cellglot.evaluation.drug_response.folder import read_drug_response
from cellglot.evaluation.drug_response.line_expression import kind_of_values, line_cells
from cellglot.evaluation.drug_response.response_task import ResponseTask, Scored
from cellglot.evaluation.drug_response.scores import ALL, IN_DRUG, IN_LINE
from cellglot.evaluation.drug_response.splits import SPLITS


@dataclass
class DrugJobs:
    """Scores models and baselines on a folder of drug response.

    Parameters
    ----------
    task
        The folder and its splits.
    values
        What the expression is, as for `cellglot.evaluation.drug_response.line_expression.line_cells`.
    """

    task: ResponseTask
    values: str = "auto"

    @classmethod
    def open(cls, folder: str | os.PathLike, values: str = "auto", seed: int = 0, draws: int = 1000) -> "DrugJobs":
        """Read a folder.

        Raises
        ------
        ValueError
            If the folder cannot be used, or its expression cannot be read as these values.
        """
        jobs = cls(ResponseTask(read_drug_response(folder), seed, draws), values)
        jobs.cells()
        return jobs

    def cells(self) -> AnnData:
        """Return the cell lines as cells."""
        return line_cells(self.task.data, values=self.values)

    def settings(self) -> dict[str, Any]:
        """Return what results depend on."""
        return {"drug_response_sha256": self.task.data.facts["sha256"], "drug_values": self.values}

    def of_model(self, model: EvaluatedModel, progress: bool = True) -> dict[str, TaskResult]:
        """Score the embeddings of the cell lines by a model."""
        cells = line_cells(self.task.data, model.tokenizer, self.values)
        embedding = model.embed_cells(cells, progress)
        lost = int((~np.isfinite(embedding).all(axis=1)).sum())
        if lost:
            why = f"{lost:,} cell lines express no gene of the model"
            return {_row(name): TaskResult({}, dict.fromkeys((ALL, IN_DRUG, IN_LINE), why)) for name in SPLITS}
        return self._results(self.task.of_features(embedding.reshape(len(embedding), -1)))

    def of_baseline(self, name: str) -> dict[str, TaskResult]:
        """Score a baseline."""
        return self._results(self.task.of_baseline(name))

    def _results(self, found: dict[str, Scored]) -> dict[str, TaskResult]:
        kind = kind_of_values(self.task.data.expression) if self.values == "auto" else self.values
        facts = {"data": self.task.data.facts | {"values": kind}}
        return {
            _row(name): TaskResult(scores, undefined, details | facts)
            for name, (scores, undefined, details) in found.items()
        }


def _row(split: str) -> str:
    return f"{DRUG_RESPONSE}: {split}"


__all__ = ["DrugJobs"]
