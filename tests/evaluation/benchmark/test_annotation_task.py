import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score, f1_score, normalized_mutual_info_score, roc_auc_score

from cellglot.evaluation.benchmark import annotation as annotation_task
from cellglot.evaluation.benchmark.annotation import WeightedAuroc, few_shot, match_classes, probe, score_classes
from cellglot.evaluation.benchmark.embedding import agreement, score_embedding
from cellglot.evaluation.benchmark.novel_types import score_novel_types
from cellglot.evaluation.benchmark.split import CellSplit, split_cells
from cellglot.evaluation.labelled_cells import open_labelled_cells
from cellglot.evaluation.scores.bootstrap import Score, bootstrap_scores, weighted_mean
from cellglot.tokenization import CellOntology


@pytest.fixture(scope="module")
def data(blood):
    return open_labelled_cells(blood)


@pytest.fixture(scope="module")
def embedding(data):
    """Cells around the centre of their class."""
    random = np.random.default_rng(0)
    codes = np.unique(data.labels.astype(str), return_inverse=True)[1]
    return random.normal(size=(codes.max() + 1, 6))[codes] * 2 + random.normal(size=(700, 6))


# -------------------------------------------------------------------- intervals


def test_intervals_hold_what_a_proportion_has():
    values = (np.arange(400) % 4 == 0).astype(float)
    score = bootstrap_scores(lambda w: {"share": weighted_mean(values, w)}, 400, 2000, seed=1)["share"]
    half = 1.96 * np.sqrt(0.25 * 0.75 / 400)
    assert score.value == 0.25
    assert (score.low, score.high) == (pytest.approx(0.25 - half, abs=0.006), pytest.approx(0.25 + half, abs=0.006))
    assert str(score).startswith("0.250 [0.2")


def test_scores_that_are_not_defined_are_left_out():
    assert bootstrap_scores(lambda w: {"a": float("nan"), "b": 1.0}, 5, 10) == {"b": Score(1.0, 1.0, 1.0)}
    assert str(Score(0.5)) == "0.500"


def test_weighted_scores_are_those_of_repeated_cells():
    random = np.random.default_rng(0)
    times = random.integers(0, 4, 60)
    scores, positive = np.round(random.normal(size=60), 1), random.random(60) < 0.3
    repeated = np.repeat(np.arange(60), times)
    assert WeightedAuroc(scores, positive)(times.astype(float)) == pytest.approx(
        roc_auc_score(positive[repeated], scores[repeated])
    )
    a, b = random.integers(0, 3, 60), random.integers(0, 5, 60)
    found = agreement(a, b)(times.astype(float))
    assert found["nmi"] == pytest.approx(normalized_mutual_info_score(a[repeated], b[repeated]))
    assert agreement(a, b)(np.ones(60))["ari"] == pytest.approx(adjusted_rand_score(a, b))
    first, second = np.triu_indices(len(repeated), 1)
    first, second = repeated[first], repeated[second]
    first, second = first[first != second], second[first != second]  # no cell beside itself
    in_rows, in_columns = a[first] == a[second], b[first] == b[second]
    expected = in_rows.mean() * in_columns.mean()
    best = (in_rows.mean() + in_columns.mean()) / 2
    assert found["ari"] == pytest.approx(((in_rows & in_columns).mean() - expected) / (best - expected))


# -------------------------------------------------------------------- classes


def test_classes_that_training_never_saw_are_errors_and_reported():
    true = ["a", "a", "b", "new"]
    found = score_classes(true, np.array([[0.9, 0.1], [0.2, 0.8], [0.1, 0.9], [0.5, 0.4]]), ["a", "b"], draws=50)
    assert found.metrics["accuracy"].value == 0.5
    assert found.details["unseen_classes"] == {"new": 1}
    expected = f1_score(true, ["a", "b", "b", "a"], labels=["a", "b", "new"], average="macro")
    assert found.metrics["macro_f1"].value == pytest.approx(expected)
    assert found.metrics["accuracy"].low <= 0.5 <= found.metrics["accuracy"].high


