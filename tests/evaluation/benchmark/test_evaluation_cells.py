"""Labelled cells and their split."""

import hashlib

import numpy as np
import pytest

from cellglot.evaluation.benchmark.split import split_cells
from cellglot.evaluation.labelled_cells import open_labelled_cells


@pytest.fixture
def cells(blood):
    """150 cells of three donors, some without a label."""
    cells = blood[:150].copy()
    cells.obs["donor_id"] = [f"donor {i % 3}" for i in range(150)]
    labels = cells.obs["cell_type"].astype(str).to_numpy(dtype=object)
    labels[:5] = [None, "", "nan", "unknown", " NA "]
    cells.obs["cell_type"] = labels
    return cells


def test_labels_batches_and_donors_are_read_and_missing_ones_counted(cells):
    data = open_labelled_cells(cells, batches="donor_id")
    assert (data.label_column, data.batch_column, data.group_column) == ("cell_type", "donor_id", "donor_id")
    assert data.labels[:5].tolist() == [None] * 5 and data.labelled.sum() == 145
    facts = data.facts()
    assert facts["cells_without_label"] == 5 and facts["batches"] == facts["donors"] == 3
    assert sum(facts["cells_of_label"].values()) == 145 and "" not in data.classes()


def test_a_file_is_known_by_its_checksum(blood_file, blood):
    data = open_labelled_cells(blood_file)
    assert data.checksum == hashlib.sha256(blood_file.read_bytes()).hexdigest()
    whole, part = open_labelled_cells(blood), open_labelled_cells(blood[:-1].copy())
    assert whole.checksum != part.checksum and len(whole.checksum) == 64


def test_a_subset_has_the_counts_in_the_order_asked(blood, blood_file):
    numbers = np.array([650, 3, 77])
    subset = open_labelled_cells(blood_file).subset(numbers)
    assert (blood.X[numbers] != subset.X).nnz == 0 and subset.var_names.equals(blood.var_names)


def test_columns_that_are_not_there_or_empty_are_named(cells):
    with pytest.raises(ValueError, match="no column 'kind' in obs of AnnData; it has"):
        open_labelled_cells(cells, labels="kind")
    cells.obs["empty"] = None
    with pytest.raises(ValueError, match="column 'empty' of AnnData: none of 150 cells has a label"):
        open_labelled_cells(cells, labels="empty")


def test_donors_are_held_out_whole(cells):
    data = open_labelled_cells(cells)
    split = split_cells(data, 0.25, seed=1)
    donors = cells.obs["donor_id"].to_numpy()
    assert split.by == "donor_id" and len(split.held_out) == 1
    assert set(donors[split.test]) == set(split.held_out) and not set(donors[split.train]) & set(split.held_out)
    assert (split.train | split.test).sum() == 145 and not (split.train & split.test).any()
    assert not np.array_equal(split.test, split_cells(data, 0.25, seed=3).test)


@pytest.mark.parametrize("donors", ["none", "one"])
def test_without_donors_a_share_of_every_class_is_held_out(cells, donors):
    del cells.obs["donor_id"]
    if donors == "one":
        cells.obs["donor_id"] = "alone"
    data = open_labelled_cells(cells)
    split = split_cells(data, 0.25)
    assert split.by == "cell, stratified by class" and "cells are held out" in split.note
    for name in data.classes():
        mine = data.labels == name
        assert (mine & split.test).sum() == (max(1, round(0.25 * mine.sum())) if mine.sum() > 1 else 0)
    assert split.facts()["training_cells"] + split.facts()["test_cells"] == 145


def test_a_fraction_that_is_no_share_is_refused(cells):
    with pytest.raises(ValueError, match="test_fraction=1.5 must be"):
        split_cells(open_labelled_cells(cells), 1.5)
