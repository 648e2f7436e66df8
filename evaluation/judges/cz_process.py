"""Run tasks of cz-benchmarks on one embedding: ``python cz_process.py FOLDER``, in the environment of cz-benchmarks.

It imports nothing of cellglot. FOLDER has ``embedding.npy`` (cells, size) and ``job.json`` with ``tasks``, ``labels``,
``batches`` (or null) and ``seed``. It writes ``results.json``: ``version`` and for each task the metrics (``metric``,
``value``, ``params``), or the error.
"""

import json
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd


def main(folder: Path) -> None:
    """Run the tasks of a folder."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    embedding = np.load(folder / "embedding.npy", allow_pickle=False)
    labels = np.array(job["labels"], dtype=object)
    batches = None if job["batches"] is None else np.array(job["batches"], dtype=object)
    results: dict[str, dict[str, Any]] = {}
    for name in job["tasks"]:
        start = time.perf_counter()
        try:
            found = run_task(name, embedding, labels, batches, job["seed"])
            results[name] = {"metrics": [as_plain(metric) for metric in found]}
        except Exception as error:  # noqa: BLE001 - the caller says it beside the other tasks
            results[name] = {"error": f"{type(error).__name__}: {error}"}
        results[name]["seconds"] = round(time.perf_counter() - start, 2)
    content = {"version": metadata.version("cz-benchmarks"), "tasks": results}
    (folder / "results.json").write_text(json.dumps(content), encoding="utf-8")


def run_task(name: str, embedding: np.ndarray, labels: np.ndarray, batches: np.ndarray | None, seed: int) -> Any:
    """Return the metrics of one task; the arguments that a task does not name have the defaults of cz-benchmarks."""
    from czbenchmarks import tasks

    if name == "clustering":
        obs = pd.DataFrame({"label": labels}, index=[str(i) for i in range(len(labels))])
        given = tasks.ClusteringTaskInput(obs=obs, input_labels=labels)
        return tasks.ClusteringTask(random_seed=seed).run(embedding, given)
    if name == "embedding":
        return tasks.EmbeddingTask(random_seed=seed).run(embedding, tasks.EmbeddingTaskInput(input_labels=labels))
    if name == "label_prediction":
        given = tasks.MetadataLabelPredictionTaskInput(labels=pd.Series(labels))
        return tasks.MetadataLabelPredictionTask(random_seed=seed).run(embedding, given)
    if name == "integration":
        given = tasks.BatchIntegrationTaskInput(labels=labels, batch_labels=batches)
        return tasks.BatchIntegrationTask(random_seed=seed).run(embedding, given)
    raise ValueError(f"there is no task {name!r}")


def as_plain(metric: Any) -> dict[str, Any]:
    """Return a metric as plain types."""
    params = {name: str(value) for name, value in (metric.params or {}).items()}
    return {"metric": metric.metric_type.value, "value": float(metric.value), "params": params}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
