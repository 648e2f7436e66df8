"""The networks: configurations, models, converters of released checkpoints."""

import importlib
from typing import Any


_PUBLIC = {
    "ExceiverConfig": "configuration_exceiver",
    "ExceiverForMaskedExpression": "modeling_exceiver",
    "ExceiverForMaskedExpressionOutput": "modeling_exceiver",
    "ExceiverForSequenceClassification": "modeling_exceiver",
    "ExceiverForSequenceClassificationOutput": "modeling_exceiver",
    "ExceiverModel": "modeling_exceiver",
    "ExceiverModelOutput": "modeling_exceiver",
    "ExceiverPreTrainedModel": "modeling_exceiver",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return __all__
