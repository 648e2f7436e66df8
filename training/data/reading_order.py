"""The order in which an epoch reads a large corpus: a function of seed and epoch that is computed place by place."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


TURNS = 4  # readers of batches by turns: the number of loader processes that share the reading evenly
MOST_LANES = 16  # parts of a batch that are read apart, by different processes of a run
LEAST_LANE_CELLS = 8
POOL = 24  # batches whose cells are sorted by length: more fill the batches better, and mix cell types less
LEAST_WINDOW = 8  # batches


class Order(NamedTuple):
    """What decides the order of an epoch of a corpus.

    Parameters
    ----------
    together
        Number of cells in one step, over all processes.
    """

    seed: int
    epoch: int
    together: int


class Place(NamedTuple):
    """Where a step of an epoch comes from: one window of a turn, and the number of the batch in the window."""

    turn: int
    window: int
    batch: int


@dataclass(frozen=True)
class Piece:
    """A run of cells of a block: the block, and the first and the end of the run among its cells."""

    block: int
    start: int
    stop: int


class EpochOrder:
    """The order of an epoch: blocks of cells in an order drawn by the seed, mixed within windows.

    The blocks, one after the other, are cut into equal parts: one for each pair of a turn and a lane. Step `s` takes
    its cells from the lanes of turn ``s % turns``, the same number from each. A part is read in windows: the cells of
    a window are drawn in any order, and cells of similar length come together. Lanes are read by different processes
    of a run and turns by different loader processes, but the order depends on neither.

    Parameters
    ----------
    kept
        Number of cells of each block, shape (blocks,).
    buffer_cells
        Number of cells of the windows of all turns and lanes together, about.
    """

    def __init__(self, kept: np.ndarray, order: Order, buffer_cells: int):
        self.order = order
        together = order.together
        self.n_cells = int(kept.sum())
        self.steps = -(-self.n_cells // together)
        self.turns = TURNS
        self.lanes = lanes_of(together)
        self.lane_cells = together // self.lanes
        self.window_steps = max(LEAST_WINDOW, buffer_cells // (self.turns * together))
        self._blocks = np.random.default_rng([order.seed, order.epoch]).permutation(np.flatnonzero(kept))
        self._ends = np.cumsum(kept[self._blocks])
        self._starts = self._part_starts()

    def _part_starts(self) -> np.ndarray:
        """Return the first place of each part in the sequence of blocks, shape (turns * lanes + 1,), by turns."""
        sizes = np.array([[self.turn_steps(turn) * self.lane_cells] * self.lanes for turn in range(self.turns)])
        if self.steps:
            left = self.n_cells - (self.steps - 1) * (self.order.together)  # cells of the last step
            shares = np.diff(np.arange(self.lanes + 1) * left // self.lanes)
            sizes[(self.steps - 1) % self.turns] += shares - self.lane_cells
        return np.concatenate([[0], np.cumsum(sizes)])

    def turn_steps(self, turn: int) -> int:
        """Return the number of steps of a turn."""
        return max(0, -(-(self.steps - turn) // self.turns))

    def place(self, step: int) -> Place:
        """Return where a step comes from. The first windows differ in size, so that not all turns read at once."""
        turn, number = step % self.turns, step // self.turns
        first = self._window_start(turn, 1)
        if number < first:
            return Place(turn, 0, number)
        window, batch = divmod(number - first, self.window_steps)
        return Place(turn, window + 1, batch)

    def _window_start(self, turn: int, window: int) -> int:
        """Return the number of the first step of a window among those of its turn."""
        first = self.window_steps * (turn + 1) // self.turns
        return 0 if window == 0 else first + (window - 1) * self.window_steps

    def window_batches(self, turn: int, window: int) -> int:
        """Return the number of steps of a window; 0 beyond the end of the epoch."""
        return max(
            0,
            min(self._window_start(turn, window + 1), self.turn_steps(turn)) - self._window_start(turn, window),
        )

    def pieces(self, turn: int, window: int, lane: int) -> list[Piece]:
        """Return the cells of a window of a lane, as runs of blocks."""
        part = turn * self.lanes + lane
        low, high = (
            min(int(self._starts[part]) + self._window_start(turn, w) * self.lane_cells, int(self._starts[part + 1]))
            for w in (window, window + 1)
        )
        found = []
        at = int(np.searchsorted(self._ends, low, side="right"))
        while low < high:
            begin = int(self._ends[at - 1]) if at else 0
            stop = min(high, int(self._ends[at]))
            found.append(Piece(int(self._blocks[at]), low - begin, stop - begin))
            low, at = stop, at + 1
        return found

    def batches(self, turn: int, window: int, lane: int, lengths: np.ndarray) -> list[np.ndarray]:
        """Divide the cells of a window of a lane into its part of each batch.

        Parameters
        ----------
        lengths
            Number of tokens of each cell of the window, shape (cells,).

        Returns
        -------
        list of numpy.ndarray
            For each batch of the window, the numbers of its cells; fewer than others in the last step of an epoch.
        """
        number = self.window_batches(turn, window)
        seed, epoch, _ = self.order
        drawn = np.random.default_rng([seed, epoch, 1, turn, window, lane]).permutation(len(lengths))
        together = np.random.default_rng([seed, epoch, 2, turn, window])  # the same for all lanes: similar lengths
        size, found = self.lane_cells, list[np.ndarray]()
        pools = -(-number // POOL) if number else 0
        for first, stop in zip(*_bounds(number, pools), strict=True):
            pool = drawn[first * size : stop * size]
            pool = pool[np.argsort(-lengths[pool], kind="stable")]
            parts = [pool[i * size : (i + 1) * size] for i in range(stop - first)]
            last = turn == (self.steps - 1) % self.turns and stop == number
            last = last and self._window_start(turn, window) + number == self.turn_steps(turn)
            full = parts[:-1] if last else parts
            found += [full[i] for i in together.permutation(len(full))] + ([parts[-1]] if last else [])
        return found


def _bounds(number: int, parts: int) -> tuple[list[int], list[int]]:
    edges = [number * i // parts for i in range(parts + 1)] if parts else [0]
    return edges[:-1], edges[1:]


def lanes_of(together: int) -> int:
    """Return the number of equal parts of a batch that are read apart."""
    most = max(1, min(MOST_LANES, together // LEAST_LANE_CELLS))
    return next(lanes for lanes in range(most, 0, -1) if together % lanes == 0)


__all__ = ["EpochOrder", "Order", "Piece", "Place", "lanes_of"]
