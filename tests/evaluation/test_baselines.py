import numpy as np
import pytest
import scipy.sparse as sp

from cellglot.evaluation.baselines import log_counts, logistic_regression, majority
from cellglot.tokenization import read_cells


def test_log_counts(blood, blood_file):
    with read_cells(blood_file) as cells:
        features = log_counts(cells)
    counts = blood.X.toarray().astype(float)
    assert sp.issparse(features) and features.shape == (700, 765)
    assert np.allclose(features.toarray(), np.log1p(counts / counts.sum(1, keepdims=True) * 1e4), rtol=1e-5)


def test_logistic_regression_knows_blood_cells_and_majority_does_not(blood_file, blood):
    with read_cells(blood_file) as cells:
        features = log_counts(cells)
    labels = blood.obs["cell_type"].to_numpy(dtype=str)
    test = np.arange(700) % 4 == 0
    linear = logistic_regression(features, labels, ~test, test)
    most = majority(labels, ~test, test)
    assert linear.predicted.shape == most.predicted.shape == (175,)
    accuracy = {b.name: (b.predicted == labels[test]).mean() for b in (linear, most)}
    names, counts = np.unique(labels[~test], return_counts=True)
    assert set(most.predicted) == {names[counts.argmax()]}
    assert accuracy[linear.name] > 0.7 > 0.5 > accuracy[most.name] > 0
    assert "logistic regression" in linear.name and "most frequent" in most.name


def test_cells_without_counts(tmp_path, random_counts):
    import anndata as ad

    counts = random_counts(5, 30).tolil()
    counts[2] = 0
    ad.AnnData(sp.csr_matrix(counts)).write_h5ad(tmp_path / "cells.h5ad")
    with read_cells(tmp_path / "cells.h5ad") as cells:
        features = log_counts(cells, target_sum=100).toarray()
    assert not features[2].any()
    assert np.expm1(features).sum(1)[[0, 1, 3, 4]] == pytest.approx(np.full(4, 100), rel=1e-4)
