"""Tasks of fine-tuning: cells with what is predicted for them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.training.data.dataset import CellDataset
from cellglot.training.data.label_collators import LabelledCells
from cellglot.training.data.splits import Division, Part


# Splits of a corpus with cells for training and for evaluation.
BOTH = ("train", "validation")
LISTED = 5


@dataclass
class Task:
    """Cells with what is predicted for them.

    Parameters
    ----------
    fields
        Fields of the model's configuration, from `head_fields`.
    collator
        (collator of cells, whether for training) -> collator that adds labels.
    metrics
        Metrics of held-out cells, updated batch by batch.
    metric_names
        Names of the metrics; an undefined metric is missing in the results.
    facts
        Entries of the record of the run.
    summary
        Line to print before training.
    """

    fields: dict[str, Any]
    train: CellDataset
    held_out: CellDataset | None
    test: CellDataset | None
    collator: Callable[[Any, bool], Any]
    metrics: Any
    metric_names: tuple[str, ...]
    facts: dict[str, Any]
    summary: str


def head_fields(outputs: Sequence[str], problem_type: str | None, **fields: Any) -> dict[str, Any]:
    """Return the configuration of a head with these outputs; fields of other tasks are set to None."""
    return {
        "id2label": dict(enumerate(outputs)),
        "label2id": {name: i for i, name in enumerate(outputs)},
        "problem_type": problem_type,
        "label_cl_ids": None,
        "target_mean": None,
        "target_std": None,
    } | fields


def common_facts(division: Division, *parts: CellDataset | None) -> dict[str, Any]:
    """Return the entries of the record of a run about its training, held-out and test cells."""
    named = zip(("training", "held_out", "test"), parts, strict=True)
    return {
        "divided_by": division.by,
        **{f"{name}_cells": n_cells(cells) for name, cells in named},
        "cells_without_genes": sum(cells.left_out for cells in parts if cells is not None),
    }


def n_cells(cells: CellDataset | None) -> int:
    """Return the number of cells, 0 for None."""
    return 0 if cells is None else len(cells)


def labelled_cells(
    corpus: Corpus, division: Division, labels: Callable[[Part], tuple[np.ndarray, np.ndarray]]
) -> list[Any]:
    """Return training, held-out and test cells with their labels; None for a part without labels.

    Parameters
    ----------
    labels
        Part -> label of each cell of its splits, and whether it has one.
    """
    made: list[CellDataset | None] = []
    for number, part in enumerate((division.train, division.held_out, division.test)):
        given, keep = (None, None) if part is None else labels(part)
        some = part is not None and keep is not None and bool((part.chosen & keep).any())
        made.append(LabelledCells(corpus, part, number, given, keep) if some else None)  # type: ignore[arg-type]
    return made


def listed(counts: Mapping[str, int]) -> str:
    """Return the first names with their numbers, as text."""
    names = ", ".join(f"{name} ({n:,})" for name, n in list(counts.items())[:LISTED])
    return names + (", ..." if len(counts) > LISTED else "")


__all__ = ["BOTH", "Task", "common_facts", "head_fields", "labelled_cells", "listed", "n_cells"]
