"""Values of the metrics: those of scikit-learn and scib-metrics where definitions are the same."""

from types import SimpleNamespace

import numpy as np
import pytest
import scib_metrics
import scipy.stats
from scib_metrics.nearest_neighbors import NeighborsResults
from scib_metrics.utils import silhouette_samples as scib_silhouette_samples
from sklearn import metrics

from cellglot.evaluation import load_metric
from cellglot.evaluation.metrics.cell_embedding_quality import cell_embedding_quality as quality
from cellglot.evaluation.metrics.cell_type_classification import cell_type_classification as classification
from cellglot.evaluation.metrics.clustering_agreement import clustering_agreement as agreement
from cellglot.tokenization.reading.labels import MISSING_LABELS


@pytest.fixture(scope="module")
def real(blood_log):
    """Principal components, cell types and cell-cycle phases of the 700 blood cells."""
    return SimpleNamespace(
        embedding=np.asarray(blood_log.obsm["X_pca"], dtype=np.float64),
        labels=blood_log.obs["bulk_labels"].astype(str).to_numpy(),
        batches=blood_log.obs["phase"].astype(str).to_numpy(),
    )


@pytest.fixture(scope="module")
def predictions():
    """Classes and class scores of 300 cells: classes a, b, c in training, and cells of class d."""
    random = np.random.default_rng(3)
    true = random.choice(list("abcd"), 300, p=[0.5, 0.3, 0.15, 0.05])
    scores = random.random((300, 3)) + (true[:, None] == np.array(list("abc")))
    scores /= scores.sum(axis=1, keepdims=True)
    return true, np.array(list("abc"))[scores.argmax(axis=1)], scores


# ---------------------------------------------------------------- classification


def test_classification_is_that_of_scikit_learn(predictions):
    true, predicted, scores = predictions
    known = true != "d"
    found = load_metric("cell_type_classification").compute(
        predictions=predicted[known], references=true[known], scores=scores[known], classes=list("abc")
    )
    a, b = true[known], predicted[known]
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(a, b), abs=1e-6)
    assert found["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(a, b), abs=1e-6)
    assert found["macro_f1"] == pytest.approx(metrics.f1_score(a, b, average="macro"), abs=1e-6)
    assert found["auroc"] == pytest.approx(metrics.roc_auc_score(a, scores[known], multi_class="ovr"), abs=1e-6)
    assert list(found["f1_per_class"].values()) == pytest.approx(metrics.f1_score(a, b, average=None), abs=1e-6)
    assert found["unseen_classes"] == {} and found["undefined"] == {}


def test_two_classes_have_the_binary_auroc(predictions):
    true, _, scores = predictions
    some = np.isin(true, ["a", "b"])
    of_b = scores[some, 1] / scores[some, :2].sum(axis=1)
    found = load_metric("cell_type_classification").compute(
        predictions=true[some], references=true[some], scores=np.stack([1 - of_b, of_b], axis=1), classes=["a", "b"]
    )
    assert found["auroc"] == pytest.approx(metrics.roc_auc_score(true[some] == "b", of_b), abs=1e-6)


def test_classes_that_training_never_saw_are_errors_and_reported(predictions):
    true, predicted, scores = predictions
    unseen = int((true == "d").sum())
    assert unseen > 5
    found = load_metric("cell_type_classification").compute(
        predictions=predicted, references=true, scores=scores, classes=list("abc")
    )
    assert found["unseen_classes"] == {"d": unseen}
    assert found["accuracy"] == pytest.approx((true == predicted).sum() / 300)
    assert found["cells"] == 300 and found["cells_per_class"]["d"] == unseen
    assert found["f1_per_class"]["d"] == 0 and found["auroc_per_class"]["d"] == 0.5
    assert found["macro_f1"] == pytest.approx(
        metrics.f1_score(true, predicted, average="macro", labels=list("abcd"), zero_division=0)
    )
    assert found["auroc"] == pytest.approx(np.mean(list(found["auroc_per_class"].values())))
    by_name = load_metric("cell_type_classification").compute(
        predictions=predicted, references=true, training_classes=["a", "c", "d"]
    )
    assert by_name["unseen_classes"] == {"b": int((true == "b").sum())}


def test_cells_without_label_are_left_out_and_without_prediction_errors():
    found = load_metric("cell_type_classification").compute(
        references=["a", None, float("nan"), " ", "b", "b"],
        predictions=["a", "a", "a", "a", None, "b"],
        scores=[[1, 0], [1, 0], [1, 0], [1, 0], [np.nan, np.nan], [0, 1]],
        classes=["a", "b"],
    )
    assert (found["cells"], found["cells_without_label"], found["cells_without_prediction"]) == (3, 3, 1)
    assert found["accuracy"] == pytest.approx(2 / 3) and found["balanced_accuracy"] == pytest.approx(0.75)
    assert found["auroc"] == 1 and found["cells_without_scores"] == 1


def test_an_undefined_auroc_says_why():
    metric = load_metric("cell_type_classification")
    one = metric.compute(references=["a", "a"], predictions=["a", "b"], scores=np.eye(2), classes=["a", "b"])
    assert one["auroc"] is None and "1 class: AUROC needs two" in one["undefined"]["auroc"]
    assert one["accuracy"] == 0.5
    none = metric.compute(references=["a", "b"], predictions=["a", "b"])
    assert none["auroc"] is None and none["undefined"]["auroc"] == "no scores of classes were given"
    assert none["unseen_classes"] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"references": [None, ""]}, "none of 2 cells has a label"),
        ({"scores": np.eye(2)}, "name the class of each column"),
        (
            {"scores": np.eye(2), "classes": ["a", "b", "c"]},
            r"scores have shape \(2, 2\) for 2 cells and 3 classes",
        ),
        ({"scores": np.eye(2), "classes": ["a", "a"]}, "must have distinct names"),
        ({"scores": np.zeros((2, 0)), "classes": []}, "be at least one"),
    ],
)
def test_input_that_does_not_fit(changes, message):
    given = {"references": ["a", "b"], "predictions": ["a", "b"]} | changes
    with pytest.raises(ValueError, match=message):
        load_metric("cell_type_classification").compute(**given)


