"""Check values for raw counts, describe other values, and compute counts back from them if that is exact."""

import numpy as np


# What values that are not counts probably are, and what to do.
OF_A_JOIN = (
    "as anndata.concat(join='outer') leaves in dense matrices where a data set lacks a gene: join with fill_value=0, "
    "or pass the data sets as separate files"
)
OF_A_DIVISION = "as a division by a total of zero leaves: use the values from before that step"
SCALED = (
    "as scaled (z-scored), centred or corrected data has: use the counts from before that step, often in raw.X, a "
    "layer or the published file"
)
EXPECTED = (
    "as expected counts have that RSEM, salmon (alevin), kallisto or STARsolo's EM estimate, and counts from which "
    "ambient RNA was subtracted: if so, round them (numpy.rint) and pass them again"
)
LOG_NORMALISED = (
    "as log-normalised data has: use the counts from before scanpy.pp.log1p, often in raw.X, a layer or the "
    "published file"
)
NORMALISED = (
    "as normalised data has (CPM, TPM, counts by size factors): use the counts from before that step, often in "
    "raw.X or a layer"
)
_ENOUGH = 20  # values from which their kind can be told
_LARGEST_LOG = 25


class NotCountsError(ValueError):
    """The values are not raw counts, and counts cannot be computed back from them."""


def audit(values: np.ndarray) -> tuple[str | None, bool]:
    """Return why values cannot be raw counts, and whether all are exactly whole numbers.

    Parameters
    ----------
    values
        Stored values of any shape, with or without zeros.

    Returns
    -------
    reason : str or None
        What was seen, as a clause: ``"negative values (smallest -2.03)"``. None if values are counts, exactly or
        after rounding (see `nearly_whole`).
    whole : bool
        Whether rounding is not necessary.
    """
    if values.size == 0 or values.dtype.kind in "bu":
        return None, True
    if values.dtype.kind not in "if":
        return f"values of type {values.dtype}, not numbers", False
    smallest, largest = values.min(), values.max()
    if values.dtype.kind == "f" and not (np.isfinite(smallest) and np.isfinite(largest)):
        missing, infinite = int(np.isnan(values).sum()), int(np.isinf(values).sum())
        seen = f"{missing:,} missing (NaN) and {infinite:,} infinite values among {values.size:,}"
        return f"{seen}, {OF_A_JOIN if missing else OF_A_DIVISION}", False
    if smallest < 0:
        negative = int((values < 0).sum())
        return f"negative values ({negative:,} of {values.size:,} checked, smallest {smallest:.4g}), {SCALED}", False
    if values.dtype.kind == "i" or np.array_equal(np.rint(values), values):
        return None, True
    if nearly_whole(values):
        return None, False
    broken = int((np.rint(values) != values).sum())
    return (
        f"values that are not whole numbers ({broken:,} of {values.size:,} checked, from {smallest:.4g} "
        f"to {largest:.4g}), {_kind_of_fractions(values, float(largest))}"
    ), False


def nearly_whole(values: np.ndarray) -> bool:
    """Whether all values (finite, not negative) are whole numbers up to the rounding error of single precision.

    This is true for counts that were computed back from normalised values: 2.9999995 is 3. The bound is 1e-5 plus
    4e-6 of the value, at most 0.05, because logarithm and scaling change some units in the last place. Values above 0
    are not rounded to 0.
    """
    whole = np.rint(values)
    away = np.abs(values - whole)
    bound = np.minimum(1e-5 + 4e-6 * whole, 0.05)
    return bool(((away <= bound) & ((whole > 0) | (values == 0))).all())


def _kind_of_fractions(values: np.ndarray, largest: float) -> str:
    """Describe what values with fractions probably are, and what to do."""
    given = values[values > 0]
    fractions = given[np.rint(given) != given]
    if given.size < _ENOUGH:
        return "as log-normalised data has" if largest < _LARGEST_LOG else "as normalised data has"
    for base, back in (("log2(counts + 1)", np.exp2), ("log1p(counts)", np.exp)):
        if largest < _LARGEST_LOG and nearly_whole(back(given.astype(np.float64)) - 1):
            return f"they are {base}: compute the counts back, by numpy.{back.__name__}(values) - 1"
    share = 1 - fractions.size / given.size
    if share > 0.1 or np.unique(fractions).size > 0.5 * fractions.size or nearly_whole(given * 100):
        return EXPECTED
    return LOG_NORMALISED if largest < _LARGEST_LOG else NORMALISED


def recover_counts(values: np.ndarray, indptr: np.ndarray) -> np.ndarray:
    """Compute raw counts back from log1p of counts that were scaled for each cell.

    In each cell the smallest value is assumed to be one count: ``counts = expm1(value) / expm1(smallest)``. The
    result is accepted if every count is within 0.2 of a whole number and within the rounding error of the stored
    values (their floating-point spacing, or the decimals to which they were rounded).

    Parameters
    ----------
    values
        Non-zero values, cell by cell, shape (values,).
    indptr
        Where each cell begins, shape (cells + 1,).

    Returns
    -------
    numpy.ndarray
        Counts, float64 whole numbers, shape (values,).
    """
    counts = np.zeros(len(values), dtype=np.float64)
    if len(values) == 0:
        return counts
    if values.dtype.kind != "f" or not values.min() > 0 or not np.isfinite(values.max()) or values.max() > 50:
        raise NotCountsError("they are not logarithms of scaled counts")
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
        raise NotCountsError(
            f"cell {cell}: with its smallest value {np.log1p(unit[first]):.6g} as one count, "
            f"the value {logs[first]:.6g} would be {ratio[first]:.4g} counts"
        )
    return counts


def _rounding_error(values: np.ndarray) -> np.ndarray:
    """Return a bound of the rounding error of each stored value, shape (values,)."""
    single = values.astype(np.float32)
    stored_single = values.dtype == np.float32 or np.array_equal(single.astype(values.dtype), values)
    spacing = np.spacing(single if stored_single else values).astype(np.float64)
    # Scaling and logarithm were computed in the stored precision: some units in the last place are wrong.
    error = 3 * spacing + (2.0**-22 if stored_single else 2.0**-50)
    for decimals in range(1, 7):
        grid = values.astype(np.float64) * 10.0**decimals
        if (np.abs(grid - np.rint(grid)) <= 10.0**decimals * 2 * spacing).all():
            return error + 0.5 * 10.0**-decimals
    return error


__all__ = ["NotCountsError", "audit", "nearly_whole", "recover_counts"]