def test_cells_without_scores_have_no_prediction():
    found = score_classes(["a", "b"], np.array([[np.nan, np.nan], [0.1, 0.9]]), ["a", "b"], draws=5)
    assert found.metrics["accuracy"].value == 0.5 and found.details["cells_without_prediction"] == 1
    assert found.undefined == {"auroc": "the cells with scores have 1 class: AUROC needs two"}


def test_a_probe_learns_what_is_there(data, embedding):
    split = split_cells(data)
    found = probe(embedding, data, split, draws=20)
    assert found.metrics["accuracy"].value > 0.9 and found.details["split"]["test_cells"] == split.test.sum()
    noise = probe(np.random.default_rng(0).normal(size=(700, 6)), data, split, draws=20)
    assert noise.metrics["accuracy"].value < 0.5
    few = few_shot(embedding, data, split, shots=2, draws=20)
    assert 0.5 < few.metrics["accuracy"].value < found.metrics["accuracy"].value
    assert few.details["shots"] == 2 and len(few.details["accuracy_of_draws"]) == 5
    assert few.metrics["accuracy"].low <= min(few.details["accuracy_of_draws"])


def test_a_probe_of_one_class_is_undefined_and_says_so(blood, embedding):
    cells = blood.copy()
    cells.obs["cell_type"] = "B cell"
    data = open_labelled_cells(cells)
    for learn in (probe, few_shot):
        found = learn(embedding, data, split_cells(data), draws=5)
        assert found.metrics == {} and "1 class: at least two are needed" in found.undefined["accuracy"]


def test_a_class_that_is_in_the_test_cells_alone(data, embedding):
    lone = data.labels == "CD34+"
    test = lone | (np.arange(700) % 5 == 0)
    found = probe(embedding, data, CellSplit(~test, test, "given", [], ""), draws=5)
    assert found.details["unseen_classes"] == {"CD34+": int(lone.sum())}
    assert found.metrics["accuracy"].value < (~lone[test]).mean()


def test_embeddings_that_are_missing_get_no_prediction(data, embedding):
    holes = embedding.copy()
    holes[::7] = np.nan
    split = split_cells(data)
    found = probe(holes, data, split, draws=5)
    assert found.details["cells_without_prediction"] == np.isnan(holes[split.test, 0]).sum() > 0


def test_classes_of_a_model_find_their_labels():
    ontology = CellOntology.blood()
    labels = ["B cells", "T cell", "Monocytes"]
    classes = ["CD19+ B", "T CELL", "CD8+ Cytotoxic T", "mine", "other"]
    found = match_classes(classes, {"mine": "CL:0000576"}, labels, ontology)
    assert found == ["B cells", "T cell", "T cell", "Monocytes", "other"]
    assert match_classes(["t cell", "x"], {}, labels, None) == ["T cell", "x"]


def test_labels_that_are_one_class_are_added_up():
    shares, names = annotation_task._merge(np.log([[0.2, 0.3, 0.5]]), ["T", "B", "T"])
    assert names == ["T", "B"] and shares[0] == pytest.approx([0.7, 0.3])


# -------------------------------------------------------------------- embeddings


def test_clustering_and_integration_have_intervals(data, embedding):
    batches = np.array(["a", "b"] * 350, dtype=object)
    found = score_embedding(embedding, data.labels, batches, draws=30)
    assert set(found["clustering"].metrics) == {"nmi", "ari", "asw_label", "avg_bio"}
    assert set(found["integration"].metrics) == {"asw_batch", "graph_connectivity", "avg_batch"}
    for result in found.values():
        assert result.undefined == {}
        for score in result.metrics.values():
            assert score.low - 0.05 <= score.value <= score.high + 0.05 and score.low < score.high