# ---------------------------------------------------------------- clusters


def test_agreement_of_clusters_is_that_of_scikit_learn_and_scib(real):
    random = np.random.default_rng(0)
    clusters = np.where(random.random(700) < 0.3, random.choice(list("xyz"), 700), real.labels)
    found = load_metric("clustering_agreement").compute(predictions=clusters, references=real.labels)
    # What scib_metrics.nmi_ari_cluster_labels_leiden calls once it has its clusters.
    nmi = metrics.normalized_mutual_info_score(real.labels, clusters, average_method="arithmetic")
    assert found["nmi"] == pytest.approx(nmi, abs=1e-6)
    assert found["ari"] == pytest.approx(metrics.adjusted_rand_score(real.labels, clusters), abs=1e-6)
    whole = quality.embedding_scores(real.embedding, real.labels, clusters=clusters)
    assert (whole["nmi"], whole["ari"]) == (found["nmi"], found["ari"])


def test_agreement_with_one_cell_type_is_undefined():
    found = load_metric("clustering_agreement").compute(predictions=[1, 2, 2], references=["a", "a", "a"])
    assert found["nmi"] is None and found["ari"] is None
    assert found["undefined"]["nmi"] == "all 3 cells have the same cell type: at least two types are needed"
    with pytest.raises(ValueError, match="none of 2 cells has a label"):
        load_metric("clustering_agreement").compute(predictions=[1, 2], references=["", None])
    with pytest.raises(ValueError, match="1 cells have no cluster"):
        load_metric("clustering_agreement").compute(predictions=[1, None], references=["a", "b"])


# ---------------------------------------------------------------- embeddings


@pytest.mark.parametrize("block", [64, 2048])
def test_silhouette_widths_are_those_of_scikit_learn_and_scib(real, block, monkeypatch):
    monkeypatch.setattr(quality, "CELLS_AT_ONCE", block)
    groupings = [quality.group_codes(real.labels), quality.group_codes(real.batches)]
    for widths, names in zip(
        quality.silhouette_widths(real.embedding, groupings), (real.labels, real.batches), strict=True
    ):
        np.testing.assert_allclose(widths, metrics.silhouette_samples(real.embedding, names), atol=1e-6)
        single = scib_silhouette_samples(real.embedding.astype(np.float32), names)
        np.testing.assert_allclose(widths, single, atol=1e-4)


