"""Turn files of cells into token Parquet: the plan, the passes, the shards, the manifest."""

import importlib
from typing import Any


_PUBLIC = {"Corpus": "corpus", "CorpusError": "check", "tokenize_corpus": "tokenize"}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return __all__
