"""Scores of a data set that a model did not see, per type, with intervals, beside plain baselines."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from anndata import AnnData
from scipy.sparse import csr_matrix, vstack

from cellglot.evaluation.benchmark.baselines import VariableGeneNeighbors
from cellglot.evaluation.scores.bootstrap import bootstrap_scores


FEWEST = 5  # cells of a type that is scored
BASELINE_CELLS = 6000  # training cells of a baseline at the most
DRAWS = 500


@dataclass(frozen=True)
class Group:
    """Types of one level, such as T, B, NK and monocyte.

    Parameters
    ----------
    names
        Of the types.
    members
        Whether each class belongs to a type, bool, shape (types, classes).
    """

    names: list[str]
    members: np.ndarray

    def truth(self, allowed: np.ndarray) -> np.ndarray:
        """Return the type of each cell, -1 where its label may be more than one of them; shape (cells,).

        Parameters
        ----------
        allowed
            Whether each class may be right, bool, shape (cells, classes).
        """
        some, outside = np.asarray(allowed.any(axis=1)), np.asarray((allowed[:, None, :] & ~self.members).any(axis=2))
        inside = some[:, None] & ~outside
        return np.where(inside.any(axis=1), inside.argmax(axis=1), -1)

    def predicted(self, probabilities: np.ndarray) -> np.ndarray:
        """Return the type of the highest summed probability, the number of types for none of them; shape (cells,)."""
        of_types = probabilities @ self.members.T.astype(probabilities.dtype)
        rest = probabilities[:, ~self.members.any(axis=0)].sum(axis=1)
        return np.concatenate([of_types, rest[:, None]], axis=1).argmax(axis=1)


def type_scores(truth: np.ndarray, predicted: np.ndarray, names: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Score predicted types, each with a 95% interval over cells drawn with replacement.

    Parameters
    ----------
    truth
        Type of each cell, -1 for cells to leave out, shape (cells,).
    predicted
        Type of each cell, `len(names)` for none of them, shape (cells,).
    names
        Of the types.
    seed
        Of the draws.

    Returns
    -------
    dict
        ``cells``; ``macro_f1`` and ``accuracy`` (value, low, high) over types of five cells or more; ``types``: name
        -> cells, ``f1``, ``precision``, ``recall``. Empty where there are fewer than two such types.
    """
    counts = np.bincount(truth[truth >= 0], minlength=len(names))
    scored = np.flatnonzero(counts >= FEWEST)
    kept = np.isin(truth, scored)
    if len(scored) < 2:
        return {}
    true, guessed = truth[kept], predicted[kept]

    def scores(weights: np.ndarray) -> dict[str, float]:
        hits = np.bincount(true, weights * (true == guessed), minlength=len(names) + 1)[scored]
        cells = np.bincount(true, weights, minlength=len(names) + 1)[scored]
        given = np.bincount(guessed, weights, minlength=len(names) + 1)[scored]
        with np.errstate(invalid="ignore", divide="ignore"):
            f1 = np.where(cells > 0, 2 * hits / (cells + given), np.nan)
            precision, recall = np.where(given > 0, hits / given, 0.0), hits / cells
        found = {"macro_f1": float(np.nanmean(f1)), "accuracy": float(hits.sum() / weights.sum())}
        for i, t in enumerate(scored.tolist()):
            found |= {f"{t} f1": f1[i], f"{t} precision": precision[i], f"{t} recall": recall[i]}
        return found

    made = {
        name: {"value": round(s.value, 4), "low": _rounded(s.low), "high": _rounded(s.high)}
        for name, s in bootstrap_scores(scores, len(true), DRAWS, seed).items()
    }
    types = {
        names[t]: {"cells": int(counts[t]), **{m: made[f"{t} {m}"] for m in ("f1", "precision", "recall")}}
        for t in scored.tolist()
    }
    return {"cells": int(kept.sum()), "macro_f1": made["macro_f1"], "accuracy": made["accuracy"], "types": types}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


# -------------------------------------------------------------------- baselines