def test_silhouettes_of_types_and_batches(real):
    found = quality.embedding_scores(real.embedding, real.labels, real.batches)
    scib = scib_metrics.silhouette_label(real.embedding.astype(np.float32), real.labels)
    assert found["asw_label"] == pytest.approx(float(scib), abs=1e-4)
    assert found["asw_label"] == pytest.approx(
        (metrics.silhouette_score(real.embedding, real.labels) + 1) / 2, abs=1e-6
    )
    widths = metrics.silhouette_samples(real.embedding, real.batches)
    of_batches = [1 - np.abs(widths[real.batches == b]).mean() for b in np.unique(real.batches)]
    assert found["asw_batch"] == pytest.approx((1 + np.mean(of_batches)) / 2, abs=1e-6)
    assert found["avg_batch"] == pytest.approx((found["asw_batch"] + found["graph_connectivity"]) / 2)


def test_of_one_cell_type_scibs_batch_silhouette_is_the_mean_of_the_same_widths(real):
    widths = quality.silhouette_widths(real.embedding, [quality.group_codes(real.batches)])[0]
    one = np.full(700, "all")
    scib = scib_metrics.silhouette_batch(real.embedding.astype(np.float32), one, real.batches)
    assert (1 - np.abs(widths)).mean() == pytest.approx(float(scib), abs=1e-4)


def test_cells_without_group_and_alone_in_their_group():
    x = np.array([[0.0], [1.0], [5.0], [6.0], [50.0]])
    (widths,) = quality.silhouette_widths(x, [np.array([0, 0, 1, 1, -1])])
    np.testing.assert_allclose(widths[:4], metrics.silhouette_samples(x[:4], [0, 0, 1, 1]))
    assert np.isnan(widths[4])
    (alone,) = quality.silhouette_widths(x, [np.array([0, 0, 1, 1, 2])])
    assert alone[4] == 0
    (twins,) = quality.silhouette_widths(np.zeros((4, 2)), [np.array([0, 0, 1, 1])])
    assert twins.tolist() == [0, 0, 0, 0]


def test_connectivity_of_one_graph_is_that_of_scib(real):
    graph = quality.neighbor_graph(quality.nearest_neighbors(real.embedding, 15)[0])
    assert abs(graph.astype(int) - graph.T.astype(int)).max() == 0
    found = quality.graph_connectivity(graph, quality.group_codes(real.labels))
    # scib-metrics follows edges one way: given the same edges in both directions, it finds the same parts.
    scib = scib_metrics.graph_connectivity(SimpleNamespace(knn_graph_distances=graph.astype(float)), real.labels)
    assert found == pytest.approx(scib, abs=1e-4)
    assert 0.5 < found < 1


def test_the_graph_has_the_edges_of_scib_and_umap(real):
    numbers, distances = quality.nearest_neighbors(real.embedding, 15)
    theirs = NeighborsResults(indices=numbers, distances=distances).knn_graph_connectivities
    ours = quality.neighbor_graph(numbers)
    assert abs((theirs > 0).astype(int) - ours.astype(int)).max() == 0


def test_twins_are_their_own_first_neighbours():
    numbers, distances = quality.nearest_neighbors(np.zeros((6, 2)), 3)
    assert numbers[:, 0].tolist() == list(range(6)) and (distances == 0).all()
    assert all(len(set(row)) == 3 for row in numbers.tolist())


def test_fewer_cells_than_neighbours():
    with pytest.raises(ValueError, match="14 cells are fewer than n_neighbors=15"):
        quality.embedding_scores(np.eye(14), ["a", "b"] * 7)
    assert quality.embedding_scores(np.eye(15), ["a", "b", "c"] * 5)["cells"] == 15
    with pytest.raises(ValueError, match="at least 2"):
        quality.nearest_neighbors(np.eye(4), 1)


def test_undefined_scores_of_embeddings_say_why():
    x = np.random.default_rng(0).normal(size=(20, 3))
    metric = load_metric("cell_embedding_quality")
    found = metric.compute(predictions=x, references=["a"] * 20, batches=["x"] * 20, clusters=[0] * 20)
    assert [found[n] for n in ("nmi", "ari", "asw_label", "avg_bio", "asw_batch", "avg_batch")] == [None] * 6
    assert found["graph_connectivity"] is not None
    assert found["undefined"]["asw_label"] == "the cells have 1 cell type: at least two are needed"
    assert found["undefined"]["asw_batch"] == "the cells have 1 batch: at least two are needed"
    assert found["undefined"]["avg_batch"].startswith("asw_batch undefined: the cells have 1 batch")
    alone = metric.compute(predictions=x, references=[str(i) for i in range(20)])
    assert alone["asw_label"] is None and alone["undefined"]["asw_label"] == "every cell type has a single cell"
    assert alone["undefined"]["asw_batch"] == "no batches were given"
    assert quality.embedding_scores(x)["undefined"]["graph_connectivity"] == "no cell types were given"


