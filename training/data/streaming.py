"""Cells of a corpus of any size, read block by block in an order that depends only on seed and epoch."""

import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Sampler

from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.training.data.blocks import Block, BlockReader
from cellglot.training.data.cell_values import TOKEN_COLUMNS
from cellglot.training.data.dataset import EpochSampler, special_tokens
from cellglot.training.data.reading_order import EpochOrder, Order


BUFFER_TOKENS = 1 << 24  # of the cells that are mixed; smaller corpora are mixed as a whole
RECENT_BLOCKS = 2  # that are kept for keys without an order, which are asked for one after the other


class StreamedCells(Dataset):
    """Cells of one or more splits of a corpus, on disk or at an address such as ``hf://``, in bounded memory.

    The data are not copied. A small corpus is mixed as a whole, by `EpochSampler`. Of a large one, row groups are read
    whole, in an order drawn by the seed, and mixed in a buffer (`EpochOrder`). `sampler` gives the keys. Any key may
    be asked for at any time: a run that resumes in the middle of an epoch reads at most one buffer again.

    Cells that express no gene of the vocabulary are left out; `without_genes` is their number. Tokens and values are
    checked when they are read (`DamagedCellError`), and so is that the shards do not change (`CorpusError`).

    Parameters
    ----------
    corpus, split, columns, least_tokens, keep
        As for `cellglot.training.data.dataset.CellDataset`.
    only_ids
        Read token ids without expression values and totals.
    buffer_tokens
        Number of tokens of the cells that are mixed, about. A larger buffer mixes better.

    Raises
    ------
    ValueError
        If there are no such cells, or none with enough tokens.
    CorpusError
        If a shard is missing or cannot be read, or a network source does not answer.
    """

    _thread: "_Thread"
    _recent: "OrderedDict[int, Block]"
    _epoch: "_Epoch | None"

    def __init__(
        self,
        corpus: Corpus,
        split: str | Sequence[str],
        columns: Sequence[str] = (),
        least_tokens: int = 0,
        keep: np.ndarray | None = None,
        only_ids: bool = False,
        buffer_tokens: int = BUFFER_TOKENS,
    ):
        splits = [split] if isinstance(split, str) else list(split)
        shards = [shard for part in splits for shard in corpus.shards(part)]
        if not shards:
            raise ValueError(f"{corpus.folder} has no {' and '.join(splits)} cells")
        with_genes = special_tokens(corpus) + 1
        self.reader = BlockReader(shards, int(corpus.manifest["vocab_size"]), max(least_tokens, with_genes), keep)
        self.chosen = int(self.reader.count(0).sum())
        self.without_genes = self.chosen - int(self.reader.count(with_genes).sum())
        self.left_out = self.chosen - len(self)
        tokens = [c for c in TOKEN_COLUMNS if c in self.reader.columns and (c == "input_ids" or not only_ids)]
        self.columns, self.token_columns = list(dict.fromkeys([*tokens, *columns])), tokens
        of_splits = [shard for shard in corpus.manifest["shards"] if shard["split"] in splits]
        self.mean_tokens = sum(s["tokens"] for s in of_splits) / max(1, sum(s["cells"] for s in of_splits))
        self.buffer_tokens = buffer_tokens
        self._forget()
        if not len(self):
            wanted = f"has {least_tokens:,} tokens or more" if least_tokens > 1 else "expresses a gene"
            empty = f"; {self.without_genes:,} of {self.chosen:,} express no gene of the vocabulary"
            raise ValueError(
                f"no {' or '.join(splits)} cell of {corpus.folder} {wanted}{empty if self.without_genes else ''}"
            )

    def __len__(self) -> int:
        """Return the number of cells."""
        return int(self.reader.first_cell[-1])

    @property
    def is_small(self) -> bool:
        """Whether the corpus is mixed as a whole."""
        return len(self) * self.mean_tokens <= self.buffer_tokens

    @property
    def order(self) -> str:
        """Name of the order of an epoch, which changes if a later version reads in another order."""
        return "cells" if self.is_small else "blocks"

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each cell, shape (cells,); read from the shards."""
        return self.reader.lengths()

    def count_longer(self, most_tokens: int) -> int:
        """Count the cells with more tokens."""
        longer = self.reader.count(max(most_tokens + 1, self.reader.least_tokens))
        return int(longer.sum())

    def sampler(self, together: int, seed: int) -> Sampler:
        """Return the sampler of an epoch, for batches of `together` cells over all processes."""
        if self.is_small:
            return EpochSampler(self.lengths, together, seed)
        return StreamSampler(len(self), together, seed)

    def __getitem__(self, key: Any) -> dict[str, Any]:
        """Read one cell."""
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[Any]) -> list[dict[str, Any]]:
        """Read some cells.

        Parameters
        ----------
        keys
            From `StreamSampler`, (order, place in the epoch); from `EpochSampler`, (epoch, cell); or numbers of cells
            (epoch -1). The cell -1 and places without a cell are padding for the last batch; they have no tokens and
            no label.
        """
        if os.getpid() != self._process:
            self._forget()
        pairs = [key if isinstance(key, tuple) else (-1, key) for key in keys]
        if pairs and isinstance(pairs[0][0], Order):
            return self._in_order(pairs[0][0], np.array([place for _, place in pairs]))
        return [self._by_number(epoch, int(cell)) for epoch, cell in pairs]

    def _by_number(self, epoch: int, cell: int) -> dict[str, Any]:
        if cell < 0:
            return self._padding(epoch)
        number = int(np.searchsorted(self.reader.first_cell, cell, side="right")) - 1
        block = self._recent.get(number)
        if block is None:
            block = self._recent[number] = self.reader.blocks([number], self.columns)[0]
            if len(self._recent) > RECENT_BLOCKS and not self.is_small:
                self._recent.popitem(last=False)
        return block.example(epoch, cell - block.first)

    def _padding(self, epoch: int) -> dict[str, Any]:
        return {"epoch": epoch, "cell": -1, **{c: np.empty(0) for c in self.token_columns}}

    def _in_order(self, order: Order, places: np.ndarray) -> list[dict[str, Any]]:
        if self._epoch is None or self._epoch.plan.order != order:
            plan = EpochOrder(self.reader.kept, order, int(self.buffer_tokens / self.mean_tokens))
            self._epoch = _Epoch(plan, self.reader, self.columns, self._thread)
        found = self._epoch.cells(places)
        return [self._padding(order.epoch) if c is None else c[0].example(order.epoch, c[1]) for c in found]

    def _forget(self) -> None:
        """Drop cells, files and threads, which a new process does not share."""
        self._process = os.getpid()
        self._thread = _Thread()
        self._recent = OrderedDict()
        self._epoch = None
        self.reader.forget()

    def __getstate__(self) -> dict[str, Any]:
        """Return what a new process needs."""
        own = ("_thread", "_recent", "_epoch", "_process")
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()


class StreamSampler(Sampler):
    """Yields the places of an epoch of a large corpus, as keys of `StreamedCells`.

    As those of `EpochSampler`, batches do not depend on the number of processes, each cell is seen once an epoch, and
    the last batch is padded.

    Parameters
    ----------
    n_cells
        Number of cells of the corpus.
    together
        Number of cells in one step, over all processes.
    seed
        Seed of the order.
    """

    def __init__(self, n_cells: int, together: int, seed: int):
        self.n_cells, self.together, self.seed = n_cells, together, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next order."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of places, including padding."""
        return -(-self.n_cells // self.together) * self.together

    def __iter__(self) -> Iterator[tuple[Order, int]]:
        """Yield (order, place) pairs."""
        order = Order(self.seed, self.epoch, self.together)
        for place in range(len(self)):
            yield order, place


Cells = list[tuple[Block, int]]


class _Thread:
    """A thread that reads ahead, started when it is needed."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None

    def submit(self, *call: Any) -> "Future[Any]":
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, "cells")
        return self._pool.submit(*call)


class _Epoch:
    """Reads the cells of an epoch of a large corpus by their places: windows that are in use, and the next one.

    Windows are read in one thread, in the order in which they are asked for.
    """

    def __init__(self, plan: EpochOrder, reader: BlockReader, columns: Sequence[str], thread: _Thread):
        self.plan, self.reader, self.columns, self.thread = plan, reader, columns, thread
        self._windows: dict[int, tuple[int, dict[int, list[Cells]]]] = {}
        self._ahead: dict[int, tuple[int, tuple[int, ...], Future[dict[int, list[Cells]]]]] = {}
        self._last: dict[tuple[int, int], tuple[int, Block]] = {}  # block that ends a window, of which the next begins

    def cells(self, places: np.ndarray) -> list[tuple[Block, int] | None]:
        """Return blocks and numbers of the cells at some places, None for padding."""
        steps, in_step = np.divmod(places, self.plan.order.together)
        lanes, numbers = np.divmod(in_step, self.plan.lane_cells)
        wanted = tuple(np.unique(lanes).tolist())
        batches = {step: self._batch(step, wanted) for step in np.unique(steps).tolist()}
        found: list[tuple[Block, int] | None] = []
        for step, lane, number in zip(steps.tolist(), lanes.tolist(), numbers.tolist(), strict=True):
            cells = batches[step][lane]
            found.append(cells[number] if number < len(cells) else None)
        return found

    def _batch(self, step: int, lanes: tuple[int, ...]) -> dict[int, Cells]:
        """Return the cells of a step from some lanes; read ahead when few steps of the window are left."""
        turn, number, batch = self.plan.place(step)
        held, window = self._windows.get(turn, (-1, {}))
        if held != number or not set(lanes) <= window.keys():
            window = self._read_ahead(turn, number, lanes).result()
            self._windows[turn] = (number, window)
        left = self.plan.window_batches(turn, number) - batch
        if left <= max(1, self.plan.window_steps // 4) and self.plan.window_batches(turn, number + 1):
            self._read_ahead(turn, number + 1, lanes)
        return {lane: window[lane][batch] for lane in lanes}

    def _read_ahead(self, turn: int, number: int, lanes: tuple[int, ...]) -> "Future[dict[int, list[Cells]]]":
        held = self._ahead.get(turn)
        if held is None or held[:2] != (number, lanes):
            held = self._ahead[turn] = (number, lanes, self.thread.submit(self._read, turn, number, lanes))
        return held[2]

    def _read(self, turn: int, number: int, lanes: tuple[int, ...]) -> dict[int, list[Cells]]:
        """Read a window: for each lane, the cells of each batch."""
        pieces = {lane: self.plan.pieces(turn, number, lane) for lane in lanes}
        blocks = dict(self._last[turn, lane] for lane in lanes if (turn, lane) in self._last)
        wanted = dict.fromkeys(piece.block for of_lane in pieces.values() for piece in of_lane)
        missing = [block for block in wanted if block not in blocks]
        blocks.update(zip(missing, self.reader.blocks(missing, self.columns), strict=True))
        window = {}
        for lane, of_lane in pieces.items():
            if of_lane:
                self._last[turn, lane] = (of_lane[-1].block, blocks[of_lane[-1].block])
            cells = [(blocks[p.block], number) for p in of_lane for number in range(p.start, p.stop)]
            lengths = [blocks[p.block].lengths[p.start : p.stop] for p in of_lane]
            whole = np.concatenate(lengths) if lengths else np.empty(0, dtype=np.int64)
            batches = self.plan.batches(turn, number, lane, whole)
            window[lane] = [[cells[i] for i in batch.tolist()] for batch in batches]
        return window


__all__ = ["BUFFER_TOKENS", "StreamSampler", "StreamedCells"]
