"""scCello in training: masked genes, and cell types with their relations in the Cell Ontology."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from cellglot.modeling.cell_losses import IGNORED
from cellglot.modeling.configuration_sccello import ScCelloConfig
from cellglot.modeling.modeling_sccello import (
    ScCelloForPreTraining,
    ScCelloForSequenceClassification,
    ScCelloForTokenClassification,
)
from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.training.data.cell_types import cell_types_of, open_ontology
from cellglot.training.data.gene_embeddings import initialize_gene_embeddings
from cellglot.training.data.rank_value_collator import rank_value_collator
from cellglot.training.data.streaming import StreamedCells
from cellglot.training.data.thinning import thinning_of
from cellglot.training.families.family import AdapterPreset, TrainedFamily
from cellglot.training.families.rank_value import RANK_VALUE, PretrainingData, saved_tokenizer, tokenizer_of
from cellglot.training.families.recipe import Recipe, new_configuration
from cellglot.training.metrics import MaskedGeneMetrics, masked_gene_rows
from cellglot.training.trainer import count_parameters


def sccello_recipe(model: Mapping[str, Any], data: PretrainingData, corpus: Corpus, seed: int) -> Recipe:
    """Prepare the pretraining of scCello.

    Prototypes are those of the types of the training cells. Cells whose label is not a cell type only train the
    prediction of masked genes; the summary has their number.
    """
    tokenizer = tokenizer_of(corpus, "scCello")
    ontology = open_ontology(data.ontology)
    found = cell_types_of(corpus, ontology, data.label_columns)
    types = [] if found.tables is None else found.tables.cell_types
    made = ScCelloForPreTraining(new_configuration(ScCelloConfig, model, tokenizer, cell_types=types))
    if found.tables is not None:
        made.set_ontology(found.tables.levels, found.tables.ancestor_mask)
    if data.initialize_gene_embeddings:
        initialize_gene_embeddings(made.get_input_embeddings(), corpus, seed)
    thinning = thinning_of(data, tokenizer, corpus, seed)
    train = StreamedCells(corpus, "train", columns=found.columns, only_ids=thinning is None)
    held_out = None
    if corpus.n_cells("validation"):
        held_out = StreamedCells(corpus, "validation", columns=found.columns, only_ids=True)
    fraction, longest = data.mask_fraction, made.config.max_position_embeddings
    collator = rank_value_collator(
        tokenizer,
        mask_fraction=fraction,
        seed=seed,
        max_length=longest,
        cell_types=found.rows,
        cell_type_columns=found.columns,
        thinning=thinning,
    )
    cut = train.count_longer(longest)
    return Recipe(
        model=made,
        processing_class=saved_tokenizer(tokenizer, made.config),
        train=train,
        held_out=held_out,
        collator=collator,
        metrics=MaskedGeneMetrics("cell_type_accuracy"),
        summarize=summarize_sccello,
        pack_cells=data.pack_cells,
        summary="\n".join(
            [
                f"{count_parameters(made):,} parameters; {len(train):,} cells for training and "
                f"{0 if held_out is None else len(held_out):,} held out; {fraction:.0%} of genes masked; "
                f"{cut:,} cells cut to {longest:,} tokens",
                f"{len(types):,} cell types of {ontology.source} {ontology.release}; training cells without a type: "
                f"{found.training_without:,}; held-out cells without one of these types: {found.held_out_without:,}",
                found.report.summary(),
            ]
        ),
        facts={
            "mask_fraction": fraction,
            "ontology": ontology.metadata,
            "cell_types": dict(zip(types, found.tables.names if found.tables else [], strict=True)),
            "cell_labels": found.report.to_dict(),
            "cells_cut": cut,
            "training_cells": len(train),
        },
    )


def summarize_sccello(model: Any, inputs: dict[str, Any], outputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum up a batch of held-out cells for `MaskedGeneMetrics`, one row for each cell.

    Returns
    -------
    predictions
        Cross entropy of masked genes, number of masked genes found, whether the nearest prototype is that of the
        cell's type; shape (cells, 3).
    labels
        Number of masked genes, whether the cell has a type; shape (cells, 2).
    """
    cell_types = inputs["cell_type_ids"]
    known = cell_types != IGNORED
    predictions, labels = (nn.functional.pad(t, (0, 1)) for t in masked_gene_rows(outputs.logits, inputs["labels"]))
    if model.config.num_cell_types:
        prototypes = nn.functional.normalize(model.prototypes.weight.float(), dim=-1)
        nearest = (outputs.cell_representation.float() @ prototypes.T).argmax(dim=-1)
        predictions[:, 2] = ((nearest == cell_types) & known).float()
        labels[:, 1] = known.float()
    return predictions, labels


SCCELLO = TrainedFamily(
    name="sccello",
    pretraining_data=PretrainingData,
    recipe=sccello_recipe,
    model_classes={
        "cell-type": ScCelloForSequenceClassification,
        "gene": ScCelloForTokenClassification,
        "regression": ScCelloForSequenceClassification,
        "multi-label": ScCelloForSequenceClassification,
    },
    heads=("classifier",),
    head_reads="pooler_output",
    adapters=AdapterPreset.of_layers(r"sccello\.layers\.\d+"),
    **RANK_VALUE,
)

__all__ = ["SCCELLO", "sccello_recipe", "summarize_sccello"]
