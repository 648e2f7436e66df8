import json
import random

import igraph
import numpy as np
import pytest
import scanpy
from scib_metrics.nearest_neighbors import NeighborsResults
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_score

from cellglot.evaluation.metrics.cell_embedding_quality.cell_embedding_quality import nearest_neighbors
from cellglot.evaluation.scores import clustering
from cellglot.evaluation.scores.clustering import connectivities, evaluate_embedding, leiden_clusters


@pytest.fixture(scope="module")
def components(blood_log):
    return np.asarray(blood_log.obsm["X_pca"])


@pytest.fixture(scope="module")
def labels(blood_log):
    return blood_log.obs["bulk_labels"].astype(str).to_numpy()


@pytest.fixture(scope="module")
def batches(blood_log):
    return blood_log.obs["phase"].astype(str).to_numpy()


@pytest.fixture(scope="module")
def graph(components):
    return connectivities(*nearest_neighbors(components, 15))


@pytest.fixture(scope="module")
def scores(components, labels, batches):
    return evaluate_embedding(components, labels, batches)


@pytest.fixture
def blobs():
    """Three types of 40 cells, far apart, in two batches."""
    types = np.repeat(["a", "b", "c"], 40)
    x = np.random.default_rng(0).normal(size=(120, 5)) + 20 * (types[:, None] == np.array(["a", "b", "c", "d", "e"]))
    return x, types, np.tile(["x", "y"], 60)


def test_the_graph_and_the_clusters_are_those_of_scanpy(components, graph):
    cells = scanpy.AnnData(components)
    scanpy.pp.neighbors(cells, n_neighbors=15, use_rep="X")
    assert abs(cells.obsp["connectivities"] - graph).max() < 1e-4
    scanpy.tl.leiden(cells, flavor="igraph", n_iterations=2, directed=False, resolution=0.7, random_state=0)
    ours = leiden_clusters(graph, [0.7], seed=0)[0]
    assert adjusted_rand_score(cells.obs["leiden"], ours) == 1
    scib = NeighborsResults(*nearest_neighbors(components, 15)).knn_graph_connectivities
    assert abs(scib - graph).max() < 1e-4


def test_twins_have_the_weights_of_umap():
    random = np.random.default_rng(0)
    x = np.concatenate(
        [np.zeros((8, 3)), np.repeat(random.normal(size=(6, 3)), 2, axis=0), random.normal(size=(20, 3))]
    )
    for n_neighbors in (2, 3, 5, 15):
        found = nearest_neighbors(x, n_neighbors)
        theirs = NeighborsResults(*found).knn_graph_connectivities
        assert abs(connectivities(*found) - theirs).max() < 1e-4, n_neighbors
    assert connectivities(*nearest_neighbors(np.zeros((4, 2)), 3)).max() == 1


def test_real_cells_follow_the_protocol(scores, components, labels, graph):
    found = leiden_clusters(graph, [0.1 * n for n in range(1, 21)])
    agreement = [normalized_mutual_info_score(labels, c) for c in found]
    best = int(np.argmax(agreement))
    assert scores["nmi"] == pytest.approx(max(agreement)) and scores["nmi"] > 0.6
    assert scores["resolutions"] == [pytest.approx(0.1 * (best + 1))]
    assert scores["clusters"] == [len(set(found[best]))]
    assert scores["ari"] == pytest.approx(adjusted_rand_score(labels, found[best]))
    assert scores["asw_label"] == pytest.approx((silhouette_score(components, labels) + 1) / 2, abs=1e-6)
    assert scores["avg_bio"] == pytest.approx(np.mean([scores[n] for n in ("nmi", "ari", "asw_label")]))
    assert scores["avg_batch"] == pytest.approx((scores["asw_batch"] + scores["graph_connectivity"]) / 2)
    assert (scores["cells"], scores["cell_types"], scores["batches"], scores["parts"]) == (700, 10, 3, 1)
    assert scores["undefined"] == {} and json.loads(json.dumps(scores)) == scores


def test_the_same_seed_gives_the_same_and_igraph_is_left_as_it_was(graph, scores, components, labels, batches):
    assert evaluate_embedding(components, labels, batches) == scores
    one, other = leiden_clusters(graph, [1.0, 2.0]), leiden_clusters(graph, [2.0])
    assert (one[1] == other[0]).all()
    with pytest.raises(TypeError):
        leiden_clusters(graph, [1.0, None])
    drawn = []
    for _ in range(2):
        random.seed(1)
        drawn.append(igraph.Graph.Erdos_Renyi(n=20, p=0.5).get_edgelist())
    assert drawn[0] == drawn[1]  # igraph draws from Python's generator again


