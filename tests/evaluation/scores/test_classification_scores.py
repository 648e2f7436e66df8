import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from cellglot.evaluation.scores.classification import classification_scores


@pytest.fixture
def answers():
    random = np.random.default_rng(0)
    true = random.choice(["B cell", "T cell", "NK cell"], 120, p=[0.5, 0.3, 0.2])
    return true, np.where(random.random(120) < 0.7, true, random.choice(["B cell", "T cell", "monocyte"], 120))


def test_estimates_lie_in_their_intervals(answers):
    scores = classification_scores(*answers, draws=200)
    accuracy, macro = scores["accuracy"], scores["macro_f1"]
    assert accuracy[0] == accuracy_score(*answers)
    labels = sorted(set(answers[0]))  # a class that is predicted alone has no F1 of its own
    assert macro[0] == pytest.approx(f1_score(*answers, labels=labels, average="macro"))
    for estimate, low, high in (accuracy, macro):
        assert 0 < low < estimate < high < 1
    error = np.sqrt(accuracy[0] * (1 - accuracy[0]) / 120)  # of a share among 120 cells
    assert accuracy[2] - accuracy[1] == pytest.approx(2 * 1.96 * error, rel=0.2)


def test_intervals_depend_on_the_seed_alone(answers):
    runs = [classification_scores(*answers, draws=50, seed=seed) for seed in (0, 0, 1)]
    assert runs[0] == runs[1]
    assert runs[0]["accuracy"][1:] != runs[2]["accuracy"][1:]
    assert runs[0]["accuracy"][0] == runs[2]["accuracy"][0]


def test_more_cells_give_narrower_intervals(answers):
    true, predicted = (np.tile(a, 16) for a in answers)
    few, many = classification_scores(*answers, draws=100), classification_scores(true, predicted, draws=100)
    assert many["accuracy"][0] == few["accuracy"][0]
    widths = [s["accuracy"][2] - s["accuracy"][1] for s in (few, many)]
    assert widths[1] < widths[0] / 2


@pytest.mark.parametrize(
    ("true", "predicted", "value"),
    [
        (["a", "b"] * 9, ["a", "b"] * 9, 1.0),
        (["a"] * 7, ["a"] * 7, 1.0),
        (["a"] * 5, ["b"] * 5, 0.0),
        (["a"], ["a"], 1.0),
    ],
)
def test_all_right_and_all_wrong(true, predicted, value):
    scores = classification_scores(true, predicted, draws=20)
    assert scores == {"accuracy": (value,) * 3, "macro_f1": (value,) * 3}


@pytest.mark.parametrize(("true", "predicted"), [([], []), (["a", "b"], ["a"])])
def test_what_cannot_be_scored(true, predicted):
    with pytest.raises(ValueError, match="cannot be scored"):
        classification_scores(true, predicted)


def test_intervals_need_draws(answers):
    with pytest.raises(ValueError, match="draws=0 must be"):
        classification_scores(*answers, draws=0)


def test_samples_are_scored_as_scikit_learn_scores_them(answers):
    true, predicted = (np.append(a, "rare") for a in answers)  # a class that samples may lack
    scores = classification_scores(true, predicted, draws=30, seed=5)
    random = np.random.default_rng(5)
    samples = [random.integers(0, len(true), len(true)) for _ in range(30)]
    assert any("rare" not in true[s] for s in samples)
    by_sample = {
        "accuracy": [accuracy_score(true[s], predicted[s]) for s in samples],
        "macro_f1": [f1_score(true[s], predicted[s], labels=np.unique(true[s]), average="macro") for s in samples],
    }
    for name, drawn in by_sample.items():
        assert scores[name][1:] == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])))
