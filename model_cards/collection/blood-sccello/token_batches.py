"""Stream cells as padded batches of similar length, in bounded memory."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from .gene_encoding import TokenRows


BATCHES_AHEAD = 16  # sorted by length together


def batches_of_similar_length(
    parts: Iterator[TokenRows], batch_size: int, padded: Any
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Sort the cells of `BATCHES_AHEAD` batches by their number of tokens, the longest first.

    Parameters
    ----------
    parts
        Tokens of consecutive runs of cells.
    padded
        Function of (runs of cells, width) that returns arrays padded to this width.

    Yields
    ------
    cells : numpy.ndarray
        Numbers of the batch's cells, counted from 0 over all runs.
    batch : dict
        Name -> padded array.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: it must be at least 1")
    first = 0
    for encoded in _runs(parts, BATCHES_AHEAD * batch_size):
        order = np.argsort(-np.concatenate([np.diff(rows.indptr) for rows in encoded]), kind="stable")
        rows = [_one(part, cell) for part in encoded for cell in range(len(part))]
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            width = max(1, max(len(rows[i].tokens) for i in chosen))
            yield first + chosen, padded([rows[i] for i in chosen], width)
        first += len(order)


def _runs(parts: Iterator[TokenRows], n_cells: int) -> Iterator[list[TokenRows]]:
    waiting: list[TokenRows] = []
    for part in parts:
        waiting.append(part)
        if sum(len(p) for p in waiting) >= n_cells:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


def _one(rows: TokenRows, cell: int) -> TokenRows:
    low, stop = rows.indptr[cell], rows.indptr[cell + 1]
    values = None if rows.values is None else rows.values[low:stop]
    return TokenRows(rows.tokens[low:stop], values, np.array([0, stop - low]), rows.tokens_cut[cell : cell + 1])


__all__ = ["BATCHES_AHEAD", "batches_of_similar_length"]
