"""Training: data, collators, the trainer, pretraining and fine-tuning."""

import importlib
from typing import Any

from cellglot.outputs.caches import use_writable_caches


use_writable_caches()  # before libraries are imported, which then read the paths of their caches

_PUBLIC = {
    "CellDataset": "data.dataset",
    "CellTrainer": "trainer",
    "EpochSampler": "data.dataset",
    "ExceiverCollator": "data.collators",
    "TrainingConfig": "config",
    "initialize_gene_embeddings": "data.gene_embeddings",
    "load_config": "config",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return __all__
