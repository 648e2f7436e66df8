"""cellglot: single-cell language models as first-class Hugging Face models.

Importing it makes `transformers`' Auto classes load our models and tokenizers without ``trust_remote_code``. It loads
neither transformers nor PyTorch itself (`cellglot.auto_classes`).
"""

import importlib
from typing import Any

from cellglot.auto_classes import register_auto_classes as register_auto_classes
from cellglot.auto_classes import watch


__version__ = "0.1.0"

_PUBLIC = {
    "annotate": "verbs.annotation",
    "embed": "verbs.embedding",
    "evaluate": "verbs.benchmark",
    "export": "verbs.export",
    "finetune": "verbs.training",
    "genes": "verbs.genes",
    "index": "verbs.mapping",
    "load_model": "verbs.models",
    "map": "verbs.mapping",
    "model_path": "verbs.collection",
    "models": "verbs.collection",
    "perturb": "verbs.perturbation",
    "pretrain": "verbs.training",
    "publish": "verbs.publishing",
    "query": "verbs.search",
    "read_cells": "tokenization",
    "similar": "verbs.mapping",
    "tokenize": "verbs.corpora",
    "Corpus": "tokenization",
    "LoadedModel": "modeling.loaded_model",
    "CellEmbeddingPipeline": "modeling",
    "CellOntology": "tokenization",
    "CellTextMatchingPipeline": "modeling",
    "CellTypeAnnotationPipeline": "modeling",
    "ExceiverConfig": "modeling",
    "ExceiverForMaskedExpression": "modeling",
    "ExceiverForSequenceClassification": "modeling",
    "ExceiverModel": "modeling",
    "ExceiverTokenizer": "tokenization",
    "FillGeneExpressionPipeline": "modeling",
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
}

__all__ = sorted([*_PUBLIC, "__version__", "register_auto_classes"])


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"cellglot.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return __all__


watch()
