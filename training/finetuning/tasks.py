"""What a model is fine-tuned for: cells with what is to be predicted of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.training.data.dataset import CellDataset
from cellglot.training.data.label_collators import LabelledCells
from cellglot.training.data.splits import Division, Part


# Splits of a corpus that cells for training and for evaluation come from.
BOTH = ("train", "validation")
LISTED = 5


@dataclass
class Task:
    """Cells with what is to be predicted of them.

    Parameters
    ----------
    fields
        Of the model's configuration.
    division
        How the cells were divided.
    train, held_out, test
        Cells, None where there are none.
    collator
        (collator of cells, whether for training) -> collator that adds labels.
    metrics
        Of held-out cells, added up batch by batch.
    metric_names
        Their names; one that is undefined is missing among the metrics.
    facts
        For the record of the run.
    summary
        Line to print before training.
    """

    fields: dict[str, Any]
    division: Division
    train: CellDataset
    held_out: CellDataset | None
    test: CellDataset | None
    collator: Callable[[Any, bool], Any]
    metrics: Any
    metric_names: tuple[str, ...]
    facts: dict[str, Any]
    summary: str


def common_facts(division: Division, parts: Mapping[str, CellDataset | None]) -> dict[str, Any]:
    """Return what the record of a run says of cells, whatever the task.

    Parameters
    ----------
    division
        How the cells were divided.
    parts
        Name -> cells.
    """
    return {
        "divided_by": division.by,
        **{f"{name}_cells": 0 if cells is None else len(cells) for name, cells in parts.items()},
        "cells_without_genes": sum(cells.left_out for cells in parts.values() if cells is not None),
    }


def labelled_cells(
    corpus: Corpus, division: Division, labels: Callable[[Part], tuple[np.ndarray, np.ndarray]]
) -> list[Any]:
    """Return training, held-out and test cells with their labels; None where no cell has one.

    Parameters
    ----------
    division
        How the cells were divided.
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
    """Name the first things that were counted.

    Parameters
    ----------
    counts
        Name -> number.
    """
    names = ", ".join(f"{name} ({n:,})" for name, n in list(counts.items())[:LISTED])
    return names + (", ..." if len(counts) > LISTED else "")


__all__ = ["BOTH", "Task", "common_facts", "labelled_cells", "listed"]
