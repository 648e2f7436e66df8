"""Tell raw counts from other values; say what these are, and compute counts back where that is exact."""

import numpy as np


# What values probably are that are not counts, and the way out.
OF_A_JOIN = (
    "as anndata.concat(join='outer') leaves in dense matrices where a data set lacks a gene: join with fill_value=0, "
    "or pass the data sets as files of their own"
)
OF_A_DIVISION = "as a division by a total of zero leaves: take the values from before that step"
SCALED = (
    "as scaled (z-scored), centred or corrected data has: take the counts from before that step, often in raw.X, a "
    "layer or the file as it was published"
)
EXPECTED = (
    "as expected counts have that RSEM, salmon (alevin), kallisto or STARsolo's EM estimate, and counts from which "
    "ambient RNA was subtracted: if they are such, round them (numpy.rint) and pass them again"
)
LOG_NORMALISED = (
    "as log-normalised data has: take the counts from before scanpy.pp.log1p, often in raw.X, a layer or the file as "
    "it was published"
)
NORMALISED = (
    "as normalised data has (CPM, TPM, counts by size factors): take the counts from before that step, often in "
    "raw.X or a layer"
)
_ENOUGH = 20  # values to tell kinds by
_LARGEST_LOG = 25


class NotCountsError(ValueError):
    """The values are not raw counts, and counts cannot be computed back from them."""


def not_counts_reason(values: np.ndarray) -> str | None:
    """Say why values cannot be raw counts; None where they can, as they are or rounded (see `nearly_whole`).

    Parameters
    ----------
    values
        Stored values of any shape, zeros left out or not.

    Returns
    -------
    str or None
        What was seen, as a clause: ``"negative values (smallest -2.03)"``.
    """
    return audit(values)[0]


def audit(values: np.ndarray) -> tuple[str | None, bool]:
    """Say why values cannot be raw counts, as `not_counts_reason`, and whether they are whole numbers exactly.

    Parameters
    ----------
    values
        Stored values of any shape, zeros left out or not.
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
        return f"negative values ({negative:,} of {values.size:,} looked at, smallest {smallest:.4g}), {SCALED}", False
    if values.dtype.kind == "i" or np.array_equal(np.rint(values), values):
        return None, True
    if nearly_whole(values):
        return None, False
    broken = int((np.rint(values) != values).sum())
    return (
        f"values that are not whole numbers ({broken:,} of {values.size:,} looked at, from {smallest:.4g} "
        f"to {largest:.4g}), {_kind_of_fractions(values, float(largest))}"
    ), False


def nearly_whole(values: np.ndarray) -> bool:
    """Whether all values lie within the rounding error of single precision of whole numbers.

    Counts that were computed back from normalised values do: 2.9999995 is 3. The bound is 1e-5 and 4e-6 of the value,
    0.05 at most: logarithm, scaling and back cost some units in the last place. What is not zero does not become zero.

    Parameters
    ----------
    values
        Finite, not negative, of any shape.
    """
    whole = np.rint(values)
    away = np.abs(values - whole)
    bound = np.minimum(1e-5 + 4e-6 * whole, 0.05)
    return bool(((away <= bound) & ((whole > 0) | (values == 0))).all())


def _kind_of_fractions(values: np.ndarray, largest: float) -> str:
    """Say what values with fractions probably are, and what to do."""
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


__all__ = ["NotCountsError", "audit", "nearly_whole", "not_counts_reason", "recover_counts"]
