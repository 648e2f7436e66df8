"""Log-normalised counts, chunk by chunk."""

from typing import TYPE_CHECKING

import numpy as np


if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


def log_scaled(counts: "csr_matrix", target_sum: float = 1e4) -> "csr_matrix":
    """Return log1p of counts scaled to `target_sum` per cell, float32; cells without counts stay empty.

    Parameters
    ----------
    counts
        Raw counts, shape (cells, genes).
    """
    totals = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    scaled = counts.astype(np.float64)
    scaled.data *= np.repeat(target_sum / np.where(totals > 0, totals, 1.0), np.diff(scaled.indptr))
    return scaled.log1p().astype(np.float32)


__all__ = ["log_scaled"]
