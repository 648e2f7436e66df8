"""What each perturbed gene did to each cell: computed part by part, kept beside the output until all are finished."""

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cellglot.evaluation.perturbation.states import Direction
from cellglot.evaluation.unfinished import UnfinishedRun
from cellglot.modeling.label_losses import is_regression
from cellglot.modeling.loaded_model import without_adapter
from cellglot.modeling.masked_genes import cosine_distances
from cellglot.modeling.perturbed_genes import Change, Copies, perturb_tokens
from cellglot.outputs import atomic


PART_CELLS, PART_COPIES = 256, 2048  # a part is finished with so many cells or perturbed cells


@dataclass
class Effects:
    """Effects of genes on cells: one value for each perturbed cell.

    Parameters
    ----------
    cells
        Place of the cell among the perturbed cells, int32, shape (pairs,).
    genes
        Place of the gene among the tested genes, int32, shape (pairs,).
    values
        ``cosine``: 1 - cosine of the embeddings before and after; ``euclidean``: their distance; ``progress`` and
        ``approach``: as for `Direction`, shape (pairs, directions). All float32.
    changes
        Sum over cells of the change of each class's probability (or of the value), float64, shape (genes, classes).
    """

    cells: np.ndarray
    genes: np.ndarray
    values: dict[str, np.ndarray]
    changes: np.ndarray | None = None

    @classmethod
    def together(cls, parts: Sequence["Effects"]) -> "Effects":
        """Join parts; sums are added."""
        one = parts[0]
        summed = [part.changes for part in parts if part.changes is not None]
        changes = None if one.changes is None else np.sum(summed, axis=0)
        values = {name: np.concatenate([part.values[name] for part in parts]) for name in one.values}
        return cls(
            np.concatenate([part.cells for part in parts]),
            np.concatenate([part.genes for part in parts]),
            values,
            changes,
        )


def probabilities(network: Any, scores: torch.Tensor) -> np.ndarray:
    """Return probabilities of classes from a head's scores, or the values of a regression, float64."""
    config = without_adapter(network).config
    scores = scores.double()
    if config.problem_type == "multi_label_classification":
        scores = scores.sigmoid()
    elif not is_regression(config):
        scores = scores.softmax(dim=-1)
    return scores.cpu().numpy()


@dataclass
class Measuring:
    """Measures what changes of genes do.

    Parameters
    ----------
    network
        The model, in evaluation.
    tested
        Token ids of all genes that are changed, shape (genes,).
    change
        What is done to them.
    directions
        Ways on which movements are measured.
    batch_size
        Copies of several cells that are computed at once.
    """

    network: Any
    tested: np.ndarray
    change: Change
    directions: Sequence[Direction] = ()
    batch_size: int = 64

    def effects(
        self, places: np.ndarray, cells: Sequence[Mapping[str, torch.Tensor]], before: Copies, device: torch.device
    ) -> Effects:
        """Change the genes in some cells.

        Parameters
        ----------
        places
            Of the cells among the perturbed cells, shape (cells,).
        cells
            Their tokens.
        before
            The same cells unchanged.
        """
        place_of = np.zeros(int(self.tested.max()) + 1, dtype=np.int32)
        place_of[self.tested] = np.arange(len(self.tested))
        moved = [{name: values.to(device) for name, values in cell.items()} for cell in cells]
        genes = torch.from_numpy(self.tested).to(device)
        found = perturb_tokens(self.network, moved, genes, self.change, self.batch_size)
        whole = before.embeddings.double().cpu().numpy()
        scores = None if before.scores is None else probabilities(self.network, before.scores)
        parts = [self._of_cell(*given) for given in zip(places.tolist(), found, whole, strict=True)]
        effects = Effects.together([_placed(part, place_of) for part in parts])
        if scores is not None:
            effects.changes = np.zeros((len(self.tested), scores.shape[1]))
            for copies, own in zip(found, scores, strict=True):
                if len(copies.genes):
                    assert copies.scores is not None
                    at = place_of[copies.genes.cpu().numpy()]
                    effects.changes[at] += probabilities(self.network, copies.scores) - own
        return effects

    def _of_cell(self, place: int, copies: Copies, whole: np.ndarray) -> Effects:
        embeddings = copies.embeddings.double().cpu().numpy()
        values = {
            "cosine": cosine_distances(whole, embeddings),
            "euclidean": np.linalg.norm(embeddings - whole, axis=1),
            "progress": _columns([d.progress(whole, embeddings) for d in self.directions], len(embeddings)),
            "approach": _columns([d.approach(whole, embeddings) for d in self.directions], len(embeddings)),
        }
        for name, column in values.items():
            if not np.isfinite(column).all():
                raise ValueError(f"{name} of a perturbed cell is not finite: use float32 weights (dtype)")
        genes = copies.genes.cpu().numpy()
        return Effects(
            np.full(len(genes), place, dtype=np.int32), genes, {n: v.astype(np.float32) for n, v in values.items()}
        )