def test_cells_without_label_or_batch_are_counted():
    random = np.random.default_rng(0)
    x = random.normal(size=(40, 3))
    labels = random.choice(["a", "b"], 40).tolist()
    batches = random.choice(["x", "y"], 40).tolist()
    base = quality.embedding_scores(x, labels, batches, n_neighbors=5)
    more = np.concatenate([x, np.full((2, 3), np.nan)])
    found = quality.embedding_scores(more, [*labels, None, float("nan")], [*batches, "x", None], n_neighbors=5)
    assert found.pop("cells_without_label") == 2 and base.pop("cells_without_label") == 0
    assert found == base
    part = quality.embedding_scores(x, labels, ["", *batches[1:]], n_neighbors=5)
    assert part["cells_without_batch"] == 1 and part["asw_label"] == base["asw_label"]
    widths = metrics.silhouette_samples(x[1:], batches[1:])
    means = [1 - np.abs(widths[np.array(batches[1:]) == b]).mean() for b in "xy"]
    assert part["asw_batch"] == pytest.approx((1 + np.mean(means)) / 2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"labels": ["a"] * 3}, "3 labels for embeddings of 4 cells"),
        ({"labels": [None] * 4}, "none of 4 cells has a label"),
        ({"labels": ["a", "b"] * 2, "clusters": [1, 2, 3, None]}, "1 cells have no cluster"),
        ({"labels": ["a", "b"] * 2, "embedding": np.full((4, 2), np.inf)}, "embeddings of 4 cells are not finite"),
        ({"embedding": np.zeros(4)}, r"shape \(4,\); it must be \(cells, size\)"),
    ],
)
def test_embeddings_that_do_not_fit(given, message):
    with pytest.raises(ValueError, match=message):
        quality.embedding_scores(**({"embedding": np.eye(4), "n_neighbors": 2} | given))


# ---------------------------------------------------------------- values and markers


def test_regression_is_that_of_scikit_learn_and_scipy():
    random = np.random.default_rng(1)
    true = np.round(random.normal(size=200), 1)
    predicted = np.round(0.5 * true + random.normal(size=200), 1)
    found = load_metric("cell_value_regression").compute(
        predictions=[*predicted, 1.0], references=[*true, float("nan")]
    )
    assert found["pearson"] == pytest.approx(scipy.stats.pearsonr(true, predicted).statistic, abs=1e-6)
    assert found["spearman"] == pytest.approx(scipy.stats.spearmanr(true, predicted).statistic, abs=1e-6)
    assert found["r2"] == pytest.approx(metrics.r2_score(true, predicted), abs=1e-6)
    assert found["mae"] == pytest.approx(metrics.mean_absolute_error(true, predicted), abs=1e-6)
    assert (found["cells"], found["cells_without_value"]) == (200, 1)


@pytest.mark.parametrize(
    ("predictions", "references", "undefined", "reason"),
    [
        ([1.0], [1.0], ["pearson", "r2", "spearman"], "a single cell has a value"),
        ([1.0, 2.0, 3.0], [2.0, 2.0, 2.0], ["pearson", "r2", "spearman"], "all 3 cells have the same value"),
        ([2.0, 2.0, 2.0], [1.0, 2.0, 3.0], ["pearson", "spearman"], "all 3 predictions are the same"),
    ],
)
def test_undefined_scores_of_values_say_why(predictions, references, undefined, reason):
    found = load_metric("cell_value_regression").compute(predictions=predictions, references=references)
    assert sorted(found["undefined"]) == undefined and all(reason in r for r in found["undefined"].values())
    assert all(found[name] is None for name in undefined)
    assert found["mae"] == pytest.approx(np.mean(np.abs(np.subtract(predictions, references))))


