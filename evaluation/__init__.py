"""Evaluation: embeddings, baselines, metrics with their intervals, plots."""

import importlib
from typing import Any

from cellglot.outputs.caches import use_writable_caches


use_writable_caches()  # libraries read where their caches are when they are imported

_PUBLIC = {
    "CellAnnotation": "annotation.by_texts",
    "annotate_cells": "annotation.by_texts",
    "classification_scores": "scores.classification",
    "embed_cells": "embedding",
    "embed_texts": "text_model",
    "embedding_plot": "plots",
    "evaluate_embedding": "scores.clustering",
    "evaluate_models": "benchmark.evaluate",
    "evaluate_novel_cell_types": "scores.novel_types",
    "find_cells": "search.retrieval",
    "find_texts": "search.retrieval",
    "load_evaluated_model": "benchmark.models",
    "load_metric": "metrics",
    "log_counts": "benchmark.baselines",
    "logistic_regression": "benchmark.baselines",
    "majority": "benchmark.baselines",
    "metric_names": "metrics",
    "metric_path": "metrics",
    "nearest": "search.retrieval",
    "novel_cell_type_scores": "scores.novel_types",
    "project_labels": "benchmark.label_projection",
    "read_drug_response": "drug_response.folder",
    "read_marker_table": "scores.marker_table",
    "recall_at_k": "search.retrieval",
    "remove_batches": "batch_removal",
    "run_model": "embedding",
    "scib_scores": "judges.scib",
    "score_drug_response": "drug_response.response_task",
    "split_cell_types": "scores.novel_types",
    "umap_coordinates": "plots",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return __all__
