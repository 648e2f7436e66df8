"""Evaluation: embeddings, baselines, metrics with their intervals, plots."""

import importlib
from typing import Any

from cellglot.outputs.caches import use_writable_caches


use_writable_caches()  # libraries read where their caches are when they are imported

_PUBLIC = {
    "CellAnnotation": "annotation",
    "annotate_cells": "annotation",
    "classification_scores": "classification",
    "embed_cells": "embedding",
    "embed_texts": "cell_text_model",
    "embedding_plot": "plots",
    "evaluate_embedding": "clustering",
    "evaluate_models": "benchmark",
    "evaluate_novel_cell_types": "novel_cell_types",
    "find_cells": "retrieval",
    "find_texts": "retrieval",
    "gene_distances": "masked_genes",
    "load_evaluated_model": "evaluated_model",
    "load_metric": "metrics",
    "log_counts": "baselines",
    "logistic_regression": "baselines",
    "majority": "baselines",
    "metric_names": "metrics",
    "metric_path": "metrics",
    "nearest": "retrieval",
    "novel_cell_type_scores": "novel_cell_types",
    "read_marker_table": "marker_table",
    "recall_at_k": "retrieval",
    "run_in_clean_process": "clean_process",
    "run_model": "embedding",
    "split_cell_types": "novel_cell_types",
    "umap_coordinates": "plots",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return __all__
