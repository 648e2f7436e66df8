import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellglot.tokenization.count_audit import NotCountsError, not_counts_reason, recover_counts


@pytest.mark.parametrize(
    "values",
    [np.array([1, 2, 3]), np.array([1.0, 5.0], np.float32), np.array([0, 7], np.uint16), np.array([], np.float32)],
)
def test_counts_are_counts(values):
    assert not_counts_reason(values) is None


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([1.0, -2.5], "negative values (1 of 2 looked at, smallest -2.5)"),
        ([-1, 3], "negative values"),
        ([1.0, np.nan], "1 missing (NaN) and 0 infinite"),
        ([np.inf, 1.0], "0 missing (NaN) and 1 infinite"),
        ([0.5, 1.0], "(1 of 2 looked at, from 0.5 to 1), as log-normalised data has"),
        ([0.5, 800.25], "as normalised data has"),
        (["a"], "not numbers"),
        ([1 + 2j], "not numbers"),
    ],
)
def test_what_was_seen_is_said(values, said):
    assert said in not_counts_reason(np.array(values))


def logs(counts, scale, dtype=np.float32, decimals=None):
    values = np.log1p((np.asarray(counts, float) * scale).astype(dtype)).astype(dtype)
    return values if decimals is None else np.round(values, decimals).astype(dtype)


@settings(max_examples=150, deadline=None)
@given(
    cells=st.lists(
        st.tuples(st.lists(st.integers(1, 300), min_size=1, max_size=40), st.floats(0.3, 40)), min_size=1, max_size=5
    ),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_counts_come_back_exactly(cells, dtype):
    counts = [np.array([1, *c]) for c, _ in cells]
    values = np.concatenate([logs(c, s, dtype) for c, (_, s) in zip(counts, cells, strict=True)])
    indptr = np.concatenate([[0], np.cumsum([len(c) for c in counts])])
    assert np.array_equal(recover_counts(values, indptr), np.concatenate(counts))


def test_values_rounded_to_decimals_come_back():
    counts = np.array([1, 2, 3, 4, 5, 9, 17, 30])
    values = logs(counts, 4.1, decimals=3)
    assert np.array_equal(recover_counts(values, np.array([0, len(counts)])), counts)


def test_cells_without_values_are_fine():
    values = logs([1, 2], 3.0)
    assert recover_counts(values, np.array([0, 0, 2, 2])).tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    "values",
    [
        logs([1, 2, 3], 3.0) * np.float32(1.01),  # another base
        np.array([0.31234567, 0.71234567, 1.1345678], np.float32),
        np.log1p(np.array([1.0, 1.37, 2.61], np.float32)),  # corrected counts
        np.array([1.0, 80.0], np.float32),  # no logarithms
        np.array([-1.0, 1.0], np.float32),
        np.array([np.nan, 1.0], np.float32),
        np.array([1, 2]),
    ],
)
def test_what_is_no_log1p_of_scaled_counts_is_refused(values):
    with pytest.raises(NotCountsError):
        recover_counts(values, np.array([0, len(values)]))


def test_the_cell_that_does_not_fit_is_named():
    values = np.concatenate([logs([1, 2, 3], 3.0), np.array([0.31234567, 0.71234567], np.float32)])
    with pytest.raises(NotCountsError, match=r"cell 1: its smallest value 0\.312.* would be .* counts"):
        recover_counts(values, np.array([0, 3, 5]))
