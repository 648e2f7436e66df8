"""Pretraining scCello: masked genes, and the Cell Ontology's view of the cells' types."""

from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments

from cellglot.modeling.cell_losses import IGNORED
from cellglot.modeling.configuration_sccello import ScCelloConfig
from cellglot.modeling.modeling_sccello import ScCelloForPreTraining
from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.training.config import TrainingConfig, check_keys
from cellglot.training.data.cell_types import LABEL_COLUMNS, cell_types_of, open_ontology
from cellglot.training.data.dataset import CellDataset
from cellglot.training.data.rank_value_collator import rank_value_collator
from cellglot.training.data.thinning import THINNING_KEYS, thinning_of
from cellglot.training.metrics import masked_gene_rows
from cellglot.training.pretraining.gene_embeddings import initialize_gene_embeddings
from cellglot.training.pretraining.recipe import (
    Recipe,
    mask_fraction,
    new_configuration,
    rank_value_tokenizer_of,
    rank_value_tokenizer_of_model,
)
from cellglot.training.trainer import count_parameters


DATA_KEYS = ("mask_fraction", "initialize_gene_embeddings", "ontology", "label_columns", *THINNING_KEYS)


def sccello_recipe(config: TrainingConfig, corpus: Corpus, arguments: TrainingArguments) -> Recipe:
    """Prepare the pretraining of scCello.

    Keys of the section ``data``: ``mask_fraction``, ``initialize_gene_embeddings``, ``ontology`` (``blood``, a
    release's date, an OBO or OWL file), ``label_columns``, and those of `thinning_of`. Prototypes are those of the
    types of training cells. Cells whose label stands for no cell type are counted and train masked gene prediction
    alone.

    Raises
    ------
    ValueError
        If configuration, corpus and model do not fit together.
    """
    check_keys(config.data, list(DATA_KEYS), "data")
    tokenizer = rank_value_tokenizer_of(corpus, "scCello")
    ontology = open_ontology(config.data.get("ontology", "blood"))
    found = cell_types_of(corpus, ontology, config.data.get("label_columns", LABEL_COLUMNS))
    types = [] if found.tables is None else found.tables.cell_types
    model = ScCelloForPreTraining(new_configuration(ScCelloConfig, config, tokenizer, cell_types=types))
    if found.tables is not None:
        model.set_ontology(found.tables.levels, found.tables.ancestor_mask)
    if config.data.get("initialize_gene_embeddings", False):
        initialize_gene_embeddings(model.get_input_embeddings(), corpus, arguments.seed)
    train = CellDataset(corpus, "train", columns=found.columns)
    held_out = CellDataset(corpus, "validation", columns=found.columns) if corpus.n_cells("validation") else None
    fraction, longest = mask_fraction(config, 0.15), model.config.max_position_embeddings
    collator = rank_value_collator(
        tokenizer,
        mask_fraction=fraction,
        seed=arguments.seed,
        max_length=longest,
        cell_types=found.rows,
        cell_type_columns=found.columns,
        thinning=thinning_of(config.data, tokenizer, corpus, arguments.seed),
    )
    cut = int((train.lengths > longest).sum())
    return Recipe(
        model=model,
        processing_class=rank_value_tokenizer_of_model(tokenizer, longest),
        train=train,
        held_out=held_out,
        collator=collator,
        metrics=ScCelloMetrics(),
        summarize=summarize_sccello,
        summary="\n".join(
            [
                f"{count_parameters(model):,} parameters; {len(train):,} cells for training and "
                f"{0 if held_out is None else len(held_out):,} held out; {fraction:.0%} of genes masked; "
                f"{cut:,} cells cut to {longest:,} tokens",
                f"{len(types):,} cell types of {ontology.source} {ontology.release}; cells that train on genes alone: "
                f"{found.training_without:,}; held-out cells without a type of these: {found.held_out_without:,}",
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
    """Sum up a batch of held-out cells, one row a cell.

    Returns
    -------
    predictions
        Masked genes' cross entropy, masked genes found, whether the nearest prototype is that of the cell's type;
        shape (cells, 3).
    labels
        Masked genes, whether the cell has a type; shape (cells, 2).
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


class ScCelloMetrics:
    """Metrics of held-out cells.

    ``masked_gene_loss``: mean cross entropy of masked genes over the vocabulary; ``masked_gene_accuracy``: share of
    masked genes whose score is the highest; ``cell_type_accuracy``: share of cells with a known type whose
    representation is nearest to its prototype.
    """

    def __init__(self) -> None:
        self._sums = torch.zeros(5, dtype=torch.float64)

    def __call__(self, prediction: Any, compute_result: bool = True) -> dict[str, float]:
        """Add a batch; give the metrics at the last one."""
        rows = torch.cat([torch.as_tensor(prediction.predictions), torch.as_tensor(prediction.label_ids)], dim=1)
        self._sums += rows.double().sum(dim=0).cpu()
        if not compute_result:
            return {}
        loss, found, right, genes, cells = self._sums.tolist()
        self._sums = torch.zeros(5, dtype=torch.float64)
        metrics: dict[str, float] = {}
        if genes:
            metrics |= {"masked_gene_loss": loss / genes, "masked_gene_accuracy": found / genes}
        if cells:
            metrics["cell_type_accuracy"] = right / cells
        return metrics


__all__ = ["ScCelloMetrics", "sccello_recipe", "summarize_sccello"]
