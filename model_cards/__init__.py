"""Publishing to the Hub: cards of models, adapters, data sets and metrics, checks, upload."""

import importlib
from typing import Any


_PUBLIC = {
    "CardDetails": "card.details",
    "Published": "publishing",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return __all__