def baseline_scores(
    training: Sequence[AnnData],
    training_truth: Sequence[np.ndarray],
    test: AnnData,
    truth: np.ndarray,
    names: Sequence[str],
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Score the predictions of `baseline_predictions`.

    Returns
    -------
    dict
        Name of the classifier -> scores, as `type_scores`.
    """
    predicted = baseline_predictions(training, training_truth, test, truth, seed)
    return {name: type_scores(truth, types, names, seed) for name, types in predicted.items()}


def baseline_predictions(
    training: Sequence[AnnData],
    training_truth: Sequence[np.ndarray],
    test: AnnData,
    truth: np.ndarray,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Predict test cells by plain classifiers, trained on the same cells, on the genes that both have.

    Genes are those of the test cells that were measured in at least half of the training cells. Counts are scaled to
    10,000 over these genes and logarithmised.

    Parameters
    ----------
    training
        Counts of the training sets, with Ensembl ids as names of genes.
    training_truth
        Type of each of their cells, -1 for cells to leave out.
    test, truth
        Counts, and type of each cell, of the test set.
    seed
        Of the draw of training cells.

    Returns
    -------
    dict
        ``logistic regression``; ``logistic regression, types of the test set`` (types that the test set does not have
        cannot be predicted); ``neighbours on variable genes``: the type of each cell, shape (cells,). Empty where
        nothing can be compared.
    """
    used = [(part, t) for part, t in zip(training, training_truth, strict=True) if (t >= 0).any()]
    labels = np.concatenate([t[t >= 0] for _, t in used]) if used else np.zeros(0, dtype=np.int64)
    genes = _shared_genes([(part, int((t >= 0).sum())) for part, t in used], test)
    if len(np.unique(labels)) < 2 or len(genes) < 10 or not (truth >= 0).any():
        return {}
    counts = vstack([_columns(part, genes)[t >= 0] for part, t in used], format="csr")
    if len(labels) > BASELINE_CELLS:
        rows = np.sort(np.random.default_rng(seed).choice(len(labels), BASELINE_CELLS, replace=False))
        labels, counts = labels[rows], counts[rows]
    features, of_test = _log(counts), _log(_columns(test, genes))
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=300).fit(features, labels)
    chances = model.predict_proba(of_test)
    there = np.isin(model.classes_, np.unique(truth[truth >= 0]))
    nearest = VariableGeneNeighbors.fit(features, labels)
    guesses = {"logistic regression": model.classes_[chances.argmax(axis=1)]}
    if there.any():
        guesses["logistic regression, types of the test set"] = model.classes_[there][chances[:, there].argmax(axis=1)]
    found = nearest.classifier.classes_[nearest.probabilities(of_test).argmax(axis=1)]
    guesses["neighbours on variable genes"] = found
    return guesses


def _shared_genes(training: Sequence[tuple[AnnData, int]], test: AnnData) -> list[str]:
    total = sum(cells for _, cells in training)
    measured: dict[str, int] = {}
    for part, cells in training:
        for gene in part.var_names:
            measured[gene] = measured.get(gene, 0) + cells
    return [gene for gene in test.var_names if measured.get(gene, 0) >= total / 2]


def _columns(part: AnnData, genes: Sequence[str]) -> csr_matrix:
    """Return the counts of some genes, zero for those that were not measured, shape (cells, genes)."""
    places = part.var_names.get_indexer(list(genes))
    there = np.flatnonzero(places >= 0)
    ones = (np.ones(len(there), dtype=np.float32), (places[there], there))
    return csr_matrix(part.X @ csr_matrix(ones, shape=(part.n_vars, len(genes))))


def _log(counts: csr_matrix) -> csr_matrix:
    totals = np.maximum(np.asarray(counts.sum(axis=1)).ravel(), 1.0)
    scaled = counts.astype(np.float64)
    scaled.data = np.log1p(scaled.data * np.repeat(1e4 / totals, np.diff(scaled.indptr)))
    return scaled


def groups_of(
    levels: Mapping[str, Mapping[str, Any]], classes: Sequence[str], sets_of: Callable[[Any], np.ndarray]
) -> dict[str, Group]:
    """Return the levels that are scored.

    Parameters
    ----------
    levels
        Level -> type -> types of the ontology that belong to it; without any, each class is a type.
    classes
        Names of the classes.
    sets_of
        Types of the ontology -> whether each class is one of them or below one, bool, shape (classes,).

    Raises
    ------
    ValueError
        If two types of a level share a class, or a type has none.
    """
    if not levels:
        return {"classes": Group(list(classes), np.eye(len(classes), dtype=bool))}
    made = {}
    for level, types in levels.items():
        members = np.stack([sets_of(ids) for ids in types.values()])
        empty = [name for name, row in zip(types, members, strict=True) if not row.any()]
        if empty:
            raise ValueError(f"groups: {level}: no class belongs to {', '.join(empty)}")
        shared = np.flatnonzero(members.sum(axis=0) > 1)
        if len(shared):
            raise ValueError(f"groups: {level}: {classes[shared[0]]} belongs to several types")
        made[level] = Group(list(types), members)
    return made


__all__ = ["Group", "baseline_predictions", "baseline_scores", "groups_of", "type_scores"]