def test_types_far_apart_and_batches_mixed_are_perfect(blobs):
    scores = evaluate_embedding(*blobs)
    assert scores["nmi"] == pytest.approx(1) and scores["ari"] == pytest.approx(1)
    assert scores["graph_connectivity"] == 1 and scores["asw_label"] > 0.9 and scores["avg_batch"] > 0.95
    assert scores["clusters"] == [3]


def test_cells_without_label_batch_or_embedding_are_counted_and_left_out(blobs):
    x, types, batches = blobs
    more = np.concatenate([x, np.zeros((2, 5)), np.full((3, 5), np.nan)])
    base = evaluate_embedding(x, types, ["", *batches[1:]])
    scores = evaluate_embedding(more, [*types, None, float("nan"), "a", "b", None], ["", *batches[1:], *"xyxyx"])
    counts = ("cells_without_embedding", "cells_without_label", "cells_without_batch")
    assert [scores[n] for n in counts] == [3, 2, 1]
    assert [base[n] for n in counts] == [0, 0, 1]
    assert {k: v for k, v in scores.items() if k not in counts} == {k: v for k, v in base.items() if k not in counts}


def test_undefined_scores_say_why(blobs):
    x, types, batches = blobs
    one = evaluate_embedding(x, ["a"] * 120, ["x"] * 120)
    assert {n for n in clustering.SCORES if one[n] is None} == set(clustering.SCORES) - {"graph_connectivity"}
    assert set(one["undefined"]) == set(clustering.SCORES) - {"graph_connectivity"}
    assert one["undefined"]["nmi"] == "the cells have 1 cell type: at least two are needed"
    assert one["resolutions"] == [] and one["clusters"] == []
    no_batches = evaluate_embedding(x, types)
    assert no_batches["asw_batch"] is None and no_batches["avg_batch"] is None and no_batches["avg_bio"] > 0.9
    assert no_batches["undefined"]["asw_batch"] == "no batches were given"
    no_labels = evaluate_embedding(x[:3], batches=batches[:3], n_neighbors=100)
    assert no_labels["asw_batch"] is not None
    assert no_labels["undefined"]["avg_bio"].endswith("no cell types were given")
    nothing = evaluate_embedding(x)
    assert all(nothing[n] is None for n in clustering.SCORES)


def test_above_the_limit_tenths_are_averaged(blobs):
    x, types, batches = blobs
    x, types, batches = np.tile(x, (3, 1)), np.tile(types, 3), np.tile(batches, 3)
    few = {"resolutions": (0.1, 0.5)}
    scores = evaluate_embedding(x, types, batches, most_cells=359, **few)
    assert scores["parts"] == 10 and len(scores["resolutions"]) == 10 and scores["cells"] == 360
    assert scores["nmi"] > 0.95 and scores == evaluate_embedding(x, types, batches, most_cells=359, **few)
    assert evaluate_embedding(x, types, batches, most_cells=360, **few)["parts"] == 1
    rare = np.where(np.arange(360) < 5, "y", "x")
    some = evaluate_embedding(x, types, rare, most_cells=100, **few)
    assert some["asw_batch"] is None and " of 10 parts: the cells have 1 batch" in some["undefined"]["asw_batch"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embedding": np.zeros((3, 2, 2))}, r"shape \(3, 2, 2\); it must be \(cells, size\)"),
        ({"embedding": np.full((20, 2), np.nan)}, "none of 20 cells has an embedding"),
        ({"labels": ["a"] * 19}, "19 labels for embeddings of 20 cells"),
        ({"batches": ["a"] * 21}, "21 batches for embeddings of 20 cells"),
        ({"labels": [None] * 20}, "none of 20 cells has a label"),
        ({"labels": [*"ab", *[None] * 18]}, "2 cells are fewer than n_neighbors=15"),
        ({"resolutions": []}, "no resolutions"),
    ],
)
def test_input_that_cannot_be_scored(changes, message):
    given = {"embedding": np.eye(20), "labels": ["a", "b"] * 10} | changes
    with pytest.raises(ValueError, match=message):
        evaluate_embedding(**given)
