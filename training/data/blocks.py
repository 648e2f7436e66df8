"""Row groups of token Parquet: what their footers say, and their cells in memory."""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cellglot.inputs import InputError, is_remote, reading
from cellglot.tokenization.corpus.check import AGAIN, CorpusError
from cellglot.tokenization.corpus.sources import ShardError, ShardMark, open_parquet, retried
from cellglot.training.data.cell_values import TOKEN_COLUMNS, DamagedCellError, column_values, find_damage


OPEN_SHARDS = 16
AT_ONCE = 8  # requests to a network source
OPENING_THREADS = 4
ROWS_AT_ONCE = 1 << 10  # of small blocks
UNKNOWN = np.iinfo(np.int32).max


class Block:
    """The cells of a row group in memory.

    Parameters
    ----------
    names, values
        Columns, and the values of each for the cells that are kept; token ids are the first.
    first
        Number of the first cell of the block among all cells that are kept.
    """

    def __init__(self, names: list[str], values: list[list[Any]], first: int):
        self.names, self.values, self.first = names, values, first
        self.lengths = np.array([len(ids) for ids in values[0]], dtype=np.int64)

    def example(self, epoch: int, cell: int) -> dict[str, Any]:
        """Return a cell, by its number in the block."""
        found: dict[str, Any] = {"epoch": epoch, "cell": self.first + cell}
        for name, values in zip(self.names, self.values, strict=True):
            found[name] = values[cell]
        return found


