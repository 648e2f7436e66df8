"""Compiled loops that check stored counts and their columns, and convert them to small types."""

import numpy as np

from cellglot.tokenization.kernels.jit import compiled


@compiled
def narrow_counts(values: np.ndarray, narrow: np.ndarray) -> int:
    """Copy numbers of any kind to `narrow`, uint16, both of shape (values,); return the largest.

    Return -1 if a value is negative, missing, not a whole number, or above 65,535.
    """
    largest, wrong = np.uint16(0), False
    for i in range(len(values)):
        value = values[i]
        whole = np.uint16(np.int32(value)) if (value >= 0) & (value <= 65535) else np.uint16(0)
        wrong |= whole != value
        narrow[i] = whole
        largest = max(largest, whole)
    return -1 if wrong else int(largest)


@compiled
def narrow_columns(columns: np.ndarray, narrow: np.ndarray, before: int, n_columns: int) -> int:
    """Copy columns to `narrow`, uint16, both of shape (values,); return how many are not above the one before.

    `before` is the column before the first, or -1. Return -1 if a column is not between 0 and `n_columns`, which is
    at most 65,536.
    """
    falls, wrong = 0, False
    for i in range(len(columns)):
        column = columns[i]
        wrong |= (column < 0) | (column >= n_columns)
        narrow[i] = np.uint16(column)
    for i in range(1, len(columns)):
        falls += narrow[i] <= narrow[i - 1]
    if len(columns) > 0 and columns[0] <= before:
        falls += 1
    return -1 if wrong else falls


__all__ = ["narrow_columns", "narrow_counts"]
