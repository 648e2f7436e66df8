"""Tell raw counts from other values; say what these are, and compute counts back where that is exact."""

import numpy as np


class NotCountsError(ValueError):
    """The values are not raw counts, and counts cannot be computed back from them."""


def not_counts_reason(values: np.ndarray) -> str | None:
    """Say why values cannot be raw counts; None where they can.

    Parameters
    ----------
    values
        Stored values of any shape, zeros left out or not.

    Returns
    -------
    str or None
        What was seen, as a clause: ``"negative values (smallest -2.03)"``.
    """
    if values.size == 0 or values.dtype.kind in "bu":
        return None
    if values.dtype.kind not in "if":
        return f"values of type {values.dtype}, not numbers"
    smallest, largest = values.min(), values.max()
    if values.dtype.kind == "f" and not (np.isfinite(smallest) and np.isfinite(largest)):
        missing, infinite = int(np.isnan(values).sum()), int(np.isinf(values).sum())
        return f"{missing:,} missing (NaN) and {infinite:,} infinite values among {values.size:,}"
    if smallest < 0:
        return (
            f"negative values ({int((values < 0).sum()):,} of {values.size:,} looked at, smallest {smallest:.4g}), "
            "as scaled or otherwise transformed data has"
        )
    if values.dtype.kind == "f" and not np.array_equal(np.rint(values), values):
        broken = int((np.rint(values) != values).sum())
        kind = "as log-normalised data has" if largest < 25 else "as normalised data has"
        return (
            f"values that are not whole numbers ({broken:,} of {values.size:,} looked at, from {smallest:.4g} "
            f"to {largest:.4g}), {kind}"
        )
    return None


def recover_counts(values: np.ndarray, indptr: np.ndarray) -> np.ndarray:
    """Compute raw counts back from log1p of counts that were scaled per cell.

    In each cell the smallest value is taken for one count: ``counts = expm1(value) / expm1(smallest)``. The result
    is accepted where every count lies within 0.2 of a whole number and within the rounding error of the stored
    values (their floating-point spacing, or the decimals to which they were rounded).

    Parameters
    ----------
    values
        Non-zero values of the cells one after the other, shape (values,).
    indptr
        Where each cell begins, shape (cells + 1,).

    Returns
    -------
    numpy.ndarray
        Counts, float64 whole numbers, shape (values,).

    Raises
    ------
    NotCountsError
        Says which cell is not log1p of scaled counts. Its argument `cell` is the cell's number.
    """
    counts = np.zeros(len(values), dtype=np.float64)
    if len(values) == 0:
        return counts
    if values.dtype.kind != "f" or not values.min() > 0 or not np.isfinite(values.max()) or values.max() > 50:
        raise NotCountsError("they are no logarithms of scaled counts")
    lengths = np.diff(indptr)
    filled = np.flatnonzero(lengths)
    logs = values.astype(np.float64)
    error = _rounding_error(values)
    smallest = np.minimum.reduceat(logs, indptr[:-1][filled])
    unit_error = np.repeat(np.maximum.reduceat(error, indptr[:-1][filled]), lengths[filled])
    unit = np.repeat(np.expm1(smallest), lengths[filled])
    scaled = np.expm1(logs)
    ratio = scaled / unit
    counts = np.rint(ratio)
    bound = (error * (scaled + 1) + ratio * unit_error * (unit + 1)) / unit
    wrong = np.abs(ratio - counts) > np.minimum(bound, 0.2)
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        cell = int(np.searchsorted(indptr, first, side="right")) - 1
        failure = NotCountsError(
            f"cell {cell}: its smallest value {np.log1p(unit[first]):.6g} taken for one count, "
            f"the value {logs[first]:.6g} would be {ratio[first]:.4g} counts"
        )
        raise failure
    return counts


def _rounding_error(values: np.ndarray) -> np.ndarray:
    """Bound the distance of each stored value from the number it was computed as, shape (values,)."""
    single = values.astype(np.float32)
    stored_single = values.dtype == np.float32 or np.array_equal(single.astype(values.dtype), values)
    spacing = np.spacing(single if stored_single else values).astype(np.float64)
    # Producers compute scaling and logarithm in the stored precision: some units in the last place.
    error = 3 * spacing + (2.0**-22 if stored_single else 2.0**-50)
    for decimals in range(1, 7):
        grid = values.astype(np.float64) * 10.0**decimals
        if (np.abs(grid - np.rint(grid)) <= 10.0**decimals * 2 * spacing).all():
            return error + 0.5 * 10.0**-decimals
    return error


__all__ = ["NotCountsError", "not_counts_reason", "recover_counts"]
