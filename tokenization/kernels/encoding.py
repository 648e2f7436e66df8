"""Turn counts into gene tokens by compiled loops, with the same tokens and values as NumPy in `gene_encoding`."""

import numpy as np

from cellglot.tokenization.count_matrix import CountRows
from cellglot.tokenization.gene_encoding import GeneColumns, TokenRows, log_scaled_values, row_sums
from cellglot.tokenization.kernels.jit import loop_arrays
from cellglot.tokenization.kernels.tokens import rank_cells, standardize_cells


def rank_tokens(
    rows: CountRows,
    columns: GeneColumns,
    *,
    max_genes: int | None = None,
    cls_token_id: int | None = None,
    target_sum: float | None = None,
    total: str = "all",
) -> TokenRows:
    """Do as `gene_encoding.rank_tokens` does, for rows in which each gene occurs once."""
    counts, at, indptr = loop_arrays(rows.data, rows.indices, rows.indptr)
    n_cells, special = len(rows), 0 if cls_token_id is None else 1
    most = len(columns.token_ids) if max_genes is None else max_genes
    room = int(np.minimum(np.diff(indptr), most).sum()) + special * n_cells
    placed, bounds = np.empty(room, dtype=np.int32), np.empty(n_cells + 1, dtype=np.int64)
    placed_counts = np.empty(0 if target_sum is None else room)
    cut, lost = np.empty(n_cells, dtype=np.int64), columns.counts_lost
    first = -1 if cls_token_id is None else cls_token_id
    weights, ids = columns.weights, columns.token_ids
    seen = rank_cells(counts, at, indptr, weights, ids, first, most, placed, placed_counts, bounds, cut, lost)
    columns.counts_seen += seen
    values = totals = None
    if target_sum is not None:
        assert weights is not None
        totals = row_sums(counts if total == "all" else np.where(weights.take(at) > 0, counts, 0), indptr)
        values = log_scaled_values(placed_counts[: bounds[-1]], bounds, totals, target_sum)
    return TokenRows(placed[: bounds[-1]], values, bounds, cut, totals)


def standardized_tokens(rows: CountRows, columns: GeneColumns, *, target_sum: float, clip: float) -> TokenRows:
    """Do as `gene_encoding.standardized_tokens` does, for rows in which each gene occurs once."""
    assert columns.means is not None
    counts, at, indptr = loop_arrays(rows.data, rows.indices, rows.indptr)
    n_cells, n_values = len(rows), len(counts)
    placed, values = np.empty(n_values, dtype=np.int32), np.empty(n_values, dtype=np.float32)
    bounds, clipped_bounds = (np.empty(n_cells + 1, dtype=np.int64) for _ in range(2))
    totals, clipped = np.empty(n_cells), np.empty_like(counts)
    longest, token_bits = int(np.diff(indptr).max(initial=1)), len(columns.means).bit_length()
    place_bits = longest.bit_length()
    numbers, scratch = np.empty((2, longest), dtype=np.uint32 if place_bits + token_bits <= 32 else np.uint64)
    columns.counts_seen += standardize_cells(
        counts, at, indptr, columns.token_ids, -(-token_bits // 8), place_bits, numbers, scratch,
        columns.means, columns.stds, target_sum, clip,
        placed, values, bounds, totals, clipped, clipped_bounds, columns.counts_lost,
    )  # fmt: skip
    tokens_cut = np.zeros(n_cells, dtype=np.int64)
    placed, values, clipped = placed[: bounds[-1]], values[: bounds[-1]], clipped[: clipped_bounds[-1]].copy()
    return TokenRows(placed, values, bounds, tokens_cut, totals, clipped, clipped_bounds)


__all__ = ["rank_tokens", "standardized_tokens"]
