"""Training and test cells of an evaluation: whole donors or data sets where they are known."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from cellglot.evaluation.labelled_cells import LabelledCells


TEST_FRACTION = 0.25


@dataclass
class CellSplit:
    """Which cells a probe learns from, and which it is scored on; cells without a label are in neither.

    Parameters
    ----------
    by
        ``"donor_id"`` or whatever column holds the donors, or ``"cell, stratified by class"``.
    held_out
        Donors of the test cells.
    note
        Why it is split this way.
    """

    train: np.ndarray
    test: np.ndarray
    by: str
    held_out: list[str]
    note: str

    def facts(self) -> dict[str, Any]:
        """Return what it is as plain types."""
        return {
            "by": self.by,
            "held_out": self.held_out,
            "training_cells": int(self.train.sum()),
            "test_cells": int(self.test.sum()),
            "note": self.note,
        }


def split_cells(data: LabelledCells, test_fraction: float = TEST_FRACTION, seed: int = 0) -> CellSplit:
    """Hold out whole donors (data sets), or where there are no two a share of every class.

    Parameters
    ----------
    test_fraction
        Share of labelled cells to hold out. Donors are taken in a seeded order, each if it brings the share nearer;
        the smallest if none does.
    """
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction={test_fraction}: a share of the cells is above 0 and below 1")
    usable = data.labelled
    if not usable.any():
        raise ValueError("no cell has a label: name the column of obs that holds the cell types")
    random = np.random.default_rng(seed)
    groups = data.groups
    if groups is not None:
        known = usable & np.array([g is not None for g in groups])
        names = sorted({str(g) for g in groups[known]})
        if len(names) > 1:
            return _by_group(data, known, names, test_fraction, random)
        why = f"column {data.group_column!r} names {len(names)} donor or data set: cells are held out, not donors"
    else:
        why = "the cells name no donors or data sets: cells are held out, cells of one donor stand on both sides"
    test = np.zeros(len(data), dtype=bool)
    for name in data.classes():
        mine = np.flatnonzero(_is(data, name))
        number = int(round(test_fraction * len(mine)))
        test[random.permutation(mine)[: max(number, 1) if len(mine) > 1 else 0]] = True
    return CellSplit(usable & ~test, test, "cell, stratified by class", [], why)


def _is(data: LabelledCells, name: str) -> np.ndarray:
    assert data.labels is not None
    return np.array([label == name for label in data.labels])


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
    note = f"{len(held_out)} of {len(names)} groups of column {data.group_column!r} are held out, none is split"
    if lost:
        note += f"; {lost:,} labelled cells without one are left out"
    return CellSplit(known & ~test, test, str(data.group_column), sorted(held_out), note)


__all__ = ["CellSplit", "TEST_FRACTION", "split_cells"]
