"""Turn counts into ranked or standardised gene tokens, on compressed sparse rows, without dense copies."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .count_matrix import CountRows
from .gene_vocabulary import GeneMatch


# Values sorted at once: with fewer, calls of NumPy take longer; with more, arrays do not fit into the caches.
BLOCK_VALUES = 1 << 17
_SMALL = 16  # most counts are below
_EXACT_IN_SINGLE = 1 << 24  # whole numbers, and so sums, are exact below
_HIGH_WORD = 1 if np.little_endian else 0


@dataclass
class TokenRows:
    """Tokens of some cells, cell by cell.

    Parameters
    ----------
    tokens
        Token ids, int32, shape (tokens,).
    values
        A value for each token, float32, shape (tokens,), or None.
    indptr
        Where each cell begins, shape (cells + 1,).
    tokens_cut
        Number of tokens of each cell above the length limit, shape (cells,).
    totals
        Total of each cell by which its counts were scaled, shape (cells,); None without values.
    clipped_counts
        Counts of the tokens whose values were clipped, in their order; None if values are never clipped.
    clipped_indptr
        Where each cell begins in `clipped_counts`, shape (cells + 1,).
    """

    tokens: np.ndarray
    values: np.ndarray | None
    indptr: np.ndarray
    tokens_cut: np.ndarray
    totals: np.ndarray | None = None
    clipped_counts: np.ndarray | None = None
    clipped_indptr: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.indptr) - 1


class GeneColumns:
    """The columns of a file, prepared for encoding, and the counts that are lost.

    Parameters
    ----------
    match
        The file's genes in the vocabulary.

    Attributes
    ----------
    weights
        Statistic of each column's gene that a tokenizer needs, 0 for unknown genes, shape (genes of the file,).
    means, stds
        Statistics of genes by token id, stds without zeros, shape (vocabulary,).
    counts_lost
        Counts seen so far on each unknown gene, shape (genes of the file,).
    counts_seen
        All counts seen so far.
    compiled
        Module of compiled functions that are used instead of those here, or None. They return the same tokens, and
        the same values up to one unit in the last place (of the logarithm, on processors with wide registers).
    """

    compiled: Any = None

    def __init__(self, match: GeneMatch):
        self.match = match
        self.token_ids = match.token_ids.astype(np.int32)
        self.known = match.known
        self.all_known = bool(self.known.all())
        duplicated = match.duplicated()
        self.duplicated = duplicated if duplicated.any() else None
        self.weights: np.ndarray | None = None
        self.means: np.ndarray | None = None
        self.stds: np.ndarray | None = None
        self.counts_lost = np.zeros(len(self.known), dtype=np.float64)
        self.counts_seen = 0.0

    @cached_property
    def bits_below_weights(self) -> int:
        """Leading 32 bits of a float64 below all weights of known genes, and so below all weighted counts."""
        assert self.weights is not None
        smallest = self.weights[self.known].min(keepdims=True)
        return int(smallest.view(np.uint32)[_HIGH_WORD]) - (1 << 17)

    def see(self, counts: np.ndarray, columns: np.ndarray, lost_at: np.ndarray) -> None:
        """Add counts of some cells (values,) and their columns (values,); `lost_at` are the places of lost counts."""
        total = counts.sum() if counts.dtype == np.float32 else None  # faster, and exact for small sums
        if total is None or total >= _EXACT_IN_SINGLE:
            total = counts.sum(dtype=np.float64)
        self.counts_seen += float(total)
        np.add.at(self.counts_lost, columns.take(lost_at), counts.take(lost_at).astype(np.float64))

    def forget(self) -> None:
        """Set counts seen and lost to 0."""
        self.counts_lost[:] = 0.0
        self.counts_seen = 0.0

    def sum_duplicates(self, rows: CountRows) -> CountRows:
        """Add each cell's counts on columns of the same gene to the first of these columns."""
        if self.duplicated is None:
            return rows
        at = np.flatnonzero(self.duplicated.take(rows.indices))
        cell = np.searchsorted(rows.indptr, at, side="right") - 1
        size = int(self.token_ids.max()) + 1
        _, first, group = np.unique(
            cell * size + self.token_ids.take(rows.indices.take(at)), return_index=True, return_inverse=True
        )
        kept = np.ones(len(rows.data), dtype=bool)
        kept[at] = False
        kept[at[first]] = True
        counts = rows.data.astype(np.float64)
        counts[at[first]] = np.bincount(group, weights=counts[at])
        kept_at = np.flatnonzero(kept)
        return CountRows(counts[kept_at], rows.indices[kept_at], np.searchsorted(kept_at, rows.indptr))

    def largest_losses(self) -> list[tuple[str, float]]:
        """Return the ten lost genes with the most counts, as (name, counts)."""
        order = np.argsort(-self.counts_lost, kind="stable")[:10]
        return [(str(self.match.names[i]), float(self.counts_lost[i])) for i in order if self.counts_lost[i] > 0]


