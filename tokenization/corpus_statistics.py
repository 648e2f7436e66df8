"""Per-gene statistics of a corpus in one pass: medians by a mergeable histogram, means and variances in parallel.

The quantile sketch is a histogram whose buckets are the leading bits of a float32: relative resolution is fixed,
memory is fixed, merging is addition. It gives the same medians to the last bit whatever the order and number of
processes, which sketches that sample (KLL) or cluster (t-digest) do not.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy.sparse import csc_matrix

from cellglot.tokenization.gene_encoding import row_sums


TARGET_SUM = 1e4
_LOWEST_OCTAVE, _OCTAVES = -8, 22  # values from 2**-8 (one of 2.56 million counts) to 2**14 (above all of 10,000)
_MOST_BYTES = 192 << 20
_VALUES_AT_ONCE = 1 << 16  # stay in the processor's cache
_VALUES_KEPT = 1 << 23  # counted at once, 4 bytes each


class CorpusStatistics:
    """Statistics of genes over cells, added chunk by chunk and merged.

    Medians are those of non-zero counts scaled to 10,000 of all the cell's counts; means and standard deviations are
    those of log1p of counts scaled to 10,000 of the cell's counts on these genes, zeros included.

    Parameters
    ----------
    n_genes
        Genes.
    histogram
        That of other statistics, which takes the values of these; it is then none of their `state`.

    Attributes
    ----------
    n_cells : int
        Cells seen.
    detected : numpy.ndarray
        Cells in which each gene has counts, shape (genes,).
    mean, squares : numpy.ndarray
        Mean, and sum of squared deviations from it, of each gene, shape (genes,).
    """

    def __init__(self, n_genes: int, histogram: np.ndarray | None = None):
        self.n_genes = n_genes
        self.bits = _resolution(n_genes)
        self.n_cells = 0
        self.detected = np.zeros(n_genes, dtype=np.int64)
        self.mean = np.zeros(n_genes)
        self.squares = np.zeros(n_genes)
        self.own_histogram = histogram is None
        shape = (_OCTAVES, n_genes, 1 << self.bits)  # memory of octaves without values is never touched
        self._histogram = np.zeros(shape, np.uint32) if histogram is None else histogram
        self._kept, self._n_kept = np.empty(0, dtype=np.uint32), 0

    def update(
        self,
        counts: np.ndarray,
        columns: np.ndarray,
        indptr: np.ndarray,
        totals: np.ndarray | None = None,
        genes: np.ndarray | None = None,
    ) -> None:
        """Add cells.

        Parameters
        ----------
        counts, columns
            Positive counts and their columns, no gene twice in a cell, shape (values,).
        indptr
            Where each cell begins, shape (cells + 1,).
        totals
            All counts of each cell, shape (cells,), where these are not all.
        genes
            Gene (0 to n_genes - 1) of each column; by default columns are genes.
        """
        n_cells = len(indptr) - 1
        if n_cells == 0:
            return
        shift = self.mean if self.n_cells else None
        detected, sums = np.zeros(self.n_genes), np.zeros(self.n_genes)
        squares = np.zeros(self.n_genes)  # of distances from the shift, as the sums are, for precision
        own = row_sums(counts, indptr)
        ones = np.ones(0)
        for start, stop in _runs(indptr):
            values = slice(indptr[start], indptr[stop])
            lengths, at = np.diff(indptr[start : stop + 1]), columns[values]
            at = at if genes is None else genes.take(at)
            part = counts[values].astype(np.float64)
            if totals is not None:
                self._keep(part * _scale(totals[start:stop], lengths), at)
            part *= _scale(own[start:stop], lengths)
            if totals is None:
                self._keep(part, at)
            np.log1p(part, out=part)
            ones = ones if len(ones) >= len(part) else np.ones(len(part))
            detected += _gene_sums(ones[: len(part)], at, self.n_genes)
            if shift is None:
                shift = _gene_sums(part, at, self.n_genes) / (stop - start)
            part -= shift.take(at)
            sums += _gene_sums(part, at, self.n_genes)
            part *= part
            squares += _gene_sums(part, at, self.n_genes)
        assert shift is not None
        sums -= (n_cells - detected) * shift
        squares += (n_cells - detected) * shift**2
        distance = sums / n_cells
        self._merge_moments(n_cells, shift + distance, np.maximum(squares - distance * sums, 0.0))
        self.detected += detected.astype(np.int64)

    def _keep(self, scaled: np.ndarray, genes: np.ndarray) -> None:
        """Keep the place of each value in the flat histogram until there are enough to be counted."""
        if self._n_kept + len(scaled) > len(self._kept):
            self._count()
        if len(scaled) > len(self._kept):
            self._kept = np.empty(max(len(scaled), _VALUES_KEPT), dtype=np.uint32)
        keys = self._kept[self._n_kept : self._n_kept + len(scaled)]
        self._n_kept += len(scaled)
        bits, lowest = np.uint32(self.bits), np.uint32((127 + _LOWEST_OCTAVE) << self.bits)
        np.right_shift(scaled.astype(np.float32).view(np.uint32), np.uint32(23) - bits, out=keys)
        np.maximum(keys, lowest, out=keys)
        keys -= lowest
        np.minimum(keys, np.uint32((_OCTAVES << self.bits) - 1), out=keys)
        within = keys & np.uint32((1 << self.bits) - 1)
        keys >>= bits
        keys *= np.uint32(self.n_genes)
        keys += genes.astype(np.uint32)
        keys <<= bits
        keys |= within

    def _count(self) -> None:
        """Count the values kept in the histogram.

        Sorted, they touch each part of it once, and leave Python's lock to the thread that reads the next cells.
        """
        keys, self._n_kept = self._kept[: self._n_kept], 0
        keys.sort()
        flat = self._histogram.reshape(-1)
        for start in range(0, len(keys), _VALUES_AT_ONCE):
            part = keys[start : start + _VALUES_AT_ONCE]
            last = np.append(np.flatnonzero(part[1:] != part[:-1]), len(part) - 1)
            places = part.take(last).astype(np.intp)
            flat[places] = flat.take(places) + np.diff(last, prepend=-1).astype(np.uint32)

    @property
    def histogram(self) -> np.ndarray:
        """Cells by octave, gene and bucket of the octave, shape (octaves, genes, buckets)."""
        if self._n_kept:
            self._count()
        return self._histogram

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
        """Forget all cells."""
        self.n_cells = 0
        for array in (self.detected, self.mean, self.squares, *([self.histogram] if self.own_histogram else [])):
            array[...] = 0

    def state(self) -> dict[str, np.ndarray]:
        """Give everything as arrays, the histogram sparse."""
        flat = self.histogram.reshape(-1)
        # by truth values: several times as fast
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
        """Write the state, whole or not at all."""
        temporary = path.with_suffix(".tmp")
        with open(temporary, "wb") as file:
            np.savez(file, allow_pickle=False, layout=np.array(self._histogram.shape), **self.state())
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path, n_genes: int) -> "CorpusStatistics":
        """Read what `save` wrote.

        Raises
        ------
        ValueError
            If another version wrote it, in another layout.
        """
        statistics = cls(n_genes)
        with np.load(path, allow_pickle=False) as state:
            if "layout" not in state or tuple(state["layout"]) != statistics._histogram.shape:
                raise ValueError(
                    f"{path} was written by another version of cellglot: begin anew, with --overwrite (overwrite=True)"
                )
            statistics.merge(dict(state))
        return statistics

    @property
    def std(self) -> np.ndarray:
        """Standard deviation of each gene (ddof 0), shape (genes,)."""
        return np.sqrt(self.squares / max(self.n_cells, 1))

    def medians(self) -> np.ndarray:
        """Median of each gene's non-zero scaled counts, NaN where it has none, shape (genes,).

        Within a bucket values are taken as evenly spread; the error is below half a bucket (0.8% with up to 35,000
        genes, less with fewer). The median of an even number is the mean of the two in the middle.
        """
        medians = np.full(self.n_genes, np.nan)
        seen = np.flatnonzero(self.detected)
        for genes in np.array_split(seen, -(-len(seen) // 256)) if len(seen) else []:
            histogram = self.histogram[:, genes].swapaxes(0, 1).reshape(len(genes), -1)
            filled = np.flatnonzero(histogram.any(axis=0))  # a few octaves of all there are
            lowest = int(filled[0])
            histogram = histogram[:, lowest : filled[-1] + 1]
            ends = np.cumsum(histogram, axis=1, dtype=np.int64)
            of_gene = np.arange(len(genes))
            halves = []
            for middle in ((ends[:, -1] - 1) // 2, ends[:, -1] // 2):
                bucket = (ends <= middle[:, None]).sum(axis=1)
                count = histogram[of_gene, bucket].astype(np.int64)
                share = (middle - (ends[of_gene, bucket] - count) + 0.5) / count
                low, high = self._edge(lowest + bucket), self._edge(lowest + bucket + 1)
                halves.append(low + (high - low) * share)
            medians[genes] = (halves[0] + halves[1]) / 2
        return medians

    def _edge(self, bucket: np.ndarray) -> np.ndarray:
        """Give the lower end of buckets."""
        leading = bucket.astype(np.int64) + ((127 + _LOWEST_OCTAVE) << self.bits)
        return (leading << (23 - self.bits)).astype(np.uint32).view(np.float32).astype(np.float64)


def _runs(indptr: np.ndarray) -> Iterator[tuple[int, int]]:
    """Cut cells into runs of about `_VALUES_AT_ONCE` values."""
    start, n_cells = 0, len(indptr) - 1
    while start < n_cells:
        stop = int(np.searchsorted(indptr, indptr[start] + _VALUES_AT_ONCE, side="right")) - 1
        stop = min(max(stop, start + 1), n_cells)
        yield start, stop
        start = stop


def _gene_sums(values: np.ndarray, genes: np.ndarray, n_genes: int) -> np.ndarray:
    """Sum values by gene, shape (n_genes,): what `numpy.bincount` gives, without Python's lock."""
    matrix = csc_matrix((values, genes, np.array([0, len(values)])), shape=(n_genes, 1))
    sums: np.ndarray = matrix @ np.ones(1)
    return sums


def _scale(totals: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    return np.repeat(TARGET_SUM / np.where(totals > 0, totals, 1.0), lengths)


def _resolution(n_genes: int) -> int:
    """Buckets in each octave, as a power of two: as many as fit into the memory set aside."""
    fitting = _MOST_BYTES // (4 * _OCTAVES * max(n_genes, 1))
    return int(np.clip(fitting.bit_length() - 1, 5, 12))


__all__ = ["TARGET_SUM", "CorpusStatistics"]
