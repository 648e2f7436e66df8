"""Results written to a file of AnnData before 0.7, as scanpy ships one: obs and obsm are arrays of records."""

import shutil

import anndata as ad
import h5py
import numpy as np

from cellglot.demo.data import prepare
from cellglot.evaluation.output import add_matrices, write_annotated
from cellglot.tokenization import read_cells


def test_results_beside_what_an_old_file_has(tmp_path, blood_log):
    source = prepare(None, "bulk_labels", tmp_path, 0, None)
    output, random = tmp_path / "annotated.h5ad", np.random.default_rng(0)
    before = shutil.copy(source, tmp_path / "before.h5ad")
    with h5py.File(source) as file:
        assert isinstance(file["obsm"], h5py.Dataset) and isinstance(file["obs"], h5py.Dataset)
    embedding, where = random.normal(size=(700, 5)), random.normal(size=(700, 2))
    with read_cells(source) as cells:
        write_annotated(
            cells, source, output, obs={"cellglot_cell_type": ["a", "b"] * 350}, obsm={"X_cellglot": embedding}
        )
    add_matrices(output, {"X_cellglot_umap": where})
    written = ad.read_h5ad(output)
    assert set(written.obsm) == {"X_pca", "X_umap", "X_cellglot", "X_cellglot_umap"}
    assert np.array_equal(written.obsm["X_cellglot"], embedding) and np.array_equal(
        written.obsm["X_cellglot_umap"], where
    )
    assert np.allclose(written.obsm["X_pca"], blood_log.obsm["X_pca"]) and written.obsm["X_umap"].shape == (700, 2)
    assert written.obs["bulk_labels"].tolist() == blood_log.obs["bulk_labels"].tolist()
    assert np.array_equal(written.X, blood_log.X) and written.obs["cellglot_cell_type"].iloc[1] == "b"
    assert source.read_bytes() == before.read_bytes()