def row_sums(values: np.ndarray, indptr: np.ndarray) -> np.ndarray:
    """Sum the values of each cell, float64, shape (cells,)."""
    sums: np.ndarray = np.zeros(len(indptr) - 1)
    filled = np.flatnonzero(indptr[1:] > indptr[:-1])
    if len(filled):
        sums[filled] = np.add.reduceat(values, indptr[filled], dtype=np.float64)
    return sums


def blocks(rows: CountRows) -> Iterator[CountRows]:
    """Cut rows into runs of cells with about `BLOCK_VALUES` counts, which fit into the processor's cache."""
    start, n_cells = 0, len(rows)
    while start < n_cells:
        low = rows.indptr[start]
        stop = int(np.searchsorted(rows.indptr, low + BLOCK_VALUES, side="right")) - 1
        stop = min(max(stop, start + 1), n_cells)
        high = rows.indptr[stop]
        yield CountRows(rows.data[low:high], rows.indices[low:high], rows.indptr[start : stop + 1] - low)
        start = stop


# -------------------------------------------------------------------- rank-value encoding


def rank_tokens(
    rows: CountRows,
    columns: GeneColumns,
    *,
    max_genes: int | None = None,
    cls_token_id: int | None = None,
    target_sum: float | None = None,
    total: str = "all",
) -> TokenRows:
    """Sort each cell's genes by count times weight, the largest first; ties go to the smaller token id.

    Parameters
    ----------
    columns
        The file's genes, with weights: one over the gene's median.
    cls_token_id
        Token before each cell's genes.
    target_sum
        Return also values: log1p of counts, scaled so that each cell has this total (0 for the first token).
    total
        The total that is scaled to `target_sum`: ``"all"`` counts of the cell, or those on genes of the
        ``"vocabulary"``.
    """
    assert columns.weights is not None
    rows = columns.sum_duplicates(rows)
    if columns.compiled is not None:
        return columns.compiled.rank_tokens(
            rows, columns, max_genes=max_genes, cls_token_id=cls_token_id, target_sum=target_sum, total=total
        )
    at, counts = rows.indices.astype(np.intp), rows.data
    weighted = columns.weights.take(at, mode="clip")
    weighted *= counts
    lost_at = (weighted <= 0).nonzero()[0]
    columns.see(counts, at, lost_at)
    known = rows.indptr - lost_at.searchsorted(rows.indptr)
    genes = known[1:] - known[:-1]
    tokens = columns.token_ids.take(at, mode="clip")
    places = _descending_places(weighted, rows.indptr, tokens, columns.bits_below_weights)
    kept = genes if max_genes is None else np.minimum(genes, max_genes)
    special = 0 if cls_token_id is None else 1
    indptr = np.zeros(len(kept) + 1, dtype=np.int64)
    (kept + special).cumsum(out=indptr[1:])
    placed = np.empty(int(indptr[-1]), dtype=np.int32)
    if cls_token_id is not None:
        placed[indptr[:-1]] = cls_token_id
    first = indptr[:-1] + special
    _lead(tokens.take(places, mode="clip"), rows.indptr, placed, first, kept)
    values = totals = None
    if target_sum is not None:
        placed_counts = np.zeros(len(placed))
        _lead(counts.take(places).astype(np.float64), rows.indptr, placed_counts, first, kept)
        totals = row_sums(counts if total == "all" else np.where(weighted > 0, counts, 0), rows.indptr)
        values = log_scaled_values(placed_counts, indptr, totals, target_sum)
    return TokenRows(placed, values, indptr, genes - kept, totals)


