"""Exceiver in training: masked expression, and classifiers with a decoder as head."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from huggingface_hub.dataclasses import strict

from cellglot.modeling.configuration_exceiver import ExceiverConfig
from cellglot.modeling.modeling_exceiver import ExceiverForMaskedExpression, ExceiverForSequenceClassification
from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.tokenization.tokenization_exceiver import ExceiverTokenizer
from cellglot.training.data.collators import ExceiverCollator
from cellglot.training.data.dataset import median_length
from cellglot.training.data.gene_embeddings import initialize_gene_embeddings
from cellglot.training.data.streaming import StreamedCells
from cellglot.training.data.thinning import ThinningSettings, thinning_of
from cellglot.training.families.family import AdapterPreset, TrainedFamily
from cellglot.training.families.recipe import Recipe, check_share, check_tokenizer, new_configuration
from cellglot.training.metrics import MaskedExpressionMetrics
from cellglot.training.trainer import count_parameters


@strict
@dataclass(kw_only=True)
class FinetuningData(ThinningSettings):
    """Keys of the section ``data`` in fine-tuning.

    Parameters
    ----------
    mask_fraction
        Number of genes to mask in each cell, as a share of the genes of the median cell.
    initialize_gene_embeddings
        Start the gene embeddings of a new model from the co-expression in the corpus.
    """

    mask_fraction: float | int = 0.0
    initialize_gene_embeddings: bool = False

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        super().__post_init__()
        check_share("mask_fraction", self.mask_fraction, "a cell's genes")


@strict
@dataclass(kw_only=True)
class PretrainingData(FinetuningData):
    """Keys of the section ``data`` in pretraining."""

    mask_fraction: float | int = 0.15


def exceiver_recipe(model: Mapping[str, Any], data: PretrainingData, corpus: Corpus, seed: int) -> Recipe:
    """Prepare the pretraining of Exceiver.

    As in the released code, all cells have the same number of masked genes, a share of the genes of the median cell,
    and cells with fewer than twice as many genes are left out.
    """
    tokenizer = tokenizer_of(corpus, "Exceiver")
    made = ExceiverForMaskedExpression(new_configuration(ExceiverConfig, model, tokenizer))
    set_up(made, tokenizer)
    if data.initialize_gene_embeddings:
        initialize_gene_embeddings(made.get_input_embeddings(), corpus, seed)
    num_masked = int(data.mask_fraction * median_length(corpus))
    if num_masked < 1:
        raise ValueError(
            f"data.mask_fraction {data.mask_fraction} of a median of {median_length(corpus):g} expressed genes masks "
            "no gene: set a larger share"
        )
    train = StreamedCells(corpus, "train", least_tokens=2 * num_masked)
    held_out = None
    if corpus.n_cells("validation"):
        held_out = StreamedCells(corpus, "validation", least_tokens=2 * num_masked)
    return Recipe(
        model=made,
        processing_class=tokenizer,
        train=train,
        held_out=held_out,
        collator=ExceiverCollator(
            tokenizer.pad_token_id, num_masked, seed=seed, thinning=thinning_of(data, tokenizer, corpus, seed)
        ),
        metrics=MaskedExpressionMetrics(),
        summary=f"{count_parameters(made):,} parameters; {len(train):,} cells for training and "
        f"{0 if held_out is None else len(held_out):,} held out; {num_masked:,} genes masked in each; left out with "
        f"fewer than {2 * num_masked:,} expressed genes: {train.left_out:,} and "
        f"{0 if held_out is None else held_out.left_out:,}",
        facts={"num_masked": num_masked, "cells_left_out": train.left_out, "training_cells": len(train)},
    )


def tokenizer_of(corpus: Corpus, model: str) -> Any:
    """Return the tokenizer of a corpus, which has to be Exceiver's."""
    tokenizer = corpus.tokenizer()
    check_tokenizer(tokenizer, ExceiverTokenizer, corpus, model, "exceiver")
    return tokenizer


def set_up(model: Any, tokenizer: Any) -> None:
    """Set the values of genes without counts in a new model."""
    model.exceiver.set_background_values(tokenizer.background_values)


def collators(tokenizer: Any, model_config: Any, data: FinetuningData, corpus: Corpus, seed: int) -> tuple[Any, Any]:
    """Return the collators of fine-tuning, for training and for evaluation."""
    num_masked = int(data.mask_fraction * median_length(corpus))
    thinning = thinning_of(data, tokenizer, corpus, seed)
    collator = ExceiverCollator(tokenizer.pad_token_id, num_masked, seed, labels={}, thinning=thinning)
    return collator, dataclasses.replace(collator, num_masked=0, thinning=None)


EXCEIVER = TrainedFamily(
    name="exceiver",
    pretraining_data=PretrainingData,
    finetuning_data=FinetuningData,
    recipe=exceiver_recipe,
    model_classes={
        "cell-type": ExceiverForSequenceClassification,
        "regression": ExceiverForSequenceClassification,
        "multi-label": ExceiverForSequenceClassification,
    },
    heads=("decoder", "classifier"),
    head_reads="last_hidden_state",
    collators=collators,
    # The whole head is trained, with the decoder. LoRA leaves feed-forward blocks out: the published latents have size
    # 4, so low-rank matrices would have more weights than the layers, and whole blocks are computed faster than layer
    # by layer (wide_feed_forward).
    adapters=AdapterPreset(
        low_rank=r"exceiver\.(encoder\.cross_attn|layers\.\d+\.self_attn)\.[qkvo]_proj",
        scaled=r"exceiver\.(encoder\.cross_attn\.[kv]_proj|layers\.\d+\.(self_attn\.[kv]_proj|fc2))",
        inner=r"exceiver\.layers\.\d+\.fc2",
    ),
    tokenizer_of=tokenizer_of,
    set_up=set_up,
)

__all__ = ["EXCEIVER", "exceiver_recipe"]
