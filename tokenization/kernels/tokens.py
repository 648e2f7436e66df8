"""Compiled loops over counts for gene tokens, cell by cell and without Python's lock.

They return what `gene_encoding` computes with NumPy in tokenizers of model repositories.
"""

import math

import numpy as np

from cellglot.tokenization.kernels.jit import compiled


_SMALL = 16  # most counts are below: their logarithms are computed once for each cell
_DIGIT = 256
_SHORT_RUN = 24  # longest run for which insertion sort is the fastest
_RANK_BITS = 16  # most leading bits of a value for the first sort: two digits


@compiled
def _sort(numbers: np.ndarray, n: int, scratch: np.ndarray, place_bits: int, digits: int) -> np.ndarray:
    """Sort the first n numbers stably by the lowest `digits` bytes above their places; return the array."""
    ends = np.empty(_DIGIT, np.int32)
    for digit in range(digits):
        shift = np.uint64(place_bits + 8 * digit)
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
def _is_before(place: int, value: float, token: int, values: np.ndarray, tokens: np.ndarray) -> bool:
    """Whether the value at a place comes before a value and its token; ties have the smaller token first."""
    return values[place] > value or (values[place] == value and tokens[place] < token)


@compiled
def _order_long_runs(numbers: np.ndarray, places: int, values: np.ndarray, tokens: np.ndarray) -> None:
    """Sort numbers in long runs of the same leading bits by the values at their places, with Shell sort."""
    first = 0
    for stop in range(1, len(numbers) + 1):
        if stop < len(numbers) and numbers[stop] ^ numbers[first] <= places:
            continue
        gap = stop - first if stop - first > _SHORT_RUN else 1
        while gap > 1:
            gap = max(1, gap * 5 // 11)
            for i in range(first + gap, stop):
                number = numbers[i]
                value, token = values[number & places], tokens[number & places]
                k = i
                while k >= first + gap and not _is_before(numbers[k - gap] & places, value, token, values, tokens):
                    numbers[k] = numbers[k - gap]
                    k -= gap
                numbers[k] = number
        first = stop


@compiled
def _sort_by_leading_bits(
    bits: np.ndarray, n: int, highest: int, shift: int, place_bits: int, numbers: np.ndarray, scratch: np.ndarray
) -> None:
    """Write the places of the first n values to `numbers`, below their leading bits, in descending order of these.

    `bits` are the values as uint64, and `highest` the largest. `shift` removes their last bits, so that differences
    have at most two digits. `numbers` and `scratch` are uint32, of the length of the longest cell.
    """
    low, high, digit = np.uint32(place_bits), np.uint32(place_bits + 8), np.uint32(_DIGIT - 1)
    low_ends, high_ends = np.zeros(_DIGIT, np.int32), np.zeros(_DIGIT, np.int32)
    for i in range(n):
        number = np.uint32((highest - bits[i]) >> shift) << low | np.uint32(i)
        numbers[i] = number
        low_ends[(number >> low) & digit] += 1
        high_ends[number >> high] += 1
    low_end = high_end = 0
    for d in range(_DIGIT):
        low_end, low_ends[d] = low_end + low_ends[d], low_end
        high_end, high_ends[d] = high_end + high_ends[d], high_end
    for i in range(n):
        d = (numbers[i] >> low) & digit
        scratch[low_ends[d]] = numbers[i]
        low_ends[d] += 1
    for i in range(n):
        d = scratch[i] >> high
        numbers[high_ends[d]] = scratch[i]
        high_ends[d] += 1


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
    """Write each cell's tokens by count times weight, the largest first; ties have the smaller token first.

    Parameters
    ----------
    counts, columns
        Counts, numbers of any kind, and their columns, integers, shape (values,).
    indptr
        Where each cell begins, int64, shape (cells + 1,).
    weights, token_ids
        Weight (0 for unknown genes) and token of each column, float64 and int32.
    first_token
        Token before each cell's genes, below 0 for none.
    most
        Most genes of a cell.
    placed, placed_counts
        Outputs: tokens, int32, and their counts, float64 (0 for the first token), of all cells. An empty
        `placed_counts` is not written.
    bounds, cut
        Outputs: where each cell begins in `placed`, and its number of genes above `most`.
    lost
        Counts without a token are added to it by column.
    """
    longest = 0
    for cell in range(len(indptr) - 1):
        longest = max(longest, indptr[cell + 1] - indptr[cell])
    place_bits = 32 - _RANK_BITS
    while longest > 1 << place_bits:
        place_bits += 1
    places = np.uint32((1 << place_bits) - 1)
    values, tokens, positions = np.empty(longest + 2), np.empty(longest, np.int32), np.empty(longest, np.int32)
    bits = values.view(np.uint64)  # positive floats have the order of their bits
    numbers, scratch = np.empty(longest, np.uint32), np.empty(longest, np.uint32)
    with_counts, seen, end = len(placed_counts) > 0, 0, 0
    bounds[0] = 0
    for cell in range(len(indptr) - 1):
        start, n = indptr[cell], 0
        smallest, largest = np.inf, 0.0
        for i in range(start, indptr[cell + 1]):
            column, count = columns[i], counts[i]
            seen += count
            value = weights[column] * count
            if value > 0:
                values[n], tokens[n], positions[n] = value, token_ids[column], i - start
                smallest, largest = min(smallest, value), max(largest, value)
                n += 1
            else:
                lost[column] += count
        values[longest], values[longest + 1] = smallest, largest
        lowest, highest = bits[longest], bits[longest + 1]
        shift = np.uint64(0)
        while n > 0 and (highest - lowest) >> shift >= np.uint64(1 << (32 - place_bits)):
            shift += np.uint64(1)
        _sort_by_leading_bits(bits, n, highest, shift, place_bits, numbers, scratch)
        first, has_long_runs = 0, False  # runs of the same leading bits
        for k in range(1, n):
            number = numbers[k]
            if number ^ numbers[k - 1] > places:
                first = k
            elif k - first >= _SHORT_RUN:
                has_long_runs = True
            else:
                value, token, i = values[number & places], tokens[number & places], k
                while i > first and not _is_before(numbers[i - 1] & places, value, token, values, tokens):
                    numbers[i] = numbers[i - 1]
                    i -= 1
                numbers[i] = number
        if has_long_runs:
            _order_long_runs(numbers[:n], places, values, tokens)
        if first_token >= 0:
            placed[end] = first_token
            if with_counts:
                placed_counts[end] = 0.0
            end += 1
        kept = min(n, most)
        for k in range(kept):
            placed[end + k] = tokens[numbers[k] & places]
        for k in range(kept if with_counts else 0):
            placed_counts[end + k] = counts[start + positions[numbers[k] & places]]
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
    place_bits: int,
    numbers: np.ndarray,
    scratch: np.ndarray,
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
    """Write each cell's tokens in ascending order, with standardised expression; return the sum of all counts.

    Parameters
    ----------
    counts, columns, indptr, token_ids, lost
        As in `rank_cells`; token ids are below 0 for unknown genes.
    digits, place_bits
        Bytes of a token id, and bits of a place in a cell.
    numbers, scratch
        Unsigned integers for the counts of the longest cell, wide enough for a token id above a place.
    means, stds
        By token id, float64, stds without zeros.
    target_sum, clip
        As in `gene_encoding.standardized_tokens`.
    placed, values
        Outputs: tokens, int32, and their values, float32, of all cells.
    bounds, totals
        Outputs: where each cell begins in `placed`, and its counts on known genes, float64.
    clipped, clipped_bounds
        Outputs: the counts of clipped values, and where those of each cell begin.
    """
    logs, own_logs = np.empty(_SMALL), np.empty(len(numbers))
    above, places = np.uint64(place_bits), np.uint64((1 << place_bits) - 1)
    seen, end, n_clipped = 0, 0, 0
    bounds[0] = clipped_bounds[0] = 0
    highest = np.float32(clip + 1.0)
    for cell in range(len(indptr) - 1):
        start, n, total, last, rising = indptr[cell], 0, 0, -1, True
        for i in range(start, indptr[cell + 1]):
            column, count = columns[i], counts[i]
            token = token_ids[column]
            if token >= 0 and count > 0:
                numbers[n] = np.uint64(token) << above | np.uint64(i - start)
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
        ordered = numbers if rising else _sort(numbers, n, scratch, place_bits, digits)
        for k in range(n):
            count = counts[start + np.int64(ordered[k] & places)]
            whole = np.int64(count)
            placed[end + k] = np.int32(ordered[k] >> above)
            own_logs[k] = logs[whole] if whole < _SMALL and whole == count else math.log1p(count * scale)
        for k in range(n):
            token = placed[end + k]
            value = np.float32(min((own_logs[k] - means[token]) / stds[token], clip) + 1.0)
            values[end + k] = value
            if value >= highest:
                clipped[n_clipped] = counts[start + np.int64(ordered[k] & places)]
                n_clipped += 1
        end += n
        bounds[cell + 1], totals[cell], clipped_bounds[cell + 1] = end, total, n_clipped
    return np.float64(seen)


__all__ = ["rank_cells", "standardize_cells"]
