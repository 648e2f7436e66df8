"""cellglot: single-cell language models as first-class Hugging Face models.

Importing it makes `transformers`' Auto classes load our models and tokenizers without ``trust_remote_code``.
"""

import importlib
import multiprocessing
import sys
from pathlib import Path
from typing import Any


__version__ = "0.1.0"

_PUBLIC = {
    "ExceiverConfig": "modeling",
    "ExceiverForMaskedExpression": "modeling",
    "ExceiverForSequenceClassification": "modeling",
    "ExceiverModel": "modeling",
    "ExceiverTokenizer": "tokenization",
    "GeneReport": "tokenization",
    "GeneVocabulary": "tokenization",
    "RankValueTokenizer": "tokenization",
    "read_cells": "tokenization",
}

__all__ = sorted([*_PUBLIC, "__version__", "register_auto_classes"])


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"cellglot.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return __all__


def register_auto_classes() -> None:
    """Register configurations, models and tokenizers with the Auto classes."""
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForMaskedLM,
        AutoModelForPreTraining,
        AutoModelForSequenceClassification,
        AutoTokenizer,
    )
    from transformers.models.auto.tokenization_auto import REGISTERED_TOKENIZER_CLASSES

    from cellglot import modeling, tokenization

    config = modeling.ExceiverConfig
    AutoConfig.register("exceiver", config, exist_ok=True)
    AutoModel.register(config, modeling.ExceiverModel, exist_ok=True)
    AutoModelForMaskedLM.register(config, modeling.ExceiverForMaskedExpression, exist_ok=True)
    AutoModelForPreTraining.register(config, modeling.ExceiverForMaskedExpression, exist_ok=True)
    AutoModelForSequenceClassification.register(config, modeling.ExceiverForSequenceClassification, exist_ok=True)
    AutoTokenizer.register(config, slow_tokenizer_class=tokenization.ExceiverTokenizer, exist_ok=True)
    REGISTERED_TOKENIZER_CLASSES["RankValueTokenizer"] = tokenization.RankValueTokenizer


def _loads_models_by_itself() -> bool:
    """Whether this process is the command line or one of its helpers: these import PyTorch only where they need it."""
    command = Path(getattr(sys, "argv", [""])[0]).stem == "cellglot"
    return command or multiprocessing.parent_process() is not None


if not _loads_models_by_itself():
    register_auto_classes()
