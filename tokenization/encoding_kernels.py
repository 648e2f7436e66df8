"""The loops over single counts behind gene tokens, compiled by Numba: one cell after the other, without Python's lock.

They give what `gene_encoding` gives by NumPy, which tokenizers use that travel with a model.
"""

import math

import numpy as np

from cellglot.tokenization.compiled import compiled


_SMALL = 16  # most counts are below: their logarithms are computed once a cell
_DIGIT = 256
_SHORT_RUN = 24  # up to here insertion is faster than a sort that needs memory
_PLACE = np.uint64((1 << 32) - 1)  # lower half of a sorted number: place in the cell; upper half: what is sorted by


@compiled
def _sort(numbers: np.ndarray, n: int, scratch: np.ndarray, digits: int) -> np.ndarray:
    """Sort the first n numbers by so many bytes of their upper halves, the lowest ones, stably; gives the array."""
    ends = np.empty(_DIGIT, np.int64)
    for digit in range(digits):
        shift = np.uint64(32 + 8 * digit)
        ends[:] = 0
        for i in range(n):
            ends[(numbers[i] >> shift) & np.uint64(_DIGIT - 1)] += 1
        before = 0
        for d in range(_DIGIT):
            before, ends[d] = before + ends[d], before
        for i in range(n):
            d = (numbers[i] >> shift) & np.uint64(_DIGIT - 1)
            scratch[ends[d]] = numbers[i]
            ends[d] += 1
        numbers, scratch = scratch, numbers
    return numbers


@compiled
def _order_run(places: np.ndarray, values: np.ndarray, tokens: np.ndarray) -> None:
    """Order places whose leading bits agree by exact value, the largest first, then by token."""
    if len(places) > _SHORT_RUN:
        own = places[np.argsort(tokens[places], kind="mergesort")]
        places[:] = own[np.argsort(-values[own], kind="mergesort")]
        return
    for i in range(1, len(places)):
        place = places[i]
        k = i
        while k > 0 and (
            values[places[k - 1]] < values[place]
            or (values[places[k - 1]] == values[place] and tokens[places[k - 1]] > tokens[place])
        ):
            places[k] = places[k - 1]
            k -= 1
        places[k] = place


@compiled
def rank_cells(
    counts: np.ndarray,
    columns: np.ndarray,
    indptr: np.ndarray,
    weights: np.ndarray,
    token_ids: np.ndarray,
    first_token: int,
    most: int,
    placed: np.ndarray,
    placed_counts: np.ndarray,
    bounds: np.ndarray,
    cut: np.ndarray,
    lost: np.ndarray,
) -> float:
    """Place each cell's tokens by count times weight, the largest first; ties go to the smaller token.

    Parameters
    ----------
    counts, columns
        Counts, numbers of any kind, and their columns, integers, shape (values,).
    indptr
        Where each cell begins, int64, shape (cells + 1,).
    weights, token_ids
        Of each column, float64 and int32; weight 0 for unknown genes.
    first_token
        Token put before each cell's genes, below 0 for none.
    most
        Genes kept in each cell.
    placed, placed_counts
        Receive tokens, int32, and their counts, float64 (0 for the first token), of all cells; the latter may be
        empty: it then receives none.
    bounds, cut
        Receive where each cell begins in `placed`, and how many genes it lost to `most`.
    lost
        Counts of each column that have no token are added here.

    Returns
    -------
    float
        Sum of all counts.
    """
    longest = 0
    for cell in range(len(indptr) - 1):
        longest = max(longest, indptr[cell + 1] - indptr[cell])
    values, tokens = np.empty(longest), np.empty(longest, np.int32)
    positions, order = np.empty(longest, np.int32), np.empty(longest, np.int32)
    bits = values.view(np.uint64)  # the order of positive floats is that of their bits
    numbers, scratch = np.empty(longest, np.uint64), np.empty(longest, np.uint64)
    with_counts, seen, end = len(placed_counts) > 0, 0, 0
    bounds[0] = 0
    for cell in range(len(indptr) - 1):
        start, n = indptr[cell], 0
        smallest, largest = np.uint64(0x7FFFFFFFFFFFFFFF), np.uint64(0)
        for i in range(start, indptr[cell + 1]):
            column, count = columns[i], counts[i]
            seen += count
            value = weights[column] * count
            if value > 0:
                values[n], tokens[n], positions[n] = value, token_ids[column], i - start
                smallest, largest = min(smallest, bits[n]), max(largest, bits[n])
                n += 1
            else:
                lost[column] += count
        shift = np.uint64(0)
        while n > 0 and (largest - smallest) >> shift >= np.uint64(_DIGIT * _DIGIT):
            shift += np.uint64(1)
        for k in range(n):
            numbers[k] = (largest - bits[k]) >> shift << np.uint64(32) | np.uint64(k)
        by_leading_bits = _sort(numbers, n, scratch, 2)
        for k in range(n):
            order[k] = np.int32(by_leading_bits[k] & _PLACE)
        first = 0
        for k in range(1, n + 1):
            if k == n or (by_leading_bits[k] ^ by_leading_bits[first]) > _PLACE:
                if k > first + 1:
                    _order_run(order[first:k], values, tokens)
                first = k
        if first_token >= 0:
            placed[end] = first_token
            if with_counts:
                placed_counts[end] = 0.0
            end += 1
        kept = min(n, most)
        for k in range(kept):
            placed[end + k] = tokens[order[k]]
        for k in range(kept if with_counts else 0):
            placed_counts[end + k] = counts[start + positions[order[k]]]
        end += kept
        bounds[cell + 1], cut[cell] = end, n - kept
    return np.float64(seen)


