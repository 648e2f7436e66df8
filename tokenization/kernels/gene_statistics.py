"""Compiled loop over counts for the statistics of a corpus."""

import math

import numpy as np

from cellglot.tokenization.kernels.jit import compiled


_SMALL = 16  # most counts are below: their logarithms and places are computed once for each cell


@compiled
def _place(value: float, single: np.ndarray, pattern: np.ndarray, shape: tuple[int, int, int], lowest: int) -> int:
    """Return a value's place in the flat histogram for gene 0; `pattern` is a view of the bits of `single`."""
    octaves, buckets, n_genes = shape
    single[0] = value
    leading = int(np.int64(pattern[0])) * buckets >> 23
    key = min(max(leading - (127 + lowest) * buckets, 0), octaves * buckets - 1)
    return key * n_genes


@compiled
def add_cells(
    counts: np.ndarray,
    columns: np.ndarray,
    genes: np.ndarray,
    indptr: np.ndarray,
    wanted: np.ndarray,
    moments: np.ndarray,
    histogram: np.ndarray,
    target_sum: float,
    lowest_octave: int,
) -> None:
    """Add cells to moments and histogram.

    Parameters
    ----------
    counts, columns
        Counts, numbers of any kind, and their columns, integers, shape (values,).
    genes
        Gene of each column, int32; below 0 for unknown genes.
    indptr
        Where each cell begins, int64, shape (cells + 1,).
    wanted
        Flags of the cells to add, bool, shape (cells,).
    moments
        Number of cells, sum and sum of squares of log1p of scaled counts minus a shift, and the shift, of each gene,
        float64, shape (genes, 4). Counts are scaled from the cell's total on known genes to `target_sum`.
    histogram
        Number of cells by octave, bucket and gene, uint32, shape (octaves, buckets, genes); the number of buckets is a
        power of two. Counts are scaled from the cell's total to `target_sum`.
    lowest_octave
        Power of two at which the histogram begins; its first bucket also counts smaller values.
    """
    shape, flat = histogram.shape, histogram.reshape(-1)
    logs, places = np.empty(_SMALL), np.empty(_SMALL, np.int64)
    single = np.empty(1, np.float32)
    pattern = single.view(np.uint32)
    longest = 0
    for cell in range(len(indptr) - 1):
        longest = max(longest, indptr[cell + 1] - indptr[cell])
    own_genes, keys, values = np.empty(longest, np.uint32), np.empty(longest, np.uint32), np.empty(longest)
    some_unknown = (genes < 0).any()
    for cell in range(len(indptr) - 1):
        start, stop = indptr[cell], indptr[cell + 1]
        if not wanted[cell]:
            continue
        own = others = 0
        for i in range(start, stop):
            own += counts[i]
        for i in range(start, stop if some_unknown else start):
            if genes[columns[i]] < 0:
                others += counts[i]
        own -= others
        if own <= 0:
            continue
        scale, of_all = target_sum / own, target_sum / (own + others)
        for count in range(1, _SMALL):
            logs[count] = math.log1p(count * scale)
            places[count] = _place(count * of_all, single, pattern, shape, lowest_octave)
        counted = 0
        for i in range(start, stop):
            whole, gene = np.int64(counts[i]), genes[columns[i]]
            if gene < 0 or counts[i] <= 0:
                continue
            if whole < _SMALL and whole == counts[i]:
                value, place = logs[whole], places[whole]
            else:
                value = math.log1p(counts[i] * scale)
                place = _place(counts[i] * of_all, single, pattern, shape, lowest_octave)
            own_genes[counted], keys[counted], values[counted] = gene, place + np.int64(gene), value
            counted += 1
        for i in range(counted):  # separate loops, so that memory accesses overlap
            gene = own_genes[i]
            value = values[i] - moments[gene, 3]
            moments[gene, 0] += 1
            moments[gene, 1] += value
            moments[gene, 2] += value * value
        for i in range(counted):
            flat[keys[i]] += np.uint32(1)


__all__ = ["add_cells"]
