import re

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from cellglot.tokenization.count_audit import NotCountsError, audit, recover_counts
from cellglot.tokenization.count_matrix import open_counts


@pytest.mark.parametrize(
    "values",
    [np.array([1, 2, 3]), np.array([1.0, 5.0], np.float32), np.array([0, 7], np.uint16), np.array([], np.float32)],
)
def test_counts_are_counts(values):
    assert audit(values)[0] is None


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([1.0, -2.5], "negative values (1 of 2 checked, smallest -2.5)"),
        ([-1, 3], "negative values"),
        ([1.0, np.nan], "1 missing (NaN) and 0 infinite"),
        ([np.inf, 1.0], "0 missing (NaN) and 1 infinite"),
        ([0.5, 1.0], "(1 of 2 checked, from 0.5 to 1), as log-normalised data has"),
        ([0.5, 800.25], "as normalised data has"),
        (["a"], "not numbers"),
        ([1 + 2j], "not numbers"),
    ],
)
def test_what_was_seen_is_said(values, said):
    assert said in audit(np.array(values))[0]


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
    with pytest.raises(NotCountsError, match=r"cell 1: with its smallest value 0\.312.* would be .* counts"):
        recover_counts(values, np.array([0, 3, 5]))


def almost(counts, seed=0):
    """Counts as they come back from log1p of counts per 10,000 in single precision."""
    counts = np.asarray(counts, dtype=np.float64)
    total = counts.sum(axis=1, keepdims=True)
    log = np.log1p(counts / total * 1e4).astype(np.float32)
    return (np.expm1(log) * (total / 1e4).astype(np.float32)).astype(np.float32)


COUNTS = np.random.default_rng(3).poisson(1.5, (60, 90))
COUNTS *= np.random.default_rng(4).choice([1, 1, 1, 40, 900], (60, 90))


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix, sp.csc_matrix])
def test_counts_but_for_the_rounding_of_single_precision(form):
    values = almost(COUNTS)
    assert (values != COUNTS).any() and audit(values)[0] is None
    counts = open_counts(form(values), genes=[f"G{i}" for i in range(90)])
    assert counts.rounded and "rounded to whole numbers" in counts.described_location
    rows = counts.rows(0, 60)
    dense = np.zeros((60, 90))
    for cell in range(60):
        part = slice(rows.indptr[cell], rows.indptr[cell + 1])
        dense[cell, rows.indices[part]] = rows.data[part]
    assert (dense == COUNTS).all()


def test_whole_numbers_are_not_called_rounded():
    counts = open_counts(COUNTS.astype(np.float32), genes=[f"G{i}" for i in range(90)])
    assert not counts.rounded and counts.described_location == "X"


@pytest.mark.parametrize("value", [1e-7, 0.9999, 2.001, 1e-5])
def test_what_is_further_away_is_refused(value):
    assert "not whole numbers" in audit(np.array([1.0, 2.0, value], dtype=np.float32))[0]


def normalised(values):
    return values / values.sum(axis=1, keepdims=True) * 1e6


DIAGNOSES = {
    "a join": (np.where(np.arange(90) < 30, np.nan, COUNTS), "anndata.concat.*fill_value=0"),
    "a division by zero": (np.where(COUNTS > 100, np.inf, COUNTS), "total of zero"),
    "z-scores": ((COUNTS - COUNTS.mean(0)) / COUNTS.std(0), "scaled.*before that step"),
    "logs": (np.log1p(normalised(COUNTS) / 100), "log-normalised.*log1p"),
    "CPM": (normalised(COUNTS), r"normalised data has \(CPM"),
    "RSEM": (np.where(COUNTS % 3 == 1, COUNTS + 0.53, COUNTS), "RSEM.*round them"),
    "kallisto": (COUNTS * np.random.default_rng(0).random(COUNTS.shape), "kallisto.*round them"),
    "log2": (np.log2(COUNTS + 1), r"log2\(counts \+ 1\).*exp2"),
    "log1p": (np.log1p(COUNTS % 90), r"log1p\(counts\).*exp\("),
}


@pytest.mark.parametrize("kind", DIAGNOSES)
def test_each_kind_has_its_diagnosis(kind):
    values, said = DIAGNOSES[kind]
    stored = np.asarray(values, dtype=np.float32)
    reason = audit(stored[stored != 0])[0]
    assert re.search(said, reason), reason
