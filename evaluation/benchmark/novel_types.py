"""The task "novel": prediction of held-out cell types by the ontology, with intervals."""

from collections.abc import Callable

import numpy as np

from cellglot.evaluation.benchmark.results import TaskResult
from cellglot.evaluation.scores.bootstrap import DRAWS, Score, bootstrap_scores, weighted_mean
from cellglot.evaluation.scores.novel_types import candidate_correlations, evaluate_novel_cell_types, predicted_parts
from cellglot.tokenization.ontology.cell_ontology import CellOntology


METRICS = ("accuracy", "macro_f1")


def score_novel_types(
    embedding: np.ndarray, labels: np.ndarray | None, ontology: CellOntology, *, seed: int = 0, draws: int = DRAWS
) -> TaskResult:
    """Hold out half of the cell types and predict their cells: `evaluate_novel_cell_types` with intervals.

    ``accuracy`` and ``macro_f1`` are among all held-out types, with intervals over bootstrap samples of cells;
    ``accuracy at 25% of candidates`` and so on are means over draws of candidates, with intervals over these draws.

    Parameters
    ----------
    labels
        Cell type of each cell, or None; cells whose label is not a cell type of the ontology are excluded and counted.
    """
    given = [] if labels is None else [label for label in labels if label is not None]
    types = None if labels is None or not given else ontology.resolve(labels).cell_types
    finite = np.isfinite(embedding).all(axis=1)
    if types is None or not any(t is not None and ok for t, ok in zip(types, finite, strict=True)):
        why = "no cell types were given" if not given else "no label is a cell type of the ontology"
        return TaskResult({}, dict.fromkeys(METRICS, why), {})
    found = evaluate_novel_cell_types(embedding, types, ontology, seed=seed)
    details = {name: value for name, value in found.items() if name not in (*METRICS, "undefined")}
    details["names"] = {t: ontology.name(t) for t in (*found["known_types"], *found["novel_types"])}
    if found["accuracy"] is None:
        return TaskResult({}, found["undefined"], details)
    scores = bootstrap_scores(*_cell_scores(embedding, types, found, ontology), draws=draws, seed=seed)
    metrics = {name: Score(found[name], scores[name].low, scores[name].high) for name in METRICS}
    for row in found["results"][:-1]:
        low, high = row["accuracy"]["interval"] or (None, None)
        metrics[f"accuracy at {row['share']:.0%} of candidates"] = Score(row["accuracy"]["mean"], low, high)
    details["chance"] = found["results"][-1]["chance"]
    return TaskResult(metrics, {}, details)


def _cell_scores(
    embedding: np.ndarray, types: list[str | None], found: dict, ontology: CellOntology
) -> tuple[Callable[[np.ndarray], dict[str, float]], int]:
    """Return the scores among all held-out types as a function of the cells' weights, and the number of cells."""
    ids = np.array([t or "" for t in types])
    finite = np.isfinite(embedding).all(axis=1)
    known, query = (np.flatnonzero(np.isin(ids, found[n]) & finite) for n in ("known_types", "novel_types"))
    candidates = np.array(found["novel_types"])
    x = np.asarray(embedding, dtype=np.float64)
    correlation = candidate_correlations(x[known], ids[known], x[query], candidates.tolist(), ontology)
    parts = predicted_parts(correlation)
    own = ids[query][:, None] == candidates
    right = (parts * own).sum(axis=1)

    def scores(weights: np.ndarray) -> dict[str, float]:
        there = weights @ own
        f1 = 2 * (weights @ (parts * own)) / np.maximum(there + weights @ parts, 1e-300)
        return {"accuracy": weighted_mean(right, weights), "macro_f1": float(f1[there > 0].mean())}

    return scores, len(query)


__all__ = ["score_novel_types"]
