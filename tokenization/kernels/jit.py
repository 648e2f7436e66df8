"""Compile functions with Numba."""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np


_COUNT_TYPES = (np.uint8, np.uint16, np.float32)  # other types of counts are converted to float64


def compiled(function: Callable) -> Any:
    """Compile a function when it first runs, which takes some seconds, and cache the result.

    The cache is in the folder of the function's file or the user's cache; if both are read-only, in memory.
    """
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:
        return numba.njit(nogil=True)(function)


def loop_arrays(
    counts: np.ndarray, columns: np.ndarray, indptr: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return counts, columns and offsets of sparse rows in the types of compiled loops."""
    return (
        np.ascontiguousarray(counts, None if counts.dtype in _COUNT_TYPES else np.float64),
        np.ascontiguousarray(columns, None if columns.dtype == np.uint16 else np.int32),
        np.ascontiguousarray(indptr, dtype=np.int64),
    )


__all__ = ["compiled", "loop_arrays"]
