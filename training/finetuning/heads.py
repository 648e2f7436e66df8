"""The models that can be fine-tuned, each with its classes for tasks, its heads, tokenizer and collators."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from cellglot.modeling.loading import read_config
from cellglot.modeling.modeling_exceiver import ExceiverForSequenceClassification
from cellglot.modeling.modeling_langcell import LangCellForSequenceClassification, LangCellForTokenClassification
from cellglot.modeling.modeling_sccello import ScCelloForSequenceClassification, ScCelloForTokenClassification
from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.tokenization.tokenization_exceiver import ExceiverTokenizer
from cellglot.tokenization.tokenization_gene_expression import GeneExpressionTokenizer
from cellglot.tokenization.tokenization_rank_value import RankValueTokenizer
from cellglot.training.config import TrainingConfig
from cellglot.training.data.collators import ExceiverCollator
from cellglot.training.data.dataset import median_length
from cellglot.training.data.rank_value_collator import rank_value_collator
from cellglot.training.data.thinning import THINNING_KEYS, thinning_of
from cellglot.training.pretraining.recipe import mask_fraction


TASKS = ("cell-type", "gene", "regression")


@dataclass
class ClassifierKind:
    """How a model is fine-tuned.

    Parameters
    ----------
    model_classes
        Task -> class with a head for it.
    heads
        Class -> its modules that are new, or belong to the head: all that a linear probe trains.
    encoder, head_reads
        Name of the module that makes cell embeddings, and the field of its output that heads for cells read.
    data_keys
        Keys of the configuration's section ``data``.
    collators
        (tokenizer, model's configuration, training's configuration, corpus, seed) -> collators for training and for
        evaluation, without labels.
    """

    model_classes: Mapping[str, type[PreTrainedModel]]
    heads: Mapping[type[PreTrainedModel], tuple[str, ...]]
    encoder: str
    head_reads: str
    tokenizer_class: type[GeneExpressionTokenizer]
    data_keys: Sequence[str]
    collators: Callable[..., tuple[Any, Any]]

    def model_class(self, task: str) -> type[PreTrainedModel]:
        """Return the class for a task.

        Parameters
        ----------
        task
            ``"cell-type"``, ``"gene"`` or ``"regression"``.

        Raises
        ------
        ValueError
            If there is no such task, or the model has no head for it.
        """
        if task not in TASKS:
            raise ValueError(f"task {task!r}: the tasks are {', '.join(TASKS)}")
        if task not in self.model_classes:
            name = next(iter(self.model_classes.values())).config_class.model_type
            raise ValueError(f"{name} has no head for the task {task!r}: {', '.join(self.model_classes)} it can do")
        return self.model_classes[task]


def _exceiver_collators(
    tokenizer: Any, model_config: Any, config: TrainingConfig, corpus: Corpus, seed: int
) -> tuple[Any, Any]:
    num_masked = int(mask_fraction(config, 0.0) * median_length(corpus))
    thinning = thinning_of(config.data, tokenizer, corpus, seed)
    collator = ExceiverCollator(tokenizer.pad_token_id, num_masked, seed, labels={}, thinning=thinning)
    return collator, dataclasses.replace(collator, num_masked=0, thinning=None)


def _rank_value_collators(
    tokenizer: Any, model_config: Any, config: TrainingConfig, corpus: Corpus, seed: int
) -> tuple[Any, Any]:
    collator = rank_value_collator(
        tokenizer,
        mask_fraction=0.0,
        seed=seed,
        max_length=getattr(model_config, "cell_config", model_config).max_position_embeddings,
        thinning=thinning_of(config.data, tokenizer, corpus, seed),
    )
    return collator, dataclasses.replace(collator, thinning=None)


CLASSIFIERS = {
    "exceiver": ClassifierKind(
        model_classes={
            "cell-type": ExceiverForSequenceClassification,
            "regression": ExceiverForSequenceClassification,
        },
        heads={ExceiverForSequenceClassification: ("decoder", "classifier")},
        encoder="exceiver",
        head_reads="last_hidden_state",
        tokenizer_class=ExceiverTokenizer,
        data_keys=["mask_fraction", *THINNING_KEYS],
        collators=_exceiver_collators,
    ),
    "langcell": ClassifierKind(
        model_classes={
            "cell-type": LangCellForSequenceClassification,
            "gene": LangCellForTokenClassification,
            "regression": LangCellForSequenceClassification,
        },
        heads={
            LangCellForSequenceClassification: ("classifier",),
            LangCellForTokenClassification: ("classifier",),
        },
        encoder="cell_model",
        head_reads="pooler_output",
        tokenizer_class=RankValueTokenizer,
        data_keys=THINNING_KEYS,
        collators=_rank_value_collators,
    ),
    "sccello": ClassifierKind(
        model_classes={
            "cell-type": ScCelloForSequenceClassification,
            "gene": ScCelloForTokenClassification,
            "regression": ScCelloForSequenceClassification,
        },
        heads={
            ScCelloForSequenceClassification: ("classifier",),
            ScCelloForTokenClassification: ("classifier",),
        },
        encoder="sccello",
        head_reads="pooler_output",
        tokenizer_class=RankValueTokenizer,
        data_keys=THINNING_KEYS,
        collators=_rank_value_collators,
    ),
}


def model_type(model: str | Path) -> str:
    """Return the type of a model that can be fine-tuned.

    Raises
    ------
    ValueError
        If the model is none of ours.
    """
    found = read_config(model).get("model_type")
    if found not in CLASSIFIERS:
        raise ValueError(f"{model} is of the type {found!r}: the models to fine-tune are {', '.join(CLASSIFIERS)}")
    return found


def classifier_kind(model: str | Path) -> ClassifierKind:
    """Find out how a pretrained model is fine-tuned.

    Parameters
    ----------
    model
        Folder or repository; one that is none of ours is refused, as by `model_type`.
    """
    return CLASSIFIERS[model_type(model)]


__all__ = ["CLASSIFIERS", "TASKS", "ClassifierKind", "classifier_kind", "model_type"]
