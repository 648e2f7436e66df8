import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.decomposition import PCA

from cellglot.evaluation.benchmark.baselines import (
    LogCountsPca,
    VariableGeneNeighbors,
    baseline_gene_scores,
    expression_scores,
    log_counts,
    logistic_regression,
    majority,
    variable_genes,
)
from cellglot.evaluation.scores.marker_table import MarkerGenes
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


def test_components_are_those_of_dense_counts_and_deleting_a_gene_is_exact(blood_file):
    with read_cells(blood_file) as cells:
        features = log_counts(cells)
    fitted = LogCountsPca.fit(features, 8)
    dense = features.toarray().astype(float)
    expected = PCA(8, svd_solver="full").fit_transform(dense)
    found = fitted.embed(features)
    assert np.abs(np.corrcoef(found[:, 0], expected[:, 0])[0, 1]) == pytest.approx(1, abs=1e-4)
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.linalg.norm(expected, axis=1), rel=0.05)
    distances = fitted.gene_distances(features[3])
    genes = features[3].indices
    assert distances.shape == (len(genes),)
    for place in (0, len(genes) // 2, -1):
        without = dense[3].copy()
        without[genes[place]] = 0
        a, b = fitted.pca.transform(dense[3:4])[0], fitted.pca.transform(without[None])[0]
        cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        assert distances[place] == pytest.approx(1 - cosine, abs=1e-6)


def test_too_few_cells_for_components():
    with pytest.raises(ValueError, match="2 cells of 5 genes: PCA needs at least three of each"):
        LogCountsPca.fit(sp.csr_matrix(np.eye(2, 5)))


def test_neighbours_by_variable_genes_vote(blood_file, blood):
    with read_cells(blood_file) as cells:
        features = log_counts(cells)
    labels = blood.obs["cell_type"].to_numpy(dtype=str)
    test = np.arange(700) % 4 == 0
    model = VariableGeneNeighbors.fit(features[~test], labels[~test], number=200)
    shares = model.probabilities(features[test])
    assert model.genes.sum() == 200 and shares.sum(axis=1) == pytest.approx(1)
    assert (model.classifier.classes_[shares.argmax(axis=1)] == labels[test]).mean() > 0.6
    assert variable_genes(features, 10_000).all()
    few = VariableGeneNeighbors.fit(features[:3], labels[:3])
    assert few.classifier.n_neighbors == 3


def test_genes_of_a_baseline_are_looked_up_by_every_name(blood):
    cells = read_cells(blood[:4])
    name = blood.var_names[int(blood.X[0].indices[0])]
    markers = MarkerGenes({"a": [name], "b": []})
    scores, flags = baseline_gene_scores(expression_scores, cells, markers, ["a", "b", "b", "a"])
    assert [len(s) for s in scores] == np.diff(blood.X[:4].tocsr().indptr).tolist()
    assert flags[0].sum() == 1 and not flags[1].any()
    assert scores[0] == pytest.approx(log_counts(cells)[0].data)
