"""The study of transfer: what counts as right, its settings, its test sets."""

import numpy as np
import pytest
from anndata import AnnData
from scipy.sparse import csr_matrix
from transfer_sets import (
    MARKER_SETS,
    MARKERS,
    TEST_SETS,
    Labelled,
    MarkerSet,
    identical_cells,
    open_marker_set,
    open_test_set,
    some_cells,
)
from transfer_study import SETTINGS, scores, settings_of, table

from cellglot.tokenization import GeneVocabulary, read_cells
from cellglot.training.config import load_config
from cellglot.training.families.records import FAMILIES


def labelled(n: int) -> Labelled:
    labels = np.array(["T/NK", "B"] * n, dtype=object)[:n]
    right = [("T", "NK") if label == "T/NK" else ("B",) for label in labels]
    return Labelled("set", AnnData(csr_matrix(np.arange(1.0, n + 1)[:, None])), labels, right)


def test_a_label_may_have_several_right_classes():
    found = scores(np.array(["T", "B", "NK", "T", "B"], dtype=object), labelled(5))
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["balanced_accuracy"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found["taken_for"] == {"B": {"B": 1, "T": 1}, "T/NK": {"B": 1, "NK": 1, "T": 1}}
    assert table({"row": {"set": found}}).split("\n")[-1] == "| row | 0.600 / 0.583 |"


def test_drawn_cells_keep_what_is_right_for_them():
    (drawn,) = some_cells([labelled(40)], 7)
    assert len(drawn.labels) == len(drawn.right) == drawn.cells.n_obs == 7
    for count, label, right in zip(drawn.cells.X.toarray()[:, 0], drawn.labels, drawn.right, strict=True):
        assert label == ("T/NK" if count % 2 == 1 else "B") and ("B" in right) == (label == "B")
    assert np.array_equal(some_cells([labelled(40)], 7)[0].cells.X.toarray(), drawn.cells.X.toarray())
    assert len(some_cells([labelled(3)], 7)[0].labels) == 3


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("name", ["plain", "<cls>", *SETTINGS])
def test_settings_are_changes_of_the_shipped_configuration(kind, name):
    changes = settings_of(kind, name)
    shipped, changed = (load_config(f"{kind}_small_finetune.yaml", given) for given in ([], changes))
    assert (shipped == changed) == (not changes)


def test_settings_without_a_name():
    with pytest.raises(ValueError, match="no settings 'fast': there are plain, <cls>, default"):
        settings_of("sccello", "fast")


def test_cells_of_the_training_file_are_found_again():
    genes = ["ENSG00000000003", "ENSG00000000419", "ENSG00000000457"]
    vocabulary = GeneVocabulary.from_statistics(genes, medians=[1.0] * 3)
    one = AnnData(csr_matrix(np.array([[1.0, 2, 3], [4, 0, 1]])))
    one.var_names = genes
    other = AnnData(csr_matrix(np.array([[3.0, 9, 1], [1, 0, 4], [1, 0, 5]])))
    other.var_names = [genes[2], "ENSG00000099999", genes[0]]
    assert identical_cells(vocabulary, read_cells(one), read_cells(other)) == 2


@pytest.mark.reference
@pytest.mark.parametrize("test", TEST_SETS, ids=lambda test: test.name)
def test_every_label_of_a_test_set_has_cells(test, reference_data):
    found = open_test_set(test, reference_data)
    assert set(found.labels) == set(test.classes)
    assert found.cells.n_obs == len(found.right)


def test_marker_genes_name_cells_and_leave_doubtful_ones_out(tmp_path):
    """A cell of each kind, one with markers of two, and one without any; each has 40 counts on some other gene."""
    genes = [gene for of_type in MARKERS.values() for gene in of_type]
    ids = [f"ENSG{i:011d}" for i in range(len(genes) + 1)]
    vocabulary = GeneVocabulary.from_statistics(ids, symbols=dict(zip(ids, [*genes, "ACTB"], strict=True)))
    kinds = [["B"], ["monocyte"], ["T"], ["NK"], ["T", "NK"], ["B", "T"], []]
    counts = [[float(any(g in MARKERS[k] for k in kind)) for g in genes] + [40.0] for kind in kinds]
    cells = AnnData(csr_matrix(np.array(counts, dtype=np.float32)))
    cells.var_names, cells.obs_names = ids, [f"cell {i}" for i in range(len(kinds))]
    cells.write_h5ad(tmp_path / "cells.h5ad")
    found = open_marker_set(MarkerSet("some", "cells.h5ad"), tmp_path, vocabulary)
    assert list(found.labels) == ["B", "monocyte", "T", "NK", "T or NK"]
    assert found.right == [("B cell",), ("CD14+",), ("T cell",), ("NK cell",), ("T cell", "NK cell")]
    assert list(found.cells.obs_names) == [f"cell {i}" for i in range(5)]


@pytest.mark.reference
@pytest.mark.parametrize("test", MARKER_SETS, ids=lambda test: test.name)
def test_sets_without_labels_are_there(test, reference_data):
    assert read_cells(reference_data / test.file).n_cells >= 200
