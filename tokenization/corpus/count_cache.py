"""Keep counts of the first pass over a corpus for the second one, in the smallest types that fit them."""

import os
import shutil
from pathlib import Path

import numpy as np
import xxhash

from cellglot.outputs.writing import temporary_name
from cellglot.tokenization.count_matrix import CountMatrix, CountRows, GenesOnly
from cellglot.tokenization.reading.errors import CellFileError, reading
from cellglot.tokenization.reading.hdf5_arrays import parts
from cellglot.tokenization.reading.matrices import StoredRows, canonical


MOST_BYTES = 2 << 30
_FREE_FOR_OTHERS = 4  # at most a quarter of the free disk space is used
_LOOKS = 32  # a process may fill this fraction of the space that is left before it looks again


class KeptCounts:
    """A folder of chunks of counts, shared by several processes; chunks that do not fit are not kept."""

    def __init__(self, folder: str | os.PathLike, most_bytes: int = MOST_BYTES):
        self.folder, self.most_bytes = Path(folder), most_bytes
        self._granted, self._full = 0, False

    def keep(self, name: str, rows: CountRows) -> None:
        """Keep a chunk of checked counts, unless there is no room."""
        path = self.folder / f"{name}.npy"
        temporary = temporary_name(path)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not self._fits(rows.data.nbytes + rows.indices.nbytes + rows.indptr.nbytes):
                return
            with open(temporary, "wb") as file:
                arrays = (rows.data, rows.indices, rows.indptr)
                for array in arrays:
                    np.save(file, array)
                file.write(_digest(arrays))
            temporary.replace(path)
        except OSError:  # a full disk: chunks are read from their file again
            temporary.unlink(missing_ok=True)

    def _fits(self, n_bytes: int) -> bool:
        """Whether there is room; the size of the folder is measured rarely, because that takes time."""
        if n_bytes > self._granted and not self._full:
            kept = sum(entry.stat().st_size for entry in os.scandir(self.folder))
            free = shutil.disk_usage(self.folder).free
            left = min(self.most_bytes, free // _FREE_FOR_OTHERS) - kept
            self._granted, self._full = max(left // _LOOKS, n_bytes), left < n_bytes
        self._granted -= n_bytes
        return not self._full

    def load(self, name: str) -> CountRows | None:
        """Return a chunk; None if it was not kept, or is damaged."""
        try:
            with open(self.folder / f"{name}.npy", "rb") as file:
                data, indices, indptr = (np.load(file, allow_pickle=False) for _ in range(3))
                digest = file.read()
        except (OSError, ValueError, EOFError):
            return None
        return CountRows(data, indices, indptr) if digest == _digest((data, indices, indptr)) else None


def _digest(arrays: tuple[np.ndarray, ...]) -> bytes:
    state = xxhash.xxh3_128()
    for array in arrays:
        state.update(np.ascontiguousarray(array).data)
    return state.digest()


_COUNTS, _COLUMNS = ("<f4", "<f8", "<i4", "<i8"), ("<i4", "<i8")  # types for which loops are compiled
_MOST_COLUMNS = 1 << 16


def small_rows(counts: CountMatrix, start: int, stop: int) -> CountRows:
    """Read rows as `CountMatrix.rows` does, with counts and columns in the smallest unsigned integers that fit.

    Usual matrices are checked and copied by a compiled loop while they are inflated. Other matrices, and rows with
    larger counts or invalid values, are read by `CountMatrix.rows`, with its errors.
    """
    matrix, rows = counts.matrix, None
    stored = matrix.matrix if isinstance(matrix, GenesOnly) else matrix
    if isinstance(stored, StoredRows) and not counts.recover:
        with reading(stored.source):
            rows = _narrowed(stored, start, stop)
    if rows is None:
        return in_smallest_types(counts.rows(start, stop))
    return in_smallest_types(matrix.select(rows)) if isinstance(matrix, GenesOnly) else rows


def in_smallest_types(rows: CountRows) -> CountRows:
    """Return checked counts and their columns in the smallest unsigned integers that fit."""
    return CountRows(_smallest(rows.data), _smallest(rows.indices), rows.indptr)


def _smallest(numbers: np.ndarray) -> np.ndarray:
    return numbers.astype(np.min_scalar_type(int(numbers.max(initial=0))), copy=False)


def _narrowed(matrix: StoredRows, start: int, stop: int) -> CountRows | None:
    """Read rows of whole numbers up to 65,535 in existing columns; None if there is anything else."""
    from cellglot.tokenization.kernels.narrowing import narrow_columns, narrow_counts  # Numba, slow to load

    if matrix.shape[1] > _MOST_COLUMNS:
        return None
    if np.dtype(matrix.data.dtype).str not in _COUNTS or np.dtype(matrix.indices.dtype).str not in _COLUMNS:
        return None
    low, high, indptr = matrix.offsets(start, stop)
    data, columns = (np.empty(high - low, dtype=np.uint16) for _ in range(2))
    largest = at = 0
    for part in parts(matrix.data, low, high):
        found = narrow_counts(part, data[at : at + len(part)])
        if found < 0:
            return None
        largest, at = max(largest, found), at + len(part)
    n_counts, falls, at, last = at, 0, 0, -1
    for part in parts(matrix.indices, low, high):
        found = narrow_columns(part, columns[at : at + len(part)], last, matrix.shape[1])
        if found < 0:
            return None
        falls, at, last = falls + found, at + len(part), int(part[-1])
    if not n_counts == at == high - low:  # the rest was not filled
        raise CellFileError(
            f"cells {start:,} to {stop:,} have {min(n_counts, at):,} of {high - low:,} values: the file is cut short"
        )
    first = indptr[1:-1][np.diff(indptr[:-1]) > 0]  # of each cell with counts, except the first one
    first = first[first < len(columns)]
    if falls != np.count_nonzero(columns[first] <= columns[first - 1]):  # a gene occurs twice, or genes are unsorted
        return in_smallest_types(canonical(CountRows(data.astype(np.int64), columns.astype(np.int32), indptr)))
    return CountRows(data.astype(np.uint8) if largest <= np.iinfo(np.uint8).max else data, _smallest(columns), indptr)


__all__ = ["KeptCounts", "in_smallest_types", "small_rows"]
