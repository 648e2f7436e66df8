"""Functions compiled by Numba, where loops over single counts are faster than passes in NumPy."""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np


_COUNT_TYPES = (np.uint8, np.uint16, np.float32)  # usual ones, for which loops are compiled; others are converted


def compiled(function: Callable) -> Any:
    """Compile a function where it first runs on a machine, in some seconds, and keep the result.

    It is kept beside the function's file or in the user's cache; where neither can be written, in memory alone.
    """
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:
        return numba.njit(nogil=True)(function)


def loop_arrays(
    counts: np.ndarray, columns: np.ndarray, indptr: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return counts, columns and offsets of sparse rows in types for which loops are compiled."""
    return (
        np.ascontiguousarray(counts, None if counts.dtype in _COUNT_TYPES else np.float64),
        np.ascontiguousarray(columns, None if columns.dtype == np.uint16 else np.int32),
        np.ascontiguousarray(indptr, dtype=np.int64),
    )


__all__ = ["compiled", "loop_arrays"]
