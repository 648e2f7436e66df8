"""The counts of some cells of an opened matrix, streamed like those of all."""

from collections.abc import Iterator

import numpy as np

from cellglot.tokenization.count_matrix import CountMatrix, CountRows


class ChosenCounts(CountMatrix):
    """Counts of some cells of an opened matrix.

    Parameters
    ----------
    counts
        The opened matrix.
    numbers
        Of the cells, ascending, shape (cells,).
    """

    def __init__(self, counts: CountMatrix, numbers: np.ndarray):
        self.__dict__.update(counts.__dict__)
        self.counts, self.numbers = counts, numbers

    @property
    def n_cells(self) -> int:
        """Number of chosen cells."""
        return len(self.numbers)

    def chunks(self, max_values: int = 1 << 22, max_cells: int = 1 << 14) -> Iterator[tuple[int, CountRows]]:
        """Yield (place of the first cell among the chosen, rows) in the order of the cells."""
        first = 0
        for start, rows in self.counts.chunks(max_values, max_cells):
            inside = self.numbers[(self.numbers >= start) & (self.numbers < start + len(rows))] - start
            if len(inside):
                yield first, _chosen(rows, inside)
                first += len(inside)


def _chosen(rows: CountRows, inside: np.ndarray) -> CountRows:
    """Return some rows."""
    if len(inside) == len(rows):
        return rows
    lengths = np.diff(rows.indptr)[inside]
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    at = np.arange(indptr[-1]) + np.repeat(rows.indptr[inside] - indptr[:-1], lengths)
    return CountRows(rows.data[at], rows.indices[at], indptr)


__all__ = ["ChosenCounts"]