def log_scaled_values(placed: np.ndarray, indptr: np.ndarray, totals: np.ndarray, target_sum: float) -> np.ndarray:
    """Return log1p of counts scaled from the totals of their cells to `target_sum`, float32, shape (tokens,)."""
    scale = np.repeat(target_sum / np.where(totals > 0, totals, 1.0), np.diff(indptr))
    return np.log1p(placed * scale).astype(np.float32)


def _lead(values: np.ndarray, indptr: np.ndarray, into: np.ndarray, first: np.ndarray, kept: np.ndarray) -> None:
    """Write the first `kept` values of each cell to `into`, from place `first` on."""
    bounds, source, target = indptr.tolist(), values.data, into.data  # cut in half the time of arrays
    for low, start, n in zip(bounds, first.tolist(), kept.tolist(), strict=False):
        target[start : start + n] = source[low : low + n]


def _descending_places(values: np.ndarray, indptr: np.ndarray, tokens: np.ndarray, lowest_bits: int) -> np.ndarray:
    """Return the places of values (values,) in descending order within each cell, zeros last, by sorting 32-bit keys.

    A key has the leading bits of the value, inverted, above the value's place in its cell: positive floats have the
    order of their bits. Values with the same leading bits are neighbours after the sort, and are then ordered by
    exact values and token ids. `lowest_bits` are the leading 32 bits of a bound below all values except 0.
    """
    n = len(values)
    if n == 0:
        return np.empty(0, dtype=np.intp)
    lengths = indptr[1:] - indptr[:-1]
    place_bits = max(int(lengths.max()) - 1, 1).bit_length()
    zero = np.uint32(lowest_bits)
    key = np.maximum(values.view(np.uint32)[_HIGH_WORD::2], zero)
    largest = key.max()
    excess = np.uint32(max(int(largest - zero).bit_length() + place_bits - 32, 0))
    np.subtract(largest, key, out=key)
    key >>= excess
    key <<= np.uint32(place_bits)
    begin = np.repeat(indptr[:-1].astype(np.uint32), lengths)
    scratch = np.arange(n, dtype=np.uint32)
    scratch -= begin
    key |= scratch
    bounds = indptr.tolist()
    for low, stop in zip(bounds, bounds[1:], strict=False):
        key[low:stop].sort()
    place_mask = np.uint32((1 << place_bits) - 1)
    np.bitwise_xor(key[1:], key[:-1], out=scratch[1:])
    tied = (scratch[1:] <= place_mask).nonzero()[0]
    if len(tied):
        zero_key = (largest - zero) >> excess << np.uint32(place_bits)
        tied = tied[(key.take(tied) < zero_key) & (begin.take(tied) == begin.take(tied + 1))]
    key &= place_mask
    key += begin
    places = key.astype(np.intp)
    if len(tied):
        _order_exactly(places, tied, values, tokens)
    return places


