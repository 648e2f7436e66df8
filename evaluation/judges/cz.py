"""Scores of an embedding by cz-benchmarks (Chan Zuckerberg Initiative), run as a process in its own environment.

cz-benchmarks pins older versions of what cellglot needs, so it is not imported here: the embedding goes to the process
as ``.npy``, labels and batches as JSON, scores come back as JSON. Nothing is pickled.
"""

import json
import math
import os
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from cellglot.evaluation.judges import cz_process
from cellglot.evaluation.judges.environment import environment_python
from cellglot.evaluation.judges.judged_cells import NO_BATCHES, JudgedCells
from cellglot.evaluation.judges.names import CZ, CZ_SCORES
from cellglot.evaluation.scores.bootstrap import Score
from cellglot.evaluation.scores.task_result import TaskResult


REQUIREMENTS = Path(__file__).with_name("cz_requirements.txt")
PYTHON = "CELLGLOT_CZ_BENCHMARKS_PYTHON"  # an interpreter that has cz-benchmarks, where none can be installed
TASKS = ("clustering", "embedding", "label_prediction", "integration")
SEED = 42  # of cz-benchmarks
NOT_PASSED_ON = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


class JudgeFailedError(ValueError):
    """The process of cz-benchmarks ended with an error; the message has the end of what it said."""


@dataclass
class CzBenchmarks:
    """Runs four tasks of cz-benchmarks on embeddings: clustering, embedding, label prediction, batch integration.

    Parameters
    ----------
    say
        Called with a line before its environment is made.
    """

    VERSION: ClassVar[str] = "0.15.1"

    say: Callable[[str], None] = lambda text: None

    def python(self) -> Path:
        """Return the interpreter of cz-benchmarks; its environment is made if it does not exist.

        Raises
        ------
        ValueError
            If it cannot be made, or the interpreter of ``CELLGLOT_CZ_BENCHMARKS_PYTHON`` does not exist.
        """
        given = os.environ.get(PYTHON)
        if given:
            if not Path(given).exists():
                raise ValueError(f"{PYTHON}={given}: there is no such file; name a Python that has {CZ}")
            return Path(given)
        return environment_python(f"{CZ}-{self.VERSION}", REQUIREMENTS, self.say)

    def scores(self, embedding: np.ndarray, labels: np.ndarray | None, batches: np.ndarray | None) -> TaskResult:
        """Score an embedding.

        Parameters
        ----------
        embedding
            Shape (cells, size); cells with NaN are left out and counted.
        labels, batches
            Cell type and batch of each cell, None if missing; cells without one are left out and counted.

        Returns
        -------
        TaskResult
            Scores by the names of `cellglot.evaluation.judges.names.CZ_SCORES`, of label prediction the mean over its
            three classifiers; all that it returned is in the details.

        Raises
        ------
        JudgeFailedError
            If the process fails.
        """
        cells = JudgedCells.of(embedding, labels, batches)
        why = cells.why_no_labels()
        if why is not None:
            return TaskResult(
                {}, dict.fromkeys(CZ_SCORES, why), {"package": f"{CZ} {self.VERSION}", "cells": len(cells)}
            )
        no_batches = cells.why_no_batches()
        tasks = [task for task in TASKS if task != "integration" or no_batches is None]
        found = self._run(cells, tasks)
        metrics: dict[str, Score] = {}
        undefined: dict[str, str] = {}
        for name, (task, metric, _) in CZ_SCORES.items():
            if task not in tasks:
                undefined[name] = no_batches or NO_BATCHES
                continue
            value = _value(found["tasks"][task], metric)
            if isinstance(value, str):
                undefined[name] = value
            else:
                metrics[name] = Score(value)
        details = {"package": f"{CZ} {found['version']}", "cells": len(cells)} | cells.left_out
        return TaskResult(metrics, undefined, details | {"tasks": found["tasks"]})

    def _run(self, cells: JudgedCells, tasks: list[str]) -> dict[str, Any]:
        assert cells.labels is not None
        python = self.python()
        with tempfile.TemporaryDirectory(prefix="cellglot-judge-") as folder:
            np.save(Path(folder, "embedding.npy"), cells.embedding, allow_pickle=False)
            job = {
                "tasks": tasks,
                "labels": cells.labels.tolist(),
                "batches": None if cells.batches is None else cells.batches.tolist(),
                "seed": SEED,
            }
            Path(folder, "job.json").write_text(json.dumps(job), encoding="utf-8")
            environment = {name: value for name, value in os.environ.items() if name not in NOT_PASSED_ON}
            done = subprocess.run(
                [str(python), "-I", "-B", str(cz_process.__file__), folder],
                capture_output=True,
                text=True,
                cwd=folder,
                env=environment,
                check=False,
            )
            results = Path(folder, "results.json")
            if done.returncode or not results.exists():
                last = "\n".join(done.stderr.strip().splitlines()[-8:])
                raise JudgeFailedError(f"{CZ} failed in {python} (exit status {done.returncode}). It said:\n{last}")
            content: dict[str, Any] = json.loads(results.read_text(encoding="utf-8"))
        return content


def _value(task: dict[str, Any], metric: str) -> float | str:
    """Return a metric of a task, of label prediction the mean over classifiers; or why it is undefined."""
    if "error" in task:
        return f"{CZ} failed: {' '.join(task['error'].split())[:200]}"
    found = [m for m in task["metrics"] if m["metric"] == metric]
    means = [m for m in found if m["params"].get("classifier", "MEAN").startswith("MEAN")]
    if not means:
        return f"{CZ} returned no {metric}"
    value = float(means[0]["value"])
    return value if math.isfinite(value) else f"{CZ} returned {value}"


__all__ = ["CzBenchmarks", "JudgeFailedError"]
