"""Sparse matrices in zarr: tell chunks that were left out as zeros from those missing in an incomplete copy."""

from collections.abc import Callable
from typing import Any

import numpy as np

from cellglot.tokenization.reading.chunk_counts import absent_chunks, expected_chunks
from cellglot.tokenization.reading.errors import CellFileError


class CheckedArray:
    """A one-dimensional zarr array whose chunks are counted before its first value is read.

    Parameters
    ----------
    check
        Called once if chunks are missing; raises if these cannot be zeros.
    """

    def __init__(self, array: Any, check: Callable[[], None]):
        self.array, self.shape, self.dtype = array, array.shape, array.dtype
        self._check: Callable[[], None] | None = check

    def __getitem__(self, place: int | slice) -> Any:
        if self._check is not None:
            if absent_chunks(self.array):
                self._check()
            self._check = None
        return self.array[place]


def checked_arrays(group: Any, n_minor: int) -> tuple[Any, Any, Any]:
    """Return data, indices and indptr of a sparse matrix in zarr so that a missing chunk is not read as zeros.

    Writers may leave out chunks that contain only zeros. Stored counts are not zeros; indices are zeros only if each
    row has a value in the first column alone; offsets are zeros only if the matrix begins with empty rows. The
    matrix is compressed by rows, or by columns: then read "column" for "row" here.
    """
    data, indices, indptr = group["data"], group["indices"], group["indptr"]

    def check_data() -> None:
        raise _missing(data, "stored counts are not 0")

    def check_indices() -> None:
        starts = np.asarray(indptr[:])
        length = int((indices.shards or indices.chunks)[0])
        for low in range(0, indices.shape[0], length):
            numbers = np.asarray(indices[low : low + length])
            if n_minor > 1 and not numbers.any() and not np.isin(np.arange(low, low + len(numbers)), starts).all():
                raise _missing(indices, f"the indices from {low:,} on would be 0 more than once in a row or column")

    def check_indptr() -> None:
        offsets = np.asarray(indptr[:]).astype(np.int64)
        if (np.diff(offsets) < 0).any() or offsets[-1] != data.shape[0]:
            raise _missing(indptr, "its offsets would decrease to 0")
        first = int(offsets[np.argmax(offsets > 0)])  # values of the first row that has any
        if first > n_minor or len(np.unique(indices[:first])) < first:
            raise _missing(indptr, f"{first:,} values would belong to one row or column, some to one place")

    return CheckedArray(data, check_data), CheckedArray(indices, check_indices), CheckedArray(indptr, check_indptr)


def _missing(array: Any, why: str) -> CellFileError:
    n = absent_chunks(array)
    return CellFileError(
        f"{array.name.lstrip('/')}: {n:,} of {expected_chunks(array):,} chunks {'is' if n == 1 else 'are'} missing "
        f"and cannot be zeros ({why}): the copy is incomplete, copy the store again"
    )


__all__ = ["CheckedArray", "checked_arrays"]
