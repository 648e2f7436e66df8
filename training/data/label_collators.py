"""Batches with labels of cells or of genes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cellglot.modeling.cell_losses import IGNORED
from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.training.data.dataset import CellDataset
from cellglot.training.data.splits import Part


class LabelledCells(CellDataset):
    """Cells of a corpus with labels: ``label`` of an example. The cell -1 has none.

    Parameters
    ----------
    number
        Number of the part, which is ``part`` of an example.
    labels
        Label of each cell of the splits of the part, class numbers or values; shape (cells of the splits,).
    keep
        Whether to keep each cell, of the same shape.

    Attributes
    ----------
    weights : numpy.ndarray or None
        Chance of each cell to be drawn for training, up to a factor; None to see each once an epoch.
    """

    def __init__(self, corpus: Corpus, part: Part, number: int, labels: np.ndarray, keep: np.ndarray):
        super().__init__(corpus, part.splits, keep=part.chosen & keep, without_genes=part.without_genes)
        self.number, self.labels = number, labels[self.rows]
        self.weights: np.ndarray | None = None

    def __getitems__(self, keys: Sequence[Any]) -> list[dict[str, Any]]:
        """Read some cells at once."""
        examples = super().__getitems__(keys)
        for example in examples:
            cell = example["cell"]
            example["part"] = self.number
            example["label"] = self.labels[cell] if cell >= 0 else None
        return examples


@dataclass
class CellClassCollator:
    """Adds classes to a batch of cells: ``labels`` for the loss, and ``truth`` with classes that the model lacks, too.

    ``cells`` identifies the cells by part and number.

    Parameters
    ----------
    number
        Number of classes of the model; higher ones are -100 in ``labels``.
    weights
        Weight of each class in the loss, shape (classes,); None for equal weights.
    """

    cells: Callable[..., dict[str, torch.Tensor]]
    number: int
    weights: np.ndarray | None = None

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Make a batch of examples of `LabelledCells`."""
        batch = self.cells(examples) | _numbers(examples)
        truth = torch.tensor([IGNORED if e["label"] is None else int(e["label"]) for e in examples])
        labels = truth.masked_fill(truth >= self.number, IGNORED)
        return batch | {"labels": labels, "truth": truth} | _weights(labels, self.weights)


@dataclass
class LabelSetCollator:
    """Adds sets of classes to a batch of cells: ``labels`` to learn from; ``truth`` is the number of the label.

    Parameters
    ----------
    sets
        Whether each label may be each class, bool, shape (labels, classes).
    weights
        Weight of each label in the loss, shape (labels,), None for equal ones.
    """

    cells: Callable[..., dict[str, torch.Tensor]]
    sets: np.ndarray
    weights: np.ndarray | None = None

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Make a batch of examples of `LabelledCells`."""
        batch = self.cells(examples) | _numbers(examples)
        truth = torch.tensor([IGNORED if e["label"] is None else int(e["label"]) for e in examples])
        labels = torch.from_numpy(self.sets)[truth.clamp(min=0)] & (truth >= 0)[:, None]
        return batch | {"labels": labels, "truth": truth} | _weights(truth, self.weights)


@dataclass
class CellValueCollator:
    """Adds values to a batch of cells; NaN if a cell has none."""

    cells: Callable[..., dict[str, torch.Tensor]]

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Make a batch of examples of `LabelledCells`."""
        values = [float("nan") if e["label"] is None else float(e["label"]) for e in examples]
        labels = torch.tensor(values, dtype=torch.float32)
        return self.cells(examples) | _numbers(examples) | {"labels": labels, "truth": labels.clone()}


@dataclass
class SeveralLabelsCollator:
    """Adds several labels of each cell to a batch: 0 or 1 for each class; NaN if a cell has none.

    Parameters
    ----------
    number
        Number of classes.
    """

    cells: Callable[..., dict[str, torch.Tensor]]
    number: int

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Make a batch of examples of `LabelledCells`."""
        none = np.full(self.number, np.nan, dtype=np.float32)
        labels = torch.from_numpy(np.stack([none if e["label"] is None else e["label"] for e in examples]))
        return self.cells(examples) | _numbers(examples) | {"labels": labels, "truth": labels.clone()}


@dataclass
class GeneClassCollator:
    """Adds classes of genes to a batch of cells, -100 for genes without a class; ``truth`` also has the token ids.

    Parameters
    ----------
    classes
        Class of each token id, -100 for none, shape (vocabulary,).
    weights
        Weight of each class in the loss, shape (classes,); None for equal weights.
    """

    cells: Callable[..., dict[str, torch.Tensor]]
    classes: np.ndarray
    weights: np.ndarray | None = None

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Make a batch of examples of `cellglot.training.data.dataset.CellDataset`."""
        batch = self.cells(examples)
        labels = torch.from_numpy(self.classes)[batch["input_ids"]]
        truth = torch.stack([labels, batch["input_ids"]], dim=-1)
        return batch | {"labels": labels, "truth": truth} | _weights(labels, self.weights)


def _numbers(examples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
    """Return part and number of each cell, shape (cells, 2)."""
    return {"cells": torch.tensor([[e["part"], e["cell"]] for e in examples])}


def _weights(labels: torch.Tensor, weights: np.ndarray | None) -> dict[str, torch.Tensor]:
    if weights is None:
        return {}
    return {"loss_weights": torch.from_numpy(weights.astype(np.float32))[labels.clamp(min=0)]}


def sampling_weights(
    labels: np.ndarray,
    groups: np.ndarray,
    balance: float,
    shares: Mapping[int, float] | None = None,
    factors: np.ndarray | None = None,
) -> np.ndarray:
    """Return the chance of each cell to be drawn, shape (cells,), their sum 1.

    The cells of a label in a group are drawn ``n ** (1 - balance)`` times as often, n their number.

    Parameters
    ----------
    labels, groups
        Of each cell, whole numbers from 0 on, shape (cells,).
    balance
        From 0 (each cell alike) to 1 (each label of each group alike).
    shares
        Label -> share of all draws; the other labels have what is left.
    factors
        How often each label is drawn, relative to the others, on top of `balance`; shape (labels,).
    """
    pairs, pair, numbers = np.unique(np.stack([groups, labels]), axis=1, return_inverse=True, return_counts=True)
    weights = (numbers ** (1.0 - balance) / numbers)[pair.ravel()]
    if factors is not None:
        weights *= factors[labels]
    given = {label: share for label, share in (shares or {}).items() if (labels == label).any()}
    rest = ~np.isin(labels, list(given))
    for label, share in given.items():
        weights[labels == label] *= share / weights[labels == label].sum()
    if rest.any():
        weights[rest] *= (1.0 - sum(given.values())) / weights[rest].sum()
    return weights / weights.sum()


def balanced_weights(counts: np.ndarray) -> np.ndarray:
    """Return a weight for each class: items / (classes * items of the class), from items of each class."""
    return counts.sum() / (len(counts) * np.maximum(counts, 1))


__all__ = [
    "CellClassCollator",
    "CellValueCollator",
    "GeneClassCollator",
    "LabelSetCollator",
    "LabelledCells",
    "balanced_weights",
    "sampling_weights",
]
