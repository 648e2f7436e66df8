"""Pretraining Exceiver: masked expression."""

from typing import Any

from transformers import TrainingArguments

from cellglot.modeling.configuration_exceiver import ExceiverConfig
from cellglot.modeling.modeling_exceiver import ExceiverForMaskedExpression
from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.tokenization.tokenization_exceiver import ExceiverTokenizer
from cellglot.training.config import TrainingConfig, check_keys
from cellglot.training.data.collators import ExceiverCollator
from cellglot.training.data.dataset import CellDataset, median_length
from cellglot.training.data.thinning import THINNING_KEYS, thinning_of
from cellglot.training.metrics import MaskedExpressionMetrics
from cellglot.training.pretraining.gene_embeddings import initialize_gene_embeddings
from cellglot.training.pretraining.recipe import Recipe, check_tokenizer, mask_fraction, new_configuration
from cellglot.training.trainer import count_parameters


def exceiver_recipe(config: TrainingConfig, corpus: Corpus, arguments: TrainingArguments) -> Recipe:
    """Prepare the pretraining of Exceiver.

    Keys of the section ``data``: ``mask_fraction``, ``initialize_gene_embeddings`` and those of `thinning_of`. As
    released, the number of masked genes is a share of the median cell's, and cells with fewer than twice as many genes
    are left out.

    Raises
    ------
    ValueError
        If configuration, corpus and model do not fit together.
    """
    tokenizer: Any = corpus.tokenizer()
    check_tokenizer(tokenizer, ExceiverTokenizer, corpus, "Exceiver", "exceiver")
    model = ExceiverForMaskedExpression(new_configuration(ExceiverConfig, config, tokenizer))
    model.exceiver.set_background_values(tokenizer.background_values)
    if config.data.get("initialize_gene_embeddings", False):
        initialize_gene_embeddings(model.get_input_embeddings(), corpus, arguments.seed)
    num_masked = _num_masked(config, corpus)
    train = CellDataset(corpus, "train", least_tokens=2 * num_masked)
    held_out = None
    if corpus.n_cells("validation"):
        held_out = CellDataset(corpus, "validation", least_tokens=2 * num_masked)
    return Recipe(
        model=model,
        processing_class=tokenizer,
        train=train,
        held_out=held_out,
        collator=ExceiverCollator(
            tokenizer.pad_token_id,
            num_masked,
            seed=arguments.seed,
            thinning=thinning_of(config.data, tokenizer, corpus, arguments.seed),
        ),
        metrics=MaskedExpressionMetrics(),
        summary=f"{count_parameters(model):,} parameters; {len(train):,} cells for training and "
        f"{0 if held_out is None else len(held_out):,} held out; {num_masked:,} genes masked in each; left out for "
        f"having fewer than {2 * num_masked:,} expressed genes: {train.left_out:,} and "
        f"{0 if held_out is None else held_out.left_out:,}",
        facts={"num_masked": num_masked, "cells_left_out": train.left_out, "training_cells": len(train)},
    )


def _num_masked(config: TrainingConfig, corpus: Corpus) -> int:
    check_keys(config.data, ["mask_fraction", "initialize_gene_embeddings", *THINNING_KEYS], "data")
    fraction = mask_fraction(config, 0.15)
    median = median_length(corpus)
    num_masked = int(fraction * median)
    if num_masked < 1:
        raise ValueError(f"data.mask_fraction {fraction} of a median of {median:g} expressed genes masks no gene")
    return num_masked


__all__ = ["exceiver_recipe"]