def _columns(columns: list[np.ndarray], rows: int) -> np.ndarray:
    return np.stack(columns, axis=1) if columns else np.zeros((rows, 0))


def _placed(effects: Effects, place_of: np.ndarray) -> Effects:
    effects.genes = place_of[effects.genes]
    return effects


# -------------------------------------------------------------------- finished parts


class FinishedParts(UnfinishedRun):
    """Parts of a run that are finished.

    Parameters
    ----------
    run, folder, overwrite
        As for `UnfinishedRun`.
    """

    kind, record, parts = "perturb", "perturbation.json", "parts"

    def __init__(self, run: Mapping[str, Any], folder: Path | None = None, overwrite: bool = False):
        super().__init__(run, folder, overwrite)
        self.finished: list[Effects | Path] = []

    def find(self) -> None:
        """Find the parts of an earlier run; damaged ones, and those after them, are computed again."""
        while self._path(len(self.finished)).exists():
            path = self._path(len(self.finished))
            try:
                _load(path)
            except (OSError, ValueError, KeyError, zipfile.BadZipFile):
                path.unlink()
                break
            self.finished.append(path)

    def _path(self, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"part-{number:06d}.npz"

    def add(self, effects: Effects) -> None:
        """Keep a finished part."""
        if self.folder is None:
            self.finished.append(effects)
            return
        path = self._path(len(self.finished))
        rows = np.empty(0, dtype=np.int64) if effects.changes is None else np.flatnonzero(effects.changes.any(axis=1))
        changes = np.zeros((0, 0)) if effects.changes is None else effects.changes
        arrays: dict[str, Any] = {
            "cells": effects.cells,
            "genes": effects.genes,
            "rows": rows,
            "changes": changes[rows],
        }
        with atomic(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, shape=np.array(changes.shape), **(arrays | effects.values))
        self.finished.append(path)

    def together(self) -> Effects:
        """Return the effects of all parts."""
        return Effects.together([_load(part) if isinstance(part, Path) else part for part in self.finished])


def _load(path: Path) -> Effects:
    with np.load(path, allow_pickle=False) as file:
        names = ("cosine", "euclidean", "progress", "approach")
        values = {name: file[name] for name in names}
        shape, changes = tuple(int(n) for n in file["shape"]), None
        if shape[0]:
            changes = np.zeros(shape)
            changes[file["rows"]] = file["changes"]
        return Effects(file["cells"], file["genes"], values, changes)


def in_parts(
    cells: Iterator[dict[str, torch.Tensor]], tested: np.ndarray, change: Change, empty: np.ndarray
) -> Iterator[tuple[np.ndarray, list[dict[str, torch.Tensor]]]]:
    """Group cells into parts of about equal work: their places, and their tokens.

    Parameters
    ----------
    cells
        Tokens of all perturbed cells in their order.
    tested
        Token ids of the genes that are changed.
    empty
        Places of cells that express no gene of the model, which are left out.
    """
    wanted = torch.zeros(int(tested.max()) + 1, dtype=torch.bool)
    wanted[tested] = True
    nothing = set(empty.tolist())
    places: list[int] = []
    part: list[dict[str, torch.Tensor]] = []
    copies = 0
    for place, cell in enumerate(cells):
        if place in nothing:
            continue
        places.append(place)
        part.append(cell)
        ids = cell["input_ids"]
        copies += int(wanted[ids[ids < len(wanted)]].sum()) if change.kind == "delete" else len(tested)
        if len(part) >= PART_CELLS or copies >= PART_COPIES:
            yield np.array(places), part
            places, part, copies = [], [], 0
    if part:
        yield np.array(places), part


__all__ = ["Effects", "FinishedParts", "Measuring", "in_parts", "probabilities"]
