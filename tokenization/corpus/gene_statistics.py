"""Per-gene statistics of a corpus in one pass: medians, means and variances that can be merged.

Medians come from a histogram whose buckets are the leading bits of a float32: its relative resolution and its memory
are fixed, and merging is addition. Unlike sketches that sample (KLL) or cluster (t-digest), it computes the same
medians to the last bit for any order of cells and number of processes.
"""

from pathlib import Path

import numpy as np

from cellglot.outputs import atomic
from cellglot.tokenization.gene_encoding import row_sums


TARGET_SUM = 1e4
_LOWEST_OCTAVE, _OCTAVES = -8, 22  # values from 2**-8 (one of 2.56 million counts) to 2**14 (above all of 10,000)
_MOST_BYTES = 192 << 20
_CELLS_FOR_SHIFT = 64


class CorpusStatistics:
    """Statistics of genes over cells, added chunk by chunk and merged.

    Medians are of non-zero counts, scaled to a total of 10,000 over all genes of a cell. Means and standard
    deviations are of log1p of counts, scaled to a total of 10,000 over these genes, including zeros.

    Parameters
    ----------
    histogram
        Histogram of other statistics, to which values are added; `state` then leaves it out.

    Attributes
    ----------
    detected : numpy.ndarray
        Number of cells with counts of each gene, shape (genes,).
    mean, squares : numpy.ndarray
        Mean, and sum of squared deviations from it, of each gene, shape (genes,).
    histogram : numpy.ndarray
        Number of cells by octave, bucket of the octave and gene, shape (octaves, buckets, genes).
    """

    def __init__(self, n_genes: int, histogram: np.ndarray | None = None):
        self.n_genes = n_genes
        self.bits = _resolution(n_genes)
        self.n_cells = 0
        self.detected = np.zeros(n_genes, dtype=np.int64)
        self.mean = np.zeros(n_genes)
        self.squares = np.zeros(n_genes)
        self.own_histogram = histogram is None
        shape = (_OCTAVES, 1 << self.bits, n_genes)  # octaves without values take no memory
        self.histogram = np.zeros(shape, np.uint32) if histogram is None else histogram

    def update(
        self,
        counts: np.ndarray,
        columns: np.ndarray,
        indptr: np.ndarray,
        genes: np.ndarray | None = None,
        wanted: np.ndarray | None = None,
    ) -> None:
        """Add cells.

        Parameters
        ----------
        counts, columns
            Counts and their columns, each gene once in a cell, shape (values,).
        indptr
            Where each cell begins, shape (cells + 1,).
        genes
            Gene (0 to n_genes - 1) of each column; below 0, counts only add to the cell's total. By default columns
            are genes.
        wanted
            Flags of the cells to add, shape (cells,); by default all.
        """
        from cellglot.tokenization.kernels.gene_statistics import add_cells
        from cellglot.tokenization.kernels.jit import loop_arrays  # Numba, which takes its time to load

        wanted = np.ones(len(indptr) - 1, dtype=bool) if wanted is None else wanted
        n_cells = int(np.count_nonzero(wanted))
        if n_cells == 0:
            return
        counts, columns, indptr = loop_arrays(counts, columns, indptr)
        genes = np.ascontiguousarray(np.arange(self.n_genes) if genes is None else genes, dtype=np.int32)
        moments = np.zeros((self.n_genes, 4))
        shift = self.mean if self.n_cells else self._mean_of_first_cells(counts, columns, genes, indptr)
        moments[:, 3] = shift
        add_cells(counts, columns, genes, indptr, wanted, moments, self.histogram, TARGET_SUM, _LOWEST_OCTAVE)
        detected, sums, squares, _ = moments.T
        sums -= (n_cells - detected) * shift
        squares += (n_cells - detected) * shift**2
        distance = sums / n_cells
        self._merge_moments(n_cells, shift + distance, np.maximum(squares - distance * sums, 0.0))
        self.detected += detected.astype(np.int64)

    def _mean_of_first_cells(
        self, counts: np.ndarray, columns: np.ndarray, genes: np.ndarray, indptr: np.ndarray
    ) -> np.ndarray:
        """Return an approximate mean, so that sums of distances from it are precise."""
        indptr = indptr[: _CELLS_FOR_SHIFT + 1]
        lengths, values = np.diff(indptr), slice(0, indptr[-1])
        scale = TARGET_SUM / np.maximum(row_sums(counts[values], indptr), 1.0)
        logs = np.log1p(counts[values] * np.repeat(scale, lengths))
        gene = genes.take(columns[values])
        sums: np.ndarray = np.bincount(gene[gene >= 0], logs[gene >= 0], self.n_genes)
        return sums / len(lengths)

    def _merge_moments(self, n_cells: int, mean: np.ndarray, squares: np.ndarray) -> None:
        """Add mean and squared deviations of other cells (Chan, Golub and LeVeque 1979)."""
        total = self.n_cells + n_cells
        if total == 0:
            return
        difference = mean - self.mean
        self.squares += squares + difference**2 * (self.n_cells * n_cells / total)
        self.mean += difference * (n_cells / total)
        self.n_cells = total

    def merge(self, other: "CorpusStatistics | dict[str, np.ndarray]") -> None:
        """Add the statistics of other cells over the same genes."""
        state = other.state() if isinstance(other, CorpusStatistics) else other
        self._merge_moments(int(state["n_cells"]), state["mean"], state["squares"])
        self.detected += state["detected"]
        self.histogram.reshape(-1)[state["keys"]] += state["counts"]

    def clear(self) -> None:
        """Remove all cells."""
        self.n_cells = 0
        for array in (self.detected, self.mean, self.squares, *([self.histogram] if self.own_histogram else [])):
            array[...] = 0

    def state(self) -> dict[str, np.ndarray]:
        """Return everything as arrays, the histogram sparse."""
        flat = self.histogram.reshape(-1)
        # on booleans it is several times as fast
        keys = np.flatnonzero(flat != 0) if self.own_histogram else np.empty(0, dtype=np.intp)
        return {
            "n_cells": np.array(self.n_cells),
            "detected": self.detected,
            "mean": self.mean,
            "squares": self.squares,
            "keys": keys.astype(np.uint32),
            "counts": flat[keys],
        }

    def save(self, path: Path) -> None:
        """Write the state atomically."""
        with atomic(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, allow_pickle=False, layout=np.array(self.histogram.shape), **self.state())

    @classmethod
    def load(cls, path: Path, n_genes: int) -> "CorpusStatistics":
        """Read what `save` wrote."""
        statistics = cls(n_genes)
        with np.load(path, allow_pickle=False) as state:
            if "layout" not in state or tuple(state["layout"]) != statistics.histogram.shape:
                raise ValueError(
                    f"{path} was written by another version of cellglot: start again with --overwrite (overwrite=True)"
                )
            statistics.merge(dict(state))
        return statistics

    @property
    def std(self) -> np.ndarray:
        """Standard deviation of each gene (ddof 0), shape (genes,)."""
        return np.sqrt(self.squares / max(self.n_cells, 1))

    def medians(self) -> np.ndarray:
        """Return the median of each gene's non-zero scaled counts, NaN without any, shape (genes,).

        Values are assumed to be spread evenly within a bucket; the error is below half a bucket (0.8% with up to
        35,000 genes, less with fewer). The median of an even number of values is the mean of the middle two.
        """
        medians = np.full(self.n_genes, np.nan)
        genes = np.flatnonzero(self.detected)
        in_octaves = self.histogram.sum(axis=1, dtype=np.uint32)[:, genes].astype(np.int64)
        ends = in_octaves.cumsum(axis=0)
        middles = (ends[-1] - 1) // 2, ends[-1] // 2
        medians[genes] = sum(self._value_of_rank(genes, rank, in_octaves, ends) for rank in middles) / 2
        return medians

    def _value_of_rank(
        self, genes: np.ndarray, rank: np.ndarray, in_octaves: np.ndarray, ends: np.ndarray
    ) -> np.ndarray:
        """Return the value at a rank (from 0) of some genes, given their numbers of values by octave."""
        values, of_gene = np.empty(len(genes)), np.arange(len(genes))
        octaves = (ends <= rank).sum(axis=0)
        rank = rank - (ends - in_octaves)[octaves, of_gene]
        for octave in np.unique(octaves):
            at = np.flatnonzero(octaves == octave)
            histogram = self.histogram[octave].take(genes[at], axis=1)
            up_to = histogram.cumsum(axis=0, dtype=np.uint32)
            bucket = (up_to <= rank[at]).sum(axis=0)
            one = bucket, np.arange(len(at))
            count = histogram[one].astype(np.int64)
            share = (rank[at] - (up_to[one] - count) + 0.5) / count
            bucket += octave * len(histogram)
            low, high = self._edge(bucket), self._edge(bucket + 1)
            values[at] = low + (high - low) * share
        return values

    def _edge(self, bucket: np.ndarray) -> np.ndarray:
        """Return the lower end of buckets."""
        leading = bucket.astype(np.int64) + ((127 + _LOWEST_OCTAVE) << self.bits)
        return (leading << (23 - self.bits)).astype(np.uint32).view(np.float32).astype(np.float64)


def _resolution(n_genes: int) -> int:
    """Return the binary logarithm of the number of buckets in each octave that fit into `_MOST_BYTES`."""
    fitting = _MOST_BYTES // (4 * _OCTAVES * max(n_genes, 1))
    return int(np.clip(fitting.bit_length() - 1, 5, 12))


__all__ = ["TARGET_SUM", "CorpusStatistics"]
