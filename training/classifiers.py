"""The models that classify cells, each with the tokenizer and the collators of its fine-tuning."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from cellglot.modeling.modeling_exceiver import ExceiverForSequenceClassification
from cellglot.modeling.modeling_langcell import LangCellForSequenceClassification
from cellglot.modeling.modeling_sccello import ScCelloForSequenceClassification
from cellglot.tokenization.corpus import Corpus
from cellglot.tokenization.tokenization_exceiver import ExceiverTokenizer
from cellglot.tokenization.tokenization_gene_expression import GeneExpressionTokenizer
from cellglot.tokenization.tokenization_rank_value import RankValueTokenizer
from cellglot.training.collators import ExceiverCollator
from cellglot.training.config import TrainingConfig
from cellglot.training.rank_value_collator import rank_value_collator
from cellglot.training.recipe import mask_fraction


@dataclass
class Labels:
    """Classes of a corpus.

    Parameters
    ----------
    label2id
        Class name -> number.
    column
        Column of class names.
    """

    label2id: Mapping[str, int]
    column: str


@dataclass
class ClassifierKind:
    """How a model classifies cells.

    Parameters
    ----------
    model_class
        With a head for classes.
    tokenizer_class
        Its tokenizer.
    data_keys
        Keys of the configuration's section ``data``.
    collators
        (tokenizer, model's configuration, training's configuration, corpus, seed, labels) -> collators for training
        and for evaluation.
    """

    model_class: type[PreTrainedModel]
    tokenizer_class: type[GeneExpressionTokenizer]
    data_keys: Sequence[str]
    collators: Callable[..., tuple[Any, Any]]


def _exceiver_collators(
    tokenizer: Any, model_config: Any, config: TrainingConfig, corpus: Corpus, seed: int, labels: Labels
) -> tuple[Any, Any]:
    num_masked = int(mask_fraction(config, 0.0) * corpus.manifest["median_length"])
    collator = ExceiverCollator(tokenizer.pad_token_id, num_masked, seed, labels.label2id, labels.column)
    return collator, dataclasses.replace(collator, num_masked=0)


def _rank_value_collators(
    tokenizer: Any, model_config: Any, config: TrainingConfig, corpus: Corpus, seed: int, labels: Labels
) -> tuple[Any, Any]:
    collator = rank_value_collator(
        tokenizer,
        mask_fraction=0.0,
        seed=seed,
        max_length=getattr(model_config, "cell_config", model_config).max_position_embeddings,
        labels=labels.label2id,
        label_column=labels.column,
    )
    return collator, collator


CLASSIFIERS = {
    "exceiver": ClassifierKind(
        ExceiverForSequenceClassification, ExceiverTokenizer, ["mask_fraction"], _exceiver_collators
    ),
    "langcell": ClassifierKind(LangCellForSequenceClassification, RankValueTokenizer, [], _rank_value_collators),
    "sccello": ClassifierKind(ScCelloForSequenceClassification, RankValueTokenizer, [], _rank_value_collators),
}


def model_type(model: str | Path) -> str:
    """Give the type of a model that can be fine-tuned.

    Parameters
    ----------
    model
        Folder or repository.

    Raises
    ------
    ValueError
        If the model is none of ours.
    """
    found = PreTrainedConfig.get_config_dict(model)[0].get("model_type")
    if found not in CLASSIFIERS:
        raise ValueError(f"{model} is of the type {found!r}: the models to fine-tune are {', '.join(CLASSIFIERS)}")
    return found


def classifier_kind(model: str | Path) -> ClassifierKind:
    """Find out what classifies cells with a pretrained model.

    Parameters
    ----------
    model
        Folder or repository; one that is none of ours is refused, as by `model_type`.
    """
    return CLASSIFIERS[model_type(model)]


__all__ = ["CLASSIFIERS", "ClassifierKind", "Labels", "classifier_kind", "model_type"]