@compiled
def standardize_cells(
    counts: np.ndarray,
    columns: np.ndarray,
    indptr: np.ndarray,
    token_ids: np.ndarray,
    digits: int,
    means: np.ndarray,
    stds: np.ndarray,
    target_sum: float,
    clip: float,
    placed: np.ndarray,
    values: np.ndarray,
    bounds: np.ndarray,
    totals: np.ndarray,
    clipped: np.ndarray,
    clipped_bounds: np.ndarray,
    lost: np.ndarray,
) -> float:
    """Place each cell's tokens in ascending order, with standardised expression.

    Parameters
    ----------
    counts, columns, indptr, token_ids, lost
        As in `rank_cells`; token ids below 0 for unknown genes.
    digits
        Bytes that token ids have.
    means, stds
        By token id, float64, stds without zeros.
    target_sum, clip
        As in `gene_encoding.standardized_tokens`.
    placed, values
        Receive tokens, int32, and their values, float32, of all cells.
    bounds, totals
        Receive where each cell begins in `placed`, and its counts on known genes, float64.
    clipped, clipped_bounds
        Receive the counts of clipped values, and where each cell's begin.

    Returns
    -------
    float
        Sum of all counts.
    """
    longest = 0
    for cell in range(len(indptr) - 1):
        longest = max(longest, indptr[cell + 1] - indptr[cell])
    numbers, scratch = np.empty(longest, np.uint64), np.empty(longest, np.uint64)
    logs, own_logs = np.empty(_SMALL), np.empty(longest)
    seen, end, n_clipped = 0, 0, 0
    bounds[0] = clipped_bounds[0] = 0
    highest = np.float32(clip + 1.0)
    for cell in range(len(indptr) - 1):
        start, n, total, last, rising = indptr[cell], 0, 0, -1, True
        for i in range(start, indptr[cell + 1]):
            column, count = columns[i], counts[i]
            token = token_ids[column]
            if token >= 0 and count > 0:
                numbers[n] = np.uint64(token) << np.uint64(32) | np.uint64(i - start)
                rising &= token > last
                last = token
                total += count
                n += 1
            else:
                lost[column] += count
                seen += count
        seen += total
        scale = target_sum / (total if total > 0 else 1.0)
        for k in range(_SMALL):
            logs[k] = math.log1p(k * scale)
        ordered = numbers if rising else _sort(numbers, n, scratch, digits)
        for k in range(n):
            count = counts[start + np.int64(ordered[k] & _PLACE)]
            whole = np.int64(count)
            placed[end + k] = np.int32(ordered[k] >> np.uint64(32))
            own_logs[k] = logs[whole] if whole < _SMALL and whole == count else math.log1p(count * scale)
        for k in range(n):
            token = placed[end + k]
            values[end + k] = min((own_logs[k] - means[token]) / stds[token], clip) + 1.0
        for k in range(n):
            if values[end + k] >= highest:
                clipped[n_clipped] = counts[start + np.int64(ordered[k] & _PLACE)]
                n_clipped += 1
        end += n
        bounds[cell + 1], totals[cell], clipped_bounds[cell + 1] = end, total, n_clipped
    return np.float64(seen)


__all__ = ["rank_cells", "standardize_cells"]
