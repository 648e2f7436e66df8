import sys

import anndata as ad
import numpy as np
import pytest

import cellglot
from cellglot.evaluation.batch_removal import check_batches, remove_batches


@pytest.fixture(scope="module")
def two_batches():
    """Three groups of cells in 12 dimensions, the second batch moved by a constant."""
    random = np.random.default_rng(0)
    groups = np.arange(240) % 3
    batches = np.where(np.arange(240) < 120, "first", "second")
    values = (
        random.normal(size=(240, 12)) + 6 * np.eye(12)[groups] + 4 * (batches == "second")[:, None] * np.eye(12)[5]
    )
    return values.astype(np.float32), groups, batches


def distance(values, one):
    return np.linalg.norm(values[one].mean(axis=0) - values[~one].mean(axis=0))


def test_batches_are_removed_and_groups_stay(two_batches):
    values, groups, batches = two_batches
    done = remove_batches(values, batches, "chip")
    assert done.embedding.shape == values.shape and done.embedding.dtype == np.float32
    assert distance(done.embedding, batches == "first") < 0.3 * distance(values, batches == "first")
    centres = np.array([done.embedding[groups == g].mean(axis=0) for g in range(3)])
    assert min(np.linalg.norm(centres[i] - centres[j]) for i, j in ((0, 1), (0, 2), (1, 2))) > 4
    assert done.facts["column"] == "chip" and done.facts["batches"] == {"first": 120, "second": 120}
    assert "'chip' removed by Harmony (harmonypy" in done.summary() and "2 batches" in done.summary()


def test_it_is_what_harmonypy_returns_and_the_same_again(two_batches):
    import harmonypy

    values, _, batches = two_batches
    own = harmonypy.run_harmony(values.T.astype(float), {"b": batches}, "b", verbose=False, random_state=0).Z_corr
    assert np.allclose(remove_batches(values, batches).embedding, own, atol=1e-5)
    assert np.array_equal(remove_batches(values, batches).embedding, remove_batches(values, batches).embedding)


def test_cells_without_an_embedding_take_no_part(two_batches):
    values, _, batches = two_batches
    some = values.copy()
    some[[3, 200]] = np.nan
    done = remove_batches(some, batches)
    assert np.isnan(done.embedding[[3, 200]]).all() and done.facts["cells"] == 238
    kept = np.setdiff1d(np.arange(240), [3, 200])
    assert np.allclose(done.embedding[kept], remove_batches(values[kept], batches[kept]).embedding)


def test_a_few_cells_are_enough():
    values = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)
    assert np.isfinite(remove_batches(values, np.array(list("ababab"))).embedding).all()


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (["a", None, "b", "a"], "1 of 4 cells have no batch in column 'chip'"),
        (["a"] * 4, r"column 'chip' has 1 batch \(a\)"),
        (["a", "b", "c", "d"], "4 values for 4 cells: it is not a column of batches"),
    ],
)
def test_columns_that_are_no_batches_are_refused(batches, message):
    with pytest.raises(ValueError, match=message):
        check_batches(np.array(batches, dtype=object), "chip", "cells.h5ad")


def test_one_batch_with_embeddings_is_refused(two_batches):
    values, _, batches = two_batches
    some = values.copy()
    some[120:] = np.nan
    with pytest.raises(ValueError, match="120 of 240 cells have an embedding, and they are of 1 batch"):
        remove_batches(some, batches, "chip")


@pytest.fixture
def cells(blood, tmp_path):
    some = blood[:60].copy()
    some.obs["chip"] = np.where(np.arange(60) % 2, "one", "two")
    some.obs["holes"] = np.where(np.arange(60) % 5, "one", None)
    some.write_h5ad(tmp_path / "cells.h5ad")
    return some, tmp_path / "cells.h5ad"


def test_embed_removes_batches_of_files_and_of_anndata(model_folders, cells, tmp_path):
    adata, path = cells
    model, options = model_folders["model"], {"remove_batch": "chip", "device": "cpu"}
    said = cellglot.embed(path, model, output=tmp_path / "e.h5ad", **options)
    assert "batches of column 'chip' removed by Harmony" in said
    written = ad.read_h5ad(tmp_path / "e.h5ad")
    cellglot.embed(path, model, output=tmp_path / "plain.npy", device="cpu")
    assert np.allclose(written.obsm["X_with_batches"], np.load(tmp_path / "plain.npy"), atol=1e-6)
    assert not np.allclose(written.X, written.obsm["X_with_batches"], atol=1e-3)
    assert '"column": "chip"' in written.uns["cellglot"]["batch_removal"]
    done = cellglot.embed(adata, model, copy=True, **options)
    assert np.allclose(done.obsm["X_cellglot"], written.obsm["X_with_batches"], atol=1e-6)
    assert np.allclose(done.obsm["X_cellglot_harmony"], written.X, atol=1e-4)
    assert done.uns["cellglot"]["batch_removal"]["column"] == "chip"
    again = cellglot.embed(done, model, copy=True, device="cpu")  # nothing of the earlier call is left
    assert "X_cellglot_harmony" not in again.obsm and "batch_removal" not in again.uns["cellglot"]
    done.write_h5ad(tmp_path / "stored.h5ad")


def test_embed_refuses_a_column_before_the_work(model_folders, cells, tmp_path, monkeypatch):
    from cellglot.evaluation import embed_file as module

    monkeypatch.setattr(module, "embed_cells", None)
    for column, message in (("holes", "12 of 60 cells have no batch"), ("chips", "no column 'chips' in obs")):
        with pytest.raises(ValueError, match=message):
            cellglot.embed(cells[1], model_folders["model"], output=tmp_path / "e.npy", remove_batch=column)
    monkeypatch.setitem(sys.modules, "harmonypy", None)
    with pytest.raises(ImportError, match=r"cellglot\[integration\]"):
        cellglot.embed(cells[1], model_folders["model"], output=tmp_path / "e.npy", remove_batch="chip")
    assert not (tmp_path / "e.npy").exists()
