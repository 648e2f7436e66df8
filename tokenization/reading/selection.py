"""Some cells of a file as if they were all of it: those that meet a filter, in the order of the file."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cellglot.outputs import atomic
from cellglot.tokenization.count_matrix import CountRows, GenesOnly, read_rows
from cellglot.tokenization.reading.errors import CellFileError
from cellglot.tokenization.reading.filters import selected
from cellglot.tokenization.reading.obs import CellTable


FAR_APART = 64  # cells between two selected ones that are not read with them
CELLS_AT_ONCE = 1 << 10  # that are read with those between them


class NothingSelectedError(CellFileError):
    """No cell of a file meets a filter."""


def select_cells(
    table: CellTable, text: str, folder: Path | None = None, rename: Mapping[str, str] | None = None
) -> np.ndarray:
    """Return the numbers of the cells that meet a filter, in order, int64, shape (selected cells,).

    Parameters
    ----------
    folder
        Where the numbers are kept, for other processes and for a run that is resumed; they are then read through
        memory. By default they are kept in memory.

    Raises
    ------
    FilterError
        If the filter does not fit the table.
    NothingSelectedError
        If no cell meets the filter.
    """
    path = None if folder is None else folder / f"selected-{_digest(text, rename)}.npy"
    if path is None or not path.exists():
        rows = np.concatenate([np.zeros(0, dtype=np.int64), *selected(table, text, rename)])
        if not len(rows):
            where = table.source or "the AnnData"
            raise NothingSelectedError(f"{where}: none of its {len(table):,} cells meets the filter {text}")
        if path is None:
            return rows
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as temporary, open(temporary, "wb") as file:
            np.save(file, rows)
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _digest(text: str, rename: Mapping[str, str] | None) -> str:
    content = json.dumps([text, dict(rename or {})], sort_keys=True)
    return hashlib.blake2b(content.encode(), digest_size=8).hexdigest()


def of_cells(matrix: Any, rows: np.ndarray) -> Any:
    """Return some rows of a matrix of cells x genes, by numbers in ascending order."""
    if isinstance(matrix, GenesOnly):
        return GenesOnly(of_cells(matrix.matrix, rows), matrix.genes)
    return matrix.of_cells(rows) if hasattr(matrix, "of_cells") else SelectedRows(matrix, rows)


def of_table(table: CellTable, rows: np.ndarray) -> CellTable:
    """Return some rows of a table of cells, by numbers in ascending order."""
    return table.of_cells(rows) if hasattr(table, "of_cells") else SelectedTable(table, rows)


def runs_of(rows: np.ndarray, apart: int = 1) -> list[tuple[int, int]]:
    """Return ranges (start, stop) of ascending numbers that are at most `apart` from the one before."""
    if not len(rows):
        return []
    breaks = np.flatnonzero(np.diff(rows) > apart) + 1
    first, last = rows[np.concatenate([[0], breaks])], rows[np.concatenate([breaks - 1, [len(rows) - 1]])]
    return [(int(a), int(b) + 1) for a, b in zip(first, last, strict=True)]


class SelectedRows:
    """Some rows of a matrix of cells x genes.

    Parameters
    ----------
    matrix
        A matrix that `CountMatrix` reads.
    rows
        Numbers of the cells, ascending, shape (selected cells,).
    """

    def __init__(self, matrix: Any, rows: np.ndarray):
        self.matrix, self.rows = matrix, rows
        self.shape = (len(rows), int(matrix.shape[1]))

    @property
    def source(self) -> str:
        """The file, for messages."""
        return str(self.matrix.source)

    @source.setter
    def source(self, path: str) -> None:
        self.matrix.source = path

    @property
    def values_per_cell(self) -> int | None:
        """Stored values of a cell, on average; None for a dense matrix."""
        indptr = getattr(self.matrix, "indptr", None)
        if indptr is None:
            return getattr(self.matrix, "values_per_cell", None)
        n_cells = int(self.matrix.shape[0])
        return max(1, -(-int(indptr[n_cells]) // max(n_cells, 1)))

    def read_rows(self, start: int, stop: int) -> CountRows:
        """Read some of the selected cells; cells between them that are near are read and left out."""
        parts: list[CountRows] = []
        for low in range(start, stop, CELLS_AT_ONCE):
            wanted = np.asarray(self.rows[low : min(low + CELLS_AT_ONCE, stop)])
            for first, last in runs_of(wanted, FAR_APART):
                for begin in range(first, last, CELLS_AT_ONCE):
                    end = min(begin + CELLS_AT_ONCE, last)
                    own = wanted[(wanted >= begin) & (wanted < end)] - begin
                    parts.append(_rows_of(read_rows(self.matrix, begin, end), own))
        return joined(parts)


def _rows_of(block: CountRows, kept: np.ndarray) -> CountRows:
    if len(kept) == len(block):
        return block
    pieces = [slice(int(block.indptr[a]), int(block.indptr[b])) for a, b in runs_of(kept)]
    lengths = np.diff(block.indptr)[kept]
    return CountRows(
        np.concatenate([block.data[:0], *(block.data[p] for p in pieces)]),
        np.concatenate([block.indices[:0], *(block.indices[p] for p in pieces)]),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    )


def joined(parts: Sequence[CountRows]) -> CountRows:
    """Return the cells of several parts, one after the other."""
    if len(parts) == 1:
        return parts[0]
    ends = np.cumsum([0, *(int(part.indptr[-1]) for part in parts)])
    bounds = [part.indptr[1:] + end for part, end in zip(parts, ends[:-1], strict=True)]
    return CountRows(
        np.concatenate([part.data for part in parts]),
        np.concatenate([part.indices for part in parts]),
        np.concatenate([[0], *bounds]).astype(np.int64),
    )


class SelectedTable:
    """Some rows of a table of cells.

    Parameters
    ----------
    table
        The whole table.
    rows
        Numbers of the cells, ascending, shape (selected cells,).
    """

    def __init__(self, table: CellTable, rows: np.ndarray):
        self.table, self.rows = table, rows
        self.names, self.n_in_file = table.names, len(table)

    @property
    def source(self) -> str:
        """The file, for messages."""
        return self.table.source

    @source.setter
    def source(self, path: str) -> None:
        self.table.source = path

    def __len__(self) -> int:
        return len(self.rows)

    def _read(self, read: Any, start: int, stop: int) -> np.ndarray:
        rows = np.asarray(self.rows[start:stop])
        runs = runs_of(rows, FAR_APART)
        if not runs:
            return read(0, 0)
        parts = [read(first, last)[rows[(rows >= first) & (rows < last)] - first] for first, last in runs]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def index(self, start: int, stop: int) -> np.ndarray:
        """Read names of cells."""
        return self._read(self.table.index, start, stop)

    def column(self, name: str, start: int, stop: int) -> np.ndarray:
        """Read a column."""
        return self._read(lambda first, last: self.table.column(name, first, last), start, stop)

    def row_numbers(self, start: int, stop: int) -> np.ndarray:
        """Return the numbers of some cells in the file."""
        return np.asarray(self.rows[start:stop])

    def is_read(self, name: str) -> bool:
        """Whether a column is stored in a supported way."""
        return self.table.is_read(name)

    def series(self, name: str) -> pd.Series:
        """Read a whole column with its type."""
        return self.table.series(name).iloc[np.asarray(self.rows)].reset_index(drop=True)


__all__ = [
    "NothingSelectedError", "SelectedRows", "SelectedTable", "joined", "of_cells", "of_table", "runs_of",
    "select_cells",
]  # fmt: skip
