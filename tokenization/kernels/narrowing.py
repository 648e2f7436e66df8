"""The loops that check stored counts and their columns, and make them small, compiled by Numba."""

import numpy as np

from cellglot.tokenization.kernels.jit import compiled


@compiled
def narrow_counts(values: np.ndarray, narrow: np.ndarray) -> int:
    """Copy counts to uint16.

    Parameters
    ----------
    values
        Numbers of any kind, shape (values,).
    narrow
        Receives them, uint16, shape (values,).

    Returns
    -------
    int
        The largest; -1 if a value is negative, missing, no whole number or above 65,535.
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
    """Copy columns to uint16, and count how often one is not above that before it.

    Parameters
    ----------
    columns
        Integers, shape (values,).
    narrow
        Receives them, uint16, shape (values,).
    before
        The column before the first, -1 for none.
    n_columns
        Columns there are, at most 65,536.

    Returns
    -------
    int
        The number; -1 if a column is none of those there are.
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