class BlockReader:
    """Reads row groups of shards, the blocks of a corpus; of network sources again if a read fails.

    Only a few numbers of each block are kept in memory. Shards are opened when they are needed.

    Parameters
    ----------
    shards
        Paths or addresses.
    vocab_size
        Number of token ids.
    least_tokens
        Number of tokens from which cells are kept.
    keep
        Whether to keep each row of the shards, shape (rows,); by default all.

    Attributes
    ----------
    columns : list of str
        Columns of the first shard.
    rows, kept : numpy.ndarray
        Number of rows of each block, and of cells that are kept; shape (blocks,).

    Raises
    ------
    CorpusError
        If a shard is missing or cannot be read, or a network source does not answer.
    """

    def __init__(self, shards: Sequence[str], vocab_size: int, least_tokens: int = 0, keep: np.ndarray | None = None):
        self.shards, self.vocab_size = list(shards), vocab_size
        self.least_tokens, self.keep = least_tokens, keep
        self.is_remote = is_remote(shards[0])
        self.forget()
        self._marks = [ShardMark(shard) for shard in shards]
        with ThreadPoolExecutor(AT_ONCE if self.is_remote else OPENING_THREADS) as threads:
            footers = list(threads.map(self._footer, range(len(shards))))
        self.columns = footers[0][1]
        table = np.concatenate([groups for groups, _ in footers]).reshape(-1, 3)
        self._shard = np.repeat(np.arange(len(shards)), [len(groups) for groups, _ in footers])
        self._first_block = np.searchsorted(self._shard, np.arange(len(shards)))
        self.rows, self._shortest, self._longest = table[:, 0].astype(np.int64), table[:, 1], table[:, 2]
        self._first_row = np.concatenate([[0], np.cumsum(self.rows)])
        self.kept = self.count(least_tokens)
        self.first_cell = np.concatenate([[0], np.cumsum(self.kept)])

    def _footer(self, shard: int) -> tuple[np.ndarray, list[str]]:
        """Return rows, shortest and longest cell of each row group of a shard, and the names of its columns."""
        with self._readable(shard):
            file = self._open(shard)
            metadata, names = file.metadata, file.schema_arrow.names
            found = np.empty((metadata.num_row_groups, 3), dtype=np.int64)
            length = 0
            for number in range(metadata.num_row_groups):
                group = metadata.row_group(number)
                if not number:  # `metadata.schema` would keep the whole footer in memory, by a cycle of references
                    leaves = [group.column(i).path_in_schema for i in range(group.num_columns)]
                    length = leaves.index("length")
                statistics = group.column(length).statistics
                known = statistics is not None and statistics.has_min_max
                found[number] = (group.num_rows, *((statistics.min, statistics.max) if known else (0, UNKNOWN)))
        return found, names

    # ---------------------------------------------------------------- numbers of cells

    def count(self, least: int) -> np.ndarray:
        """Count the cells of each block with `least` tokens or more, shape (blocks,); 0 counts all.

        Lengths are read only where the footers leave it open.
        """
        counted = self._chosen() * (self._longest >= least)
        for block, lengths in self._lengths((self._shortest < least) & (self._longest >= least)):
            counted[block] = (lengths >= least).sum()
        return counted

    def lengths(self) -> np.ndarray:
        """Return the number of tokens of each cell that is kept, shape (cells,)."""
        found = [lengths[lengths >= self.least_tokens] for _, lengths in self._lengths(self.rows > 0)]
        return np.concatenate(found).astype(np.int64)

    def _chosen(self) -> np.ndarray:
        if self.keep is None:
            return self.rows.copy()
        sums = np.concatenate([[0], np.cumsum(self.keep)])
        return sums[self._first_row[1:]] - sums[self._first_row[:-1]]

    def _lengths(self, wanted: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the blocks for which `wanted` is true, with the lengths of their rows that `keep` keeps."""
        for shard in np.unique(self._shard[wanted]).tolist():
            blocks = np.flatnonzero(wanted & (self._shard == shard))
            column = self._read(shard, blocks, ["length"])["length"].to_numpy()
            for block, lengths in zip(
                blocks.tolist(), np.split(column, np.cumsum(self.rows[blocks])[:-1]), strict=True
            ):
                rows = slice(self._first_row[block], self._first_row[block + 1])
                yield block, lengths if self.keep is None else lengths[self.keep[rows]]

    # ---------------------------------------------------------------- cells

    def blocks(self, numbers: Sequence[int], columns: Sequence[str]) -> list[Block]:
        """Read the cells of some blocks, and check their values; from a network source several blocks at once.

        Parameters
        ----------
        columns
            Columns to read; ``input_ids`` is the first.

        Raises
        ------
        DamagedCellError
            If a value is not one that a tokenizer writes; names the shard and the row.
        CorpusError
            If a shard changed, or cannot be read.
        """
        runs = self._runs(np.array(numbers, dtype=np.int64))
        if not self.is_remote or len(runs) < 2:
            read = [self._run(run, columns) for run in runs]
        else:
            with ThreadPoolExecutor(AT_ONCE) as threads:
                read = list(threads.map(lambda run: self._run(run, columns), runs))
        found = {
            number: block
            for run, of_run in zip(runs, read, strict=True)
            for number, block in zip(run, of_run, strict=True)
        }
        return [found[number] for number in numbers]

    def _runs(self, numbers: np.ndarray) -> list[np.ndarray]:
        """Divide blocks into those that are read at once: small ones of the same shard, in order."""
        runs: list[np.ndarray] = []
        ordered = np.sort(numbers)
        for shard in np.unique(self._shard[ordered]).tolist():
            of_shard = ordered[self._shard[ordered] == shard]
            before = np.cumsum(self.rows[of_shard]) - self.rows[of_shard]
            runs += np.split(of_shard, np.flatnonzero(np.diff(before // ROWS_AT_ONCE)) + 1)
        return runs

    def _run(self, run: np.ndarray, columns: Sequence[str]) -> list[Block]:
        """Read blocks of one shard together."""
        table = self._read(int(self._shard[run[0]]), run, list(columns))
        values = [column_values(table.column(name)) for name in columns]
        tokens = {name: of for name, of in zip(columns, values, strict=True) if name in TOKEN_COLUMNS}
        edges = np.concatenate([[0], np.cumsum(self.rows[run])])
        damage = find_damage(tokens, self.vocab_size)
        if damage is not None:
            at = int(np.searchsorted(edges, damage[0], side="right")) - 1
            self._refuse(int(run[at]), damage[0] - int(edges[at]), damage[1])
        long_enough = np.array([len(ids) for ids in values[0]], dtype=np.int64) >= self.least_tokens
        made = []
        for number, low, high in zip(run.tolist(), edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            kept = long_enough[low:high]
            if self.keep is not None:
                kept = kept & self.keep[self._first_row[number] : self._first_row[number + 1]]
            if kept.sum() != self.kept[number]:
                self._refuse(
                    number, 0, f"numbers of tokens do not match the column 'length' in the {len(kept):,} rows"
                )
            rows = None if kept.all() else np.flatnonzero(kept).tolist()
            own = [of[low:high] if rows is None else [of[low + row] for row in rows] for of in values]
            made.append(Block(list(columns), own, int(self.first_cell[number])))
        return made

    def _refuse(self, block: int, row: int, what: str) -> None:
        shard = int(self._shard[block])
        row += int(self._first_row[block] - self._first_row[self._first_block[shard]])
        raise DamagedCellError(
            f"{self.shards[shard]}, row {row:,}: {what}. The corpus is damaged: run cellglot tokenize --overwrite"
        )

    def _read(self, shard: int, blocks: np.ndarray, columns: list[str]) -> pa.Table:
        """Read columns of some blocks of a shard."""
        groups = (blocks - self._first_block[shard]).tolist()
        with self._readable(shard):
            self._marks[shard].check()
            file = self._opened(shard)
            if not self.is_remote:
                return file.read_row_groups(groups, columns=columns, use_threads=False)
            path, footer = self.shards[shard], file.metadata  # opened again for each try: a connection may be broken
            return retried(
                path, lambda: open_parquet(path, footer).read_row_groups(groups, columns, use_threads=False)
            )

    def _open(self, shard: int) -> pq.ParquetFile:
        path = self.shards[shard]
        return retried(path, lambda: open_parquet(path)) if self.is_remote else open_parquet(path)

    def _opened(self, shard: int) -> pq.ParquetFile:
        """Return a file among the last that were read, or open it."""
        with self._lock:
            file = self._files.pop(shard, None)
        if file is None:
            file = self._open(shard)
        with self._lock:
            self._files[shard] = file
            if len(self._files) > OPEN_SHARDS:
                self._files.popitem(last=False)
        return file

    @contextmanager
    def _readable(self, shard: int) -> Iterator[None]:
        """Raise errors of reading as `CorpusError`."""
        path = self.shards[shard]
        try:
            with reading(path, AGAIN):
                yield
        except CorpusError:
            raise
        except (InputError, OSError) as error:
            missing = isinstance(error, FileNotFoundError)
            what = "is missing" if missing else f"is not a readable Parquet file ({error})"
            raise ShardError(f"{path} {what}: {AGAIN}") from error

    # ---------------------------------------------------------------- processes

    def forget(self) -> None:
        """Close files, which a new process may not share."""
        self._files: OrderedDict[int, pq.ParquetFile] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Return what a new process needs."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_files", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.forget()


__all__ = ["Block", "BlockReader"]