def _order_exactly(places: np.ndarray, tied: np.ndarray, values: np.ndarray, tokens: np.ndarray) -> None:
    """Order runs of `tied` places (each tied with the next) by exact value, then token."""
    continues = np.zeros(len(tied) + 1, dtype=bool)
    np.equal(tied[1:], tied[:-1] + 1, out=continues[1:-1])
    pairs = tied[~(continues[1:] | continues[:-1])]
    one, other = places.take(pairs), places.take(pairs + 1)
    difference = values.take(one) - values.take(other)
    swapped = difference < 0
    swapped |= (difference == 0) & (tokens.take(one) > tokens.take(other))
    places[pairs[swapped]], places[pairs[swapped] + 1] = other[swapped], one[swapped]
    if len(pairs) == len(tied):
        return
    first = np.flatnonzero(~continues[:-1] & continues[1:])
    lengths = np.flatnonzero(continues[:-1] & ~continues[1:]) - first + 2
    run = np.repeat(np.arange(len(first)), lengths)
    within = np.arange(len(run)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    members = tied[first][run] + within
    own = places[members]
    places[members] = own[np.lexsort((tokens[own], -values[own], run))]


# -------------------------------------------------------------------- standardised expression


def standardized_tokens(rows: CountRows, columns: GeneColumns, *, target_sum: float, clip: float) -> TokenRows:
    """Return each cell's expressed genes in the order of their token ids, with standardised expression.

    The value is ``min((log1p(count / total * target_sum) - mean) / std, clip) + 1``. The total is of the cell's
    counts on genes of the vocabulary, and a standard deviation of 0 is replaced by 1.
    """
    assert columns.means is not None and columns.stds is not None
    rows = columns.sum_duplicates(rows)
    if columns.compiled is not None:
        return columns.compiled.standardized_tokens(rows, columns, target_sum=target_sum, clip=clip)
    counts, tokens, indptr = rows.data, columns.token_ids.take(rows.indices, mode="clip"), rows.indptr
    lost_at = np.empty(0, dtype=np.intp)
    if not columns.all_known or counts.min(initial=1) <= 0:
        lost_at = np.flatnonzero((tokens < 0) | (counts <= 0))
    columns.see(counts, rows.indices, lost_at)
    if len(lost_at):
        kept = np.ones(len(counts), dtype=bool)
        kept[lost_at] = False
        counts, tokens = counts[kept], tokens[kept]
        indptr = indptr - np.searchsorted(lost_at, indptr)
    tokens, counts = _in_ascending_order(tokens, counts, indptr)
    at = tokens.astype(np.intp)
    totals = row_sums(counts, indptr)
    values = _log_scaled(counts, target_sum / np.where(totals > 0, totals, 1.0), indptr)
    values -= columns.means.take(at, mode="clip")
    values /= columns.stds.take(at, mode="clip")
    np.minimum(values, clip, out=values)
    values += 1.0
    values = values.astype(np.float32)
    clipped_at = np.flatnonzero(values >= np.float32(clip + 1.0))
    return TokenRows(
        tokens,
        values,
        indptr,
        np.zeros(len(indptr) - 1, dtype=np.int64),
        totals,
        counts.take(clipped_at),
        np.searchsorted(clipped_at, indptr),
    )


def _log_scaled(counts: np.ndarray, scale: np.ndarray, indptr: np.ndarray) -> np.ndarray:
    """Return log1p of counts times the scale of their cell, shape (values,).

    Most counts of a cell are small: their logarithms are computed once.
    """
    lengths = np.diff(indptr)
    logs = np.log1p(np.arange(_SMALL) * scale[:, None])
    place = np.repeat(np.arange(0, logs.size, _SMALL), lengths)
    large = np.flatnonzero(counts >= _SMALL)
    scale_of_large = scale.take(place.take(large) // _SMALL)
    place += np.minimum(counts, _SMALL - 1).astype(np.uint8)
    values: np.ndarray = logs.reshape(-1).take(place, mode="clip")
    values[large] = np.log1p(counts.take(large) * scale_of_large)
    return values


def _in_ascending_order(tokens: np.ndarray, counts: np.ndarray, indptr: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sort the tokens within each cell, and their counts, as numbers that combine both."""
    rising = tokens[1:] > tokens[:-1]
    rising[indptr[1:-1][(indptr[1:-1] > 0) & (indptr[1:-1] < len(tokens))] - 1] = True
    if rising.all():
        return tokens, counts
    bits = int(counts.max()).bit_length()
    if int(tokens.max()).bit_length() + bits > 32:
        order = np.lexsort((tokens, np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))))
        return tokens.take(order), counts.take(order)
    key = tokens.astype(np.uint32)
    key <<= np.uint32(bits)
    key |= counts.astype(np.uint32)
    bounds = indptr.tolist()
    for low, stop in zip(bounds, bounds[1:], strict=False):
        key[low:stop].sort()
    counts = (key & np.uint32((1 << bits) - 1)).astype(counts.dtype)
    key >>= np.uint32(bits)
    return key.view(np.int32), counts


__all__ = ["GeneColumns", "TokenRows", "blocks", "log_scaled_values", "rank_tokens", "row_sums", "standardized_tokens"]
