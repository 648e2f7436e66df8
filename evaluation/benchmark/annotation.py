"""The task "annotation": a probe of frozen embeddings, few-shot probes, a classifier's predictions, texts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from anndata import AnnData
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression

from cellglot.evaluation.annotation.by_texts import annotate_cells
from cellglot.evaluation.benchmark.models import EvaluatedModel
from cellglot.evaluation.benchmark.results import TaskResult
from cellglot.evaluation.benchmark.split import CellSplit
from cellglot.evaluation.labelled_cells import LabelledCells
from cellglot.evaluation.metrics.cell_type_classification.cell_type_classification import classification_scores
from cellglot.evaluation.scores.bootstrap import DRAWS, Score, bootstrap_scores
from cellglot.evaluation.scores.classification import weighted_scores
from cellglot.tokenization.ontology.candidates import make_candidates
from cellglot.tokenization.ontology.cell_ontology import CellOntology


SHOTS = 10
SHOT_DRAWS = 5
METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "auroc")


# -------------------------------------------------------------------- scoring


def score_classes(
    true: Sequence[str] | np.ndarray,
    scores: np.ndarray,
    classes: Sequence[str],
    *,
    draws: int = DRAWS,
    seed: int = 0,
    details: dict[str, Any] | None = None,
) -> TaskResult:
    """Score predicted classes, with intervals over bootstrap samples of cells.

    Parameters
    ----------
    true
        Class of each cell, shape (cells,).
    scores
        Larger for more likely classes, shape (cells, classes); NaN for cells without a prediction, which are errors.
    classes
        Class of each column: the training classes. Cells of other classes count as errors and are reported. With fewer
        than two classes the scores are undefined.
    """
    if len(classes) < 2:
        return undefined_annotation(_one_class(classes), details)
    true = np.asarray(true, dtype=str)
    known = np.isfinite(scores).all(axis=1)
    best = np.where(known, np.nan_to_num(scores, nan=-np.inf).argmax(axis=1), 0)
    predicted = np.asarray(classes, dtype=object)[best]
    predicted[~known] = None
    found = classification_scores(true, predicted, scores, classes)
    drawn = bootstrap_scores(_weighted_scores(true, predicted, scores, classes), len(true), draws, seed)
    metrics = {
        name: Score(found[name], drawn[name].low, drawn[name].high) for name in METRICS if found[name] is not None
    }
    more = {name: value for name, value in found.items() if name not in (*METRICS, "undefined")}
    return TaskResult(metrics, found["undefined"], (details or {}) | more)


def _weighted_scores(true: np.ndarray, predicted: np.ndarray, scores: np.ndarray, classes: Sequence[str]) -> Any:
    """Return the scores of `classification_scores` as a function of the weights of the cells."""
    names, codes = np.unique(true, return_inverse=True)
    usable = np.isfinite(scores).all(axis=1)
    columns = {str(name): scores[usable, i] for i, name in enumerate(classes)}
    constant = np.zeros(usable.sum())
    rankings = [WeightedAuroc(columns.get(str(n), constant), codes[usable] == i) for i, n in enumerate(names)]

    of_classes = weighted_scores(true, predicted)

    def result(weights: np.ndarray) -> dict[str, float]:
        aurocs = [ranking(weights[usable]) for ranking in rankings]
        defined = [a for a in aurocs if np.isfinite(a)]
        return of_classes(weights) | {"auroc": float(np.mean(defined)) if defined else float("nan")}

    return result


class WeightedAuroc:
    """AUROC of weighted cells; ranks are computed once for many weights (scikit-learn sorts for each).

    Parameters
    ----------
    scores
        Larger for more likely cells of the class, shape (cells,).
    positive
        Whether each cell is of the class, shape (cells,).
    """

    def __init__(self, scores: np.ndarray, positive: np.ndarray):
        self.group = rankdata(scores, method="dense").astype(np.int64) - 1 if len(scores) else np.zeros(0, np.int64)
        self.positive = np.asarray(positive, dtype=float)

    def __call__(self, weights: np.ndarray) -> float:
        """Return the AUROC, NaN if all weighted cells are positive or all are negative."""
        if not len(self.group):
            return float("nan")
        with_class = np.bincount(self.group, weights * self.positive)
        without = np.bincount(self.group, weights * (1 - self.positive))
        number = with_class.sum() * without.sum()
        below = np.cumsum(without) - without / 2
        return float(with_class @ below / number) if number else float("nan")


# -------------------------------------------------------------------- learning from embeddings


def probe(embedding: np.ndarray, data: LabelledCells, split: CellSplit, **sampling: int) -> TaskResult:
    """Score a linear probe: logistic regression on the frozen embeddings of the training cells."""
    assert data.labels is not None
    present = np.unique(data.labels[split.train].astype(str))
    if len(present) < 2:
        return undefined_annotation(_one_class(present), {"split": split.facts()})
    classes, scores = fit_probe(embedding, data.labels, split.train, split.test)
    true = data.labels[split.test]
    return score_classes(true, scores, classes, details={"split": split.facts()}, **sampling)


def fit_probe(
    embedding: np.ndarray, labels: np.ndarray, train: np.ndarray, test: np.ndarray
) -> tuple[list[str], np.ndarray]:
    """Train logistic regression (L2, C 1) on embeddings, centred and divided by one common scale (our choice).

    Parameters
    ----------
    embedding
        Shape (cells, size); cells with NaN are excluded from training and have no scores.
    train, test
        Masks, or numbers of cells.

    Returns
    -------
    classes
        Classes of the training cells.
    scores
        Probabilities of the test cells, NaN for cells without an embedding; shape (test cells, classes).
    """
    x, y = np.asarray(embedding[train], dtype=np.float64), labels[train].astype(str)
    finite = np.isfinite(x).all(axis=1)
    x, y = x[finite], y[finite]
    mean = x.mean(axis=0)
    scale = max(float((x - mean).std()), 1e-12)
    model = LogisticRegression(max_iter=1000).fit((x - mean) / scale, y)
    asked = (np.asarray(embedding[test], dtype=np.float64) - mean) / scale
    embedded = np.isfinite(asked).all(axis=1)
    scores = np.full((len(asked), len(model.classes_)), np.nan)
    if embedded.any():
        scores[embedded] = model.predict_proba(asked[embedded])
    return [str(c) for c in model.classes_], scores


def few_shot(
    embedding: np.ndarray,
    data: LabelledCells,
    split: CellSplit,
    *,
    shots: int = SHOTS,
    seed: int = 0,
    draws: int = DRAWS,
) -> TaskResult:
    """Score probes trained on a few cells of each class (all cells of smaller classes), averaged over random draws.

    Returns
    -------
    TaskResult
        Means over the draws. An interval spans the mean ends of the draws' intervals and the scores of all draws.
    """
    assert data.labels is not None
    training = np.flatnonzero(split.train)
    of_class = {name: training[data.labels[training] == name] for name in np.unique(data.labels[training].astype(str))}
    if len(of_class) < 2:
        return undefined_annotation(_one_class(list(of_class)), {"split": split.facts()})
    random, results = np.random.default_rng(seed), []
    for draw in range(SHOT_DRAWS):
        chosen = np.concatenate([random.permutation(cells)[:shots] for cells in of_class.values()])
        classes, scores = fit_probe(embedding, data.labels, chosen, split.test)
        results.append(score_classes(data.labels[split.test], scores, classes, draws=draws // SHOT_DRAWS, seed=draw))
    metrics = {name: _over_draws([r.metrics[name] for r in results]) for name in results[0].metrics}
    details = {
        "split": split.facts(),
        "shots": shots,
        "draws": SHOT_DRAWS,
        "classes_with_fewer": {name: len(cells) for name, cells in of_class.items() if len(cells) < shots},
        "accuracy_of_draws": [r.metrics["accuracy"].value for r in results],
        "unseen_classes": results[0].details["unseen_classes"],
    }
    return TaskResult(metrics, results[0].undefined, details)


def _over_draws(scores: list[Score]) -> Score:
    values = [s.value for s in scores]
    lows, highs = [s.low for s in scores if s.low is not None], [s.high for s in scores if s.high is not None]
    if not lows or not highs:
        return Score(float(np.mean(values)))
    return Score(float(np.mean(values)), min(float(np.mean(lows)), *values), max(float(np.mean(highs)), *values))


def undefined_annotation(why: str, details: dict[str, Any] | None = None) -> TaskResult:
    """Return the result of a method that cannot be scored."""
    return TaskResult({}, dict.fromkeys(METRICS, why), details or {})


def _one_class(classes: Sequence[str] | np.ndarray) -> str:
    return f"the training cells have {len(classes)} class: at least two are needed"


# -------------------------------------------------------------------- models that predict classes


def fine_tuned(
    model: EvaluatedModel,
    data: LabelledCells,
    test: np.ndarray,
    cells: AnnData,
    *,
    ontology: CellOntology | None = None,
    progress: bool = True,
    **sampling: int,
) -> TaskResult:
    """Score the predictions of a fine-tuned model or an adapter on the test cells (their numbers).

    Classes of the model are mapped to labels by `match_classes`. The model may have been trained on the same cells.
    `sampling` are ``seed`` and ``draws`` of `score_classes`.
    """
    assert data.labels is not None
    names = match_classes(model.classes, model.class_types, data.classes(), ontology)
    if not set(names) & set(data.classes()):
        return undefined_annotation(
            f"{model.name} predicts {', '.join(model.classes[:5])}: none matches a label of the cells "
            f"({', '.join(data.classes()[:5])})"
        )
    logits = model.logits(cells, progress, **data.options).astype(np.float64)
    details = {"scored_on": "test cells of the split", "classes": dict(zip(model.classes, names, strict=True))}
    scores, merged = _merge(logits, names)
    return score_classes(data.labels[test], scores, merged, details=details, **sampling)


def match_classes(
    classes: Sequence[str], class_types: dict[str, str], labels: Sequence[str], ontology: CellOntology | None
) -> list[str]:
    """Return the label that matches each class of a model.

    The label of the same name; else of the same Cell Ontology id; else of the nearest more general cell type, so that
    fine classes are scored on coarse labels; else the name of the class.

    Parameters
    ----------
    class_types
        Class -> Cell Ontology id, if the model knows it.
    """
    by_name = {label.casefold(): label for label in labels}
    if ontology is None or not labels:
        return [by_name.get(name.casefold(), name) for name in classes]
    found = zip(labels, ontology.resolve(labels).cell_types, strict=True)
    by_type = {cell_type: label for label, cell_type in reversed(list(found)) if cell_type is not None}
    types = dict(zip(classes, ontology.resolve(classes).cell_types, strict=True)) | class_types
    result = []
    for name in classes:
        cell_type = types.get(name) or ""
        above = ontology.ancestors(cell_type) if cell_type in ontology else set()
        general = sorted(above & set(by_type), key=lambda t: (-len(ontology.ancestors(t)), t))
        wider = by_type[general[0]] if general else name
        result.append(by_name.get(name.casefold()) or by_type.get(cell_type) or wider)
    return result


def _merge(scores: np.ndarray, names: list[str]) -> tuple[np.ndarray, list[str]]:
    """Return probabilities from logits, summed over columns of the same name, and the distinct names."""
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    distinct = list(dict.fromkeys(names))
    member = np.array([[name == wanted for wanted in distinct] for name in names], dtype=float)
    return shares @ member, distinct


def zero_shot(
    model: EvaluatedModel,
    data: LabelledCells,
    test: np.ndarray,
    cells: AnnData,
    *,
    ontology: CellOntology | None = None,
    progress: bool = True,
    **sampling: int,
) -> TaskResult:
    """Score annotation by texts of the labels, without training; parameters as for `fine_tuned`.

    Labels of the same cell type are one candidate.
    """
    assert data.labels is not None
    candidates = make_candidates(data.classes(), ontology)
    found = annotate_cells(
        model.network,
        model.processor,
        cells,
        candidates,
        ontology=ontology,
        batch_size=16,
        device=model.device,
        progress=progress,
        **data.options,
    )
    row = candidates.class_of(data.classes())
    true = [candidates.names[row[str(label)]] for label in data.labels[test]]
    details = {"candidates": candidates.names, "texts": candidates.texts, "settings": found.settings}
    return score_classes(true, found.scores, candidates.names, details=details, **sampling)


__all__ = ["SHOTS", "few_shot", "fine_tuned", "fit_probe", "match_classes", "probe", "score_classes", "zero_shot"]
