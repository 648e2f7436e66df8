"""scCello in training: masked genes, and the Cell Ontology's view of the cells' types."""

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import nn

from cellglot.modeling.cell_losses import IGNORED
from cellglot.modeling.configuration_sccello import ScCelloConfig
from cellglot.modeling.modeling_sccello import (
    ScCelloForPreTraining,
    ScCelloForSequenceClassification,
    ScCelloForTokenClassification,
)
from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.training.data.cell_types import LABEL_COLUMNS, cell_types_of, open_ontology
from cellglot.training.data.dataset import CellDataset
from cellglot.training.data.gene_embeddings import initialize_gene_embeddings
from cellglot.training.data.rank_value_collator import rank_value_collator
from cellglot.training.data.thinning import ThinningSettings, thinning_of
from cellglot.training.families.family import AdapterPreset, TrainedFamily
from cellglot.training.families.rank_value import RANK_VALUE, saved_tokenizer, tokenizer_of
from cellglot.training.families.recipe import Recipe, check_share, new_configuration
from cellglot.training.metrics import masked_gene_rows
from cellglot.training.trainer import count_parameters


@strict
@dataclass(kw_only=True)
class PretrainingData(ThinningSettings):
    """Keys of the section ``data`` in pretraining.

    Parameters
    ----------
    mask_fraction
        Share of a cell's genes that are masked.
    initialize_gene_embeddings
        Start the gene embeddings from the corpus's co-expression.
    ontology
        ``blood``, a release's date, an OBO or OWL file.
    label_columns
        Columns of the cell type; the first whose label is a cell type counts.
    """

    mask_fraction: float | int = 0.15
    initialize_gene_embeddings: bool = False
    ontology: str | datetime.date = "blood"
    label_columns: list[str] | tuple[str, ...] = LABEL_COLUMNS

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        super().__post_init__()
        check_share("mask_fraction", self.mask_fraction, "a cell's genes")
        self.ontology = str(self.ontology)  # YAML reads a release's date as a date


def sccello_recipe(model: Mapping[str, Any], data: PretrainingData, corpus: Corpus, seed: int) -> Recipe:
    """Prepare the pretraining of scCello.

    Prototypes are those of the types of training cells. Cells whose label is not a cell type are counted and train
    masked gene prediction alone.

    Raises
    ------
    ValueError
        If configuration, corpus and model do not fit together.
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
    train = CellDataset(corpus, "train", columns=found.columns)
    held_out = CellDataset(corpus, "validation", columns=found.columns) if corpus.n_cells("validation") else None
    fraction, longest = data.mask_fraction, made.config.max_position_embeddings
    collator = rank_value_collator(
        tokenizer,
        mask_fraction=fraction,
        seed=seed,
        max_length=longest,
        cell_types=found.rows,
        cell_type_columns=found.columns,
        thinning=thinning_of(data, tokenizer, corpus, seed),
    )
    cut = int((train.lengths > longest).sum())
    return Recipe(
        model=made,
        processing_class=saved_tokenizer(tokenizer, made.config),
        train=train,
        held_out=held_out,
        collator=collator,
        metrics=ScCelloMetrics(),
        summarize=summarize_sccello,
        summary="\n".join(
            [
                f"{count_parameters(made):,} parameters; {len(train):,} cells for training and "
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


SCCELLO = TrainedFamily(
    name="sccello",
    pretraining_data=PretrainingData,
    recipe=sccello_recipe,
    model_classes={
        "cell-type": ScCelloForSequenceClassification,
        "gene": ScCelloForTokenClassification,
        "regression": ScCelloForSequenceClassification,
    },
    heads=("classifier",),
    head_reads="pooler_output",
    adapters=AdapterPreset.of_layers(r"sccello\.layers\.\d+"),
    **RANK_VALUE,
)

__all__ = ["SCCELLO", "ScCelloMetrics", "sccello_recipe", "summarize_sccello"]
