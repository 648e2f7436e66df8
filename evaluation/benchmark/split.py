"""Split into training and test cells, by whole donors or data sets if they are known."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from cellglot.evaluation.labelled_cells import LabelledCells


TEST_FRACTION = 0.25


@dataclass
class CellSplit:
    """Masks of the training and test cells of a probe, without unlabelled cells.

    Parameters
    ----------
    by
        Column of the donors, or ``"cell, stratified by class"``.
    held_out
        Donors of the test cells.
    note
        Reason for this kind of split.
    """

    train: np.ndarray
    test: np.ndarray
    by: str
    held_out: list[str]
    note: str

    def facts(self) -> dict[str, Any]:
        """Return a description as plain types."""
        return {
            "by": self.by,
            "held_out": self.held_out,
            "training_cells": int(self.train.sum()),
            "test_cells": int(self.test.sum()),
            "note": self.note,
        }


def split_cells(data: LabelledCells, test_fraction: float = TEST_FRACTION, seed: int = 0) -> CellSplit:
    """Hold out whole donors (data sets), or a share of every class if there are fewer than two donors.

    Parameters
    ----------
    test_fraction
        Share of labelled cells to hold out. In a seeded order, each donor is held out that brings the share nearer to
        it; the smallest if none does.
    """
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction={test_fraction} must be above 0 and below 1")
    usable = data.labelled
    if not usable.any():
        raise ValueError("no cell has a label: pass the column of obs with the cell types (labels)")
    random = np.random.default_rng(seed)
    groups = data.groups
    if groups is not None:
        known = usable & np.array([g is not None for g in groups])
        names = sorted({str(g) for g in groups[known]})
        if len(names) > 1:
            return _by_group(data, known, names, test_fraction, random)
        why = f"column {data.group_column!r} has {len(names)} donor or data set: cells are held out, not donors"
    else:
        why = "the cells have no donors or data sets: cells are held out, and both parts may have cells of one donor"
    test = np.zeros(len(data), dtype=bool)
    assert data.labels is not None
    for name in data.classes():
        mine = np.flatnonzero([label == name for label in data.labels])
        number = int(round(test_fraction * len(mine)))
        test[random.permutation(mine)[: max(number, 1) if len(mine) > 1 else 0]] = True
    return CellSplit(usable & ~test, test, "cell, stratified by class", [], why)


def _by_group(
    data: LabelledCells, known: np.ndarray, names: list[str], fraction: float, random: np.random.Generator
) -> CellSplit:
    assert data.groups is not None
    sizes = {name: int((known & (data.groups == name)).sum()) for name in names}
    total, held = sum(sizes.values()), 0
    held_out: list[str] = []
    wanted = fraction * total
    for name in [names[i] for i in random.permutation(len(names))]:
        nearer = abs(held + sizes[name] - wanted) < abs(held - wanted)
        if nearer and len(held_out) < len(names) - 1:
            held_out.append(name)
            held += sizes[name]
    held_out = held_out or [min(names, key=lambda name: sizes[name])]
    test = known & np.isin(data.groups.astype(str), held_out)
    lost = int((data.labelled & ~known).sum())
    note = f"{len(held_out)} of {len(names)} groups of column {data.group_column!r} are held out as a whole"
    if lost:
        note += f"; {lost:,} labelled cells without a group are excluded"
    return CellSplit(known & ~test, test, str(data.group_column), sorted(held_out), note)


__all__ = ["CellSplit", "TEST_FRACTION", "split_cells"]
