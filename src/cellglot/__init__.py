"""cellglot: single-cell language models as first-class Hugging Face models.

Importing it makes `transformers`' Auto classes load our models and tokenizers without ``trust_remote_code``.
"""

import importlib
import multiprocessing
import sys
from functools import partial
from pathlib import Path
from typing import Any


__version__ = "0.1.0"

_COMPILED_ENCODING = "cellglot.tokenization.compiled_encoding"  # Numba, loaded by the first large work

_PUBLIC = {
    "CellEmbeddingPipeline": "modeling",
    "CellOntology": "tokenization",
    "CellTypeAnnotationPipeline": "modeling",
    "ExceiverConfig": "modeling",
    "ExceiverForMaskedExpression": "modeling",
    "ExceiverForSequenceClassification": "modeling",
    "ExceiverModel": "modeling",
    "ExceiverTokenizer": "tokenization",
    "GeneReport": "tokenization",
    "GeneVocabulary": "tokenization",
    "LangCellCellModel": "modeling",
    "LangCellConfig": "modeling",
    "LangCellForPreTraining": "modeling",
    "LangCellForSequenceClassification": "modeling",
    "LangCellForTokenClassification": "modeling",
    "LangCellModel": "modeling",
    "LangCellProcessor": "tokenization",
    "LangCellTextModel": "modeling",
    "RankValueTokenizer": "tokenization",
    "ScCelloConfig": "modeling",
    "ScCelloForMaskedLM": "modeling",
    "ScCelloForPreTraining": "modeling",
    "ScCelloForSequenceClassification": "modeling",
    "ScCelloForTokenClassification": "modeling",
    "ScCelloModel": "modeling",
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
    """Register configurations, models and tokenizers with the Auto classes, and pipelines with their tasks.

    Tokenizers also learn where the package's compiled loops are.
    """
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForMaskedLM,
        AutoModelForPreTraining,
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
        AutoProcessor,
        AutoTokenizer,
    )
    from transformers.models.auto.tokenization_auto import REGISTERED_TOKENIZER_CLASSES
    from transformers.pipelines import PIPELINE_REGISTRY

    from cellglot import modeling, tokenization
    from cellglot.tokenization.tokenization_gene_expression import GeneExpressionTokenizer

    config = modeling.ExceiverConfig
    AutoConfig.register("exceiver", config, exist_ok=True)
    AutoModel.register(config, modeling.ExceiverModel, exist_ok=True)
    AutoModelForMaskedLM.register(config, modeling.ExceiverForMaskedExpression, exist_ok=True)
    AutoModelForPreTraining.register(config, modeling.ExceiverForMaskedExpression, exist_ok=True)
    AutoModelForSequenceClassification.register(config, modeling.ExceiverForSequenceClassification, exist_ok=True)
    AutoTokenizer.register(config, slow_tokenizer_class=tokenization.ExceiverTokenizer, exist_ok=True)

    config = modeling.ScCelloConfig
    AutoConfig.register("sccello", config, exist_ok=True)
    AutoModel.register(config, modeling.ScCelloModel, exist_ok=True)
    AutoModelForMaskedLM.register(config, modeling.ScCelloForMaskedLM, exist_ok=True)
    AutoModelForPreTraining.register(config, modeling.ScCelloForPreTraining, exist_ok=True)
    AutoModelForSequenceClassification.register(config, modeling.ScCelloForSequenceClassification, exist_ok=True)
    AutoModelForTokenClassification.register(config, modeling.ScCelloForTokenClassification, exist_ok=True)
    AutoTokenizer.register(config, slow_tokenizer_class=tokenization.RankValueTokenizer, exist_ok=True)

    config = modeling.LangCellConfig
    AutoConfig.register("langcell", config, exist_ok=True)
    AutoConfig.register("langcell_cell", modeling.LangCellCellConfig, exist_ok=True)
    AutoConfig.register("langcell_text", modeling.LangCellTextConfig, exist_ok=True)
    AutoModel.register(config, modeling.LangCellModel, exist_ok=True)
    AutoModel.register(modeling.LangCellCellConfig, modeling.LangCellCellModel, exist_ok=True)
    AutoModel.register(modeling.LangCellTextConfig, modeling.LangCellTextModel, exist_ok=True)
    AutoModelForPreTraining.register(config, modeling.LangCellForPreTraining, exist_ok=True)
    AutoModelForSequenceClassification.register(config, modeling.LangCellForSequenceClassification, exist_ok=True)
    AutoModelForTokenClassification.register(config, modeling.LangCellForTokenClassification, exist_ok=True)
    AutoProcessor.register(config, tokenization.LangCellProcessor, exist_ok=True)
    AutoTokenizer.register(config, slow_tokenizer_class=tokenization.RankValueTokenizer, exist_ok=True)

    REGISTERED_TOKENIZER_CLASSES["RankValueTokenizer"] = tokenization.RankValueTokenizer
    GeneExpressionTokenizer.load_compiled = staticmethod(partial(importlib.import_module, _COMPILED_ENCODING))

    for task, pipeline_class in (
        ("cell-embedding", modeling.CellEmbeddingPipeline),
        ("cell-type-annotation", modeling.CellTypeAnnotationPipeline),
    ):
        if task not in PIPELINE_REGISTRY.supported_tasks:
            PIPELINE_REGISTRY.register_pipeline(task, pipeline_class, pt_model=modeling.AutoModelForCells)


def _loads_models_by_itself() -> bool:
    """Whether this process is the command line or one of its helpers: these import PyTorch only where they need it."""
    command = Path(getattr(sys, "argv", [""])[0]).stem == "cellglot"
    return command or multiprocessing.parent_process() is not None


if not _loads_models_by_itself():
    register_auto_classes()
