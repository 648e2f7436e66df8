"""Evaluation: embeddings, baselines, metrics with their intervals, plots."""

import importlib
from typing import Any


_PUBLIC = {
    "classification_scores": "classification",
    "embed_cells": "embedding",
    "embedding_plot": "plots",
    "log_counts": "baselines",
    "logistic_regression": "baselines",
    "majority": "baselines",
    "run_in_clean_process": "clean_process",
    "run_model": "embedding",
    "umap_coordinates": "plots",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return __all__
