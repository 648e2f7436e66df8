"""The cells that are perturbed, the state that they may move towards, and the direction between both."""

import difflib
from dataclasses import dataclass

import numpy as np

from cellglot.tokenization.reading.cells import Cells
from cellglot.tokenization.reading.labels import read_labels


@dataclass(frozen=True)
class ChosenCells:
    """Which cells are perturbed, and which are of the target state.

    Parameters
    ----------
    start
        Numbers of the cells to perturb, ascending, shape (cells,).
    target
        Numbers of the cells of the target state, ascending; None without one.
    of
        What the perturbed cells are, in words.
    left_out
        Number of cells to perturb that were not drawn.
    """

    start: np.ndarray
    target: np.ndarray | None
    of: str
    left_out: int = 0


def choose_cells(
    cells: Cells,
    *,
    column: str | None = None,
    cell_type: str | None = None,
    towards: str | None = None,
    max_cells: int | None = None,
    seed: int = 0,
) -> ChosenCells:
    """Choose the cells to perturb and those of the target state by a column of obs.

    Parameters
    ----------
    column
        Column with the states of cells; by default that of cell types.
    cell_type
        Value in `column` of the cells to perturb; by default all cells, or all that are not of the target state.
    towards
        Value in `column` of the cells of the target state.
    max_cells
        Most cells to perturb; more are drawn by `seed`. All cells of the target state are used.

    Raises
    ------
    ValueError
        If the column does not exist, a state has no cells, or both states are the same.
    """
    if max_cells is not None and max_cells < 1:
        raise ValueError(f"max_cells {max_cells}: it is 1 or more")
    named = [state for state in (cell_type, towards) if state is not None]
    every, target = np.arange(len(cells)), None
    of = "all cells"
    if named:
        labels = states_of(cells, column)
        places = {state: _cells_of(cells, labels, state) for state in named}
        if len(named) == 2 and cell_type == towards:
            raise ValueError(f"the cells to perturb and the target state are both {towards!r}: name two states")
        target = None if towards is None else places[towards]
        if cell_type is not None:
            every, of = places[cell_type], cell_type
        elif target is not None:
            every, of = np.setdiff1d(every, target), f"all cells but {towards}"
    if not len(every):
        raise ValueError(f"{cells.name}: no cells to perturb, because all {len(cells):,} are {towards!r}")
    number = len(every)
    every = every if max_cells is None else draw_cells(every, max_cells, seed)
    return ChosenCells(every, target, of, number - len(every))


def draw_cells(numbers: np.ndarray, most: int, seed: int = 0) -> np.ndarray:
    """Draw at most `most` cells; return their numbers in ascending order, shape (cells,)."""
    if len(numbers) <= most:
        return numbers
    return np.sort(np.random.default_rng(seed).choice(numbers, most, replace=False))


def states_of(cells: Cells, column: str | None) -> np.ndarray:
    """Read the states of cells from a column of obs, by default that of cell types; None where missing, (cells,).

    Raises
    ------
    ValueError
        If the column does not exist.
    """
    found = column if column is not None else cells.metadata_columns.get("cell_type")
    has = ", ".join(cells.obs.names) or "none"
    if found is None:
        raise ValueError(
            f"{cells.name} has no column of cell types: name the column of the states by column; it has {has}"
        )
    if found not in cells.obs.names:
        raise ValueError(f"{cells.name}: no column {found!r} in obs; it has {has}")
    return read_labels(cells.obs.column(found, 0, len(cells))).texts


def _cells_of(cells: Cells, labels: np.ndarray, state: str) -> np.ndarray:
    places = np.flatnonzero(labels == state)
    if len(places):
        return places
    names = sorted({str(label) for label in labels if label is not None})
    near = difflib.get_close_matches(state, names, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    raise ValueError(f"{cells.name}: no cells of the state {state!r}; {hint}There are {shown or 'no labels'}")


@dataclass(frozen=True)
class Direction:
    """The way from the mean embedding of the perturbed cells to that of the target state.

    Parameters
    ----------
    start, target
        Mean embeddings, float64, shape (size,).

    Raises
    ------
    ValueError
        If both are equal.
    """

    start: np.ndarray
    target: np.ndarray

    def __post_init__(self) -> None:
        """Refuse two states with one embedding."""
        if not self.length > 0:
            raise ValueError(
                "the mean embeddings of the perturbed cells and of the target state are equal: no direction"
            )

    @property
    def length(self) -> float:
        """Euclidean distance between both."""
        return float(np.linalg.norm(self.target - self.start))

    def progress(self, whole: np.ndarray, copies: np.ndarray) -> np.ndarray:
        """Return the share of the way that each copy has moved, shape (copies,): 1 is all of it.

        Parameters
        ----------
        whole
            Embedding of the cell, shape (size,).
        copies
            Embeddings after the perturbation, shape (copies, size).
        """
        return (copies - whole) @ (self.target - self.start) / self.length**2

    def approach(self, whole: np.ndarray, copies: np.ndarray) -> np.ndarray:
        """Return how much the cosine similarity to the target's mean has increased, shape (copies,).

        Parameters
        ----------
        whole, copies
            As for `progress`.
        """
        target = self.target / max(float(np.linalg.norm(self.target)), 1e-300)
        before = whole @ target / max(float(np.linalg.norm(whole)), 1e-300)
        return copies @ target / np.maximum(np.linalg.norm(copies, axis=1), 1e-300) - before


__all__ = ["ChosenCells", "Direction", "choose_cells", "draw_cells", "states_of"]