def test_values_that_cannot_be_scored():
    metric = load_metric("cell_value_regression")
    with pytest.raises(ValueError, match="none of 2 cells has a value"):
        metric.compute(predictions=[1.0, 2.0], references=[float("nan")] * 2)
    with pytest.raises(ValueError, match="1 values or predictions of 2 cells with a value are not finite"):
        metric.compute(predictions=[1.0, float("nan")], references=[1.0, 2.0])


def test_marker_auroc_is_that_of_scikit_learn():
    random = np.random.default_rng(2)
    sizes = random.integers(5, 40, 30)
    scores = [np.round(random.random(n), 1) for n in sizes]
    markers = [np.arange(n) < 1 + n // 8 for n in sizes]
    types = random.choice(["a", "b", ""], 30)
    found = load_metric("marker_gene_auroc").compute(
        predictions=[s.tolist() for s in scores],
        references=[m.astype(int).tolist() for m in markers],
        cell_types=types,
    )
    theirs = np.array([metrics.roc_auc_score(m, s) for m, s in zip(markers, scores, strict=True)])
    np.testing.assert_allclose(found["auroc_per_cell"], theirs, atol=1e-6)
    assert found["auroc"] == pytest.approx(theirs.mean(), abs=1e-6)
    assert found["auroc_per_type"]["a"] == pytest.approx(theirs[types == "a"].mean(), abs=1e-6)
    assert found["auroc_macro"] == pytest.approx(np.mean([theirs[types == t].mean() for t in "ab"]), abs=1e-6)
    assert found["cells_per_type"] == {t: int((types == t).sum()) for t in "ab"}


def test_cells_without_markers_are_counted_and_no_cells_are_undefined():
    metric = load_metric("marker_gene_auroc")
    found = metric.compute(predictions=[[1.0, 2.0], [3.0, 1.0], [1.0]], references=[[0, 1], [0, 0], [1]])
    assert (found["auroc"], found["cells"]) == (1.0, 1)
    assert (found["cells_without_markers"], found["cells_of_markers_alone"]) == (1, 1)
    assert found["auroc_per_cell"] == [1.0, None, None]
    assert found["auroc_macro"] is None and found["undefined"] == {"auroc_macro": "no cell types were given"}
    none = metric.compute(predictions=[[1.0, 2.0]], references=[[0, 0]], cell_types=["a"])
    assert none["auroc"] is None and none["undefined"]["auroc"] == "none of 1 cells has a marker and another gene"
    assert none["auroc_macro"] is None
    with pytest.raises(ValueError, match="1 of the 2 genes of a cell have the score NaN"):
        metric.compute(predictions=[[1.0, float("nan")]], references=[[0, 1]])
    with pytest.raises(ValueError, match=r"scores of shape \(2,\) for markers of shape \(1,\)"):
        metric.compute(predictions=[[1.0, 2.0]], references=[[0]])
    with pytest.raises(ValueError, match="of 1, 1 and 2 cells"):
        metric.compute(predictions=[[1.0]], references=[[0]], cell_types=["a", "b"])


@pytest.mark.parametrize("module", [classification, agreement, quality])
def test_texts_of_missing_labels_are_those_of_the_package(module):
    """The metrics stand alone on the Hub, with their own copy of the list."""
    assert module.MISSING == MISSING_LABELS


def test_unknown_labels_are_no_class():
    """Cells whose label is Unknown, NA or unassigned are left out and counted; clusters may have any name."""
    references = ["B", "T", "Unknown", " NA ", "unassigned", None]
    scored = classification.classification_scores(references, ["B", "B", "B", "T", "Unknown", "B"])
    assert scored["cells_per_class"] == {"B": 1, "T": 1}
    assert (scored["cells"], scored["cells_without_label"], scored["accuracy"]) == (2, 4, 0.5)
    agreed = agreement.clustering_agreement(references, ["1", "unknown", "-", "1", "1", "1"])
    assert (agreed["cells"], agreed["cells_without_label"], agreed["nmi"]) == (2, 4, 1.0)
    embedding = np.array([[0.0, 0], [1, 1], [9, 9], [9, 8], [7, 7], [5, 5]])
    found = quality.embedding_scores(embedding, references, batches=["unknown", "b"] * 3, n_neighbors=2)
    assert (found["cells"], found["cell_types"], found["batches"]) == (2, 2, 2)