@pytest.mark.parametrize("seed", range(5))
def test_scores_of_few_cells_with_random_labels_lie_in_their_intervals(seed):
    """Cells drawn twice agree with themselves, which would put the whole interval above the score."""
    random = np.random.default_rng(seed)
    labels = random.choice(["a", "b", "c", "d"], 40).astype(object)
    scores = score_embedding(random.normal(size=(40, 5)), labels, None, draws=200)["clustering"].metrics
    assert set(scores) == {"nmi", "ari", "asw_label", "avg_bio"}
    for name, score in scores.items():
        assert score.low <= score.value <= score.high and score.low < score.high, name
    assert scores["nmi"].low >= 0 and scores["nmi"].high <= 1


def test_the_bootstrap_scores_the_cells_themselves_as_the_metrics_do(data, embedding):
    """The weighted scores, all weights one, are those that `evaluate_embedding` gave."""
    from cellglot.evaluation.benchmark import embedding as embedding_tasks
    from cellglot.evaluation.scores.clustering import evaluate_embedding

    batches = np.array([None, "b", "c", "d"] * 175, dtype=object)
    x, labels = embedding.copy(), data.labels.copy()
    x[3], labels[5] = np.nan, None
    found = evaluate_embedding(x, labels, batches)
    scores, number = embedding_tasks._cell_scores(x, labels, batches, found, 0)
    weighted = scores(np.ones(number))
    assert number == 698
    for name in (*embedding_tasks.CLUSTERING, *embedding_tasks.INTEGRATION):
        assert weighted[name] == pytest.approx(found[name], abs=1e-9), name


def test_what_cannot_be_scored_is_undefined_with_the_reason(data, embedding):
    found = score_embedding(embedding, data.labels, None, draws=5)
    assert found["integration"].undefined["asw_batch"] == "no batches were given"
    assert "avg_batch" not in found["integration"].metrics and "nmi" in found["clustering"].metrics
    one = score_embedding(embedding, np.array(["B"] * 700, dtype=object), None, draws=5)
    assert one["clustering"].metrics == {} and "cell type" in one["clustering"].undefined["nmi"]
    few = score_embedding(embedding[:9], data.labels[:9], None, draws=5)
    assert "9 cells are fewer than n_neighbors=15" in few["clustering"].undefined["avg_bio"]


def test_novel_types_have_intervals_and_their_chance(data, embedding):
    found = score_novel_types(embedding, data.labels, CellOntology.blood(), draws=20)
    accuracy = found.metrics["accuracy"]
    assert accuracy.low <= accuracy.value <= accuracy.high
    assert found.details["chance"] == 1 / len(found.details["novel_types"])
    assert {"accuracy at 10% of candidates", "accuracy at 75% of candidates"} <= set(found.metrics)
    few = score_novel_types(embedding, np.array(["B cell", "T cell"] * 350, dtype=object), CellOntology.blood())
    assert few.metrics == {} and "2 cell types: at least 5" in few.undefined["accuracy"]
    none = score_novel_types(embedding, np.array(["x", "y"] * 350, dtype=object), CellOntology.blood())
    assert none.undefined["accuracy"] == "no label is a cell type of the ontology"
    assert score_novel_types(embedding, None, CellOntology.blood()).undefined["accuracy"] == "no cell types were given"


def test_novel_intervals_are_of_the_score_that_is_given(data, embedding):
    from cellglot.evaluation.benchmark import novel_types as novel_task
    from cellglot.evaluation.scores.novel_types import evaluate_novel_cell_types

    ontology = CellOntology.blood()
    types = ontology.resolve(data.labels).cell_types
    found = evaluate_novel_cell_types(embedding, types, ontology)
    scores, number = novel_task._cell_scores(embedding, types, found, ontology)
    assert number == found["cells"]
    weighted = scores(np.ones(number))
    assert weighted == {n: pytest.approx(found[n]) for n in ("accuracy", "macro_f1")}
