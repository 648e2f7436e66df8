"""Checked counts in the smallest types that hold them: often 3 bytes for a count and its column, not 8."""

import numpy as np

from cellglot.tokenization.count_matrix import CountMatrix, CountRows, GenesOnly
from cellglot.tokenization.reading.deflated_array import parts
from cellglot.tokenization.reading.errors import CellFileError, reading
from cellglot.tokenization.reading.matrices import StoredRows, canonical


_COUNTS, _COLUMNS = ("<f4", "<f8", "<i4", "<i8"), ("<i4", "<i8")  # as files have them; loops are compiled for these
_MOST_COLUMNS = 1 << 16


def small_rows(counts: CountMatrix, start: int, stop: int) -> CountRows:
    """Do as `CountMatrix.rows` does, and give counts and columns in the smallest unsigned integers that hold them.

    Usual matrices are checked and copied by a compiled loop, part by part as they are inflated; where that finds
    larger counts or bad values, and of all other matrices, the rows are read by `CountMatrix.rows`, with its errors.
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
    """Return checked counts and their columns in the smallest unsigned integers that hold them."""
    return CountRows(_smallest(rows.data), _smallest(rows.indices), rows.indptr)


def _smallest(numbers: np.ndarray) -> np.ndarray:
    return numbers.astype(np.min_scalar_type(int(numbers.max(initial=0))), copy=False)


def _narrowed(matrix: StoredRows, start: int, stop: int) -> CountRows | None:
    """Read rows of whole numbers up to 65,535 in columns that there are; None where they hold anything else."""
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
    if not n_counts == at == high - low:  # else the rest is what memory held before
        raise CellFileError(
            f"cells {start:,} to {stop:,} have {min(n_counts, at):,} of {high - low:,} values: cut short"
        )
    first = indptr[1:-1][np.diff(indptr[:-1]) > 0]  # of each cell that has counts, but for the first such cell
    first = first[first < len(columns)]
    if falls != np.count_nonzero(columns[first] <= columns[first - 1]):  # a gene stands twice, or they are mixed
        return in_smallest_types(canonical(CountRows(data.astype(np.int64), columns.astype(np.int32), indptr)))
    return CountRows(data.astype(np.uint8) if largest <= np.iinfo(np.uint8).max else data, _smallest(columns), indptr)


__all__ = ["in_smallest_types", "small_rows"]
