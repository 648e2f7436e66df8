"""The tasks "clustering" and "integration": scores of an embedding with their intervals."""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.special import xlogy

from cellglot.evaluation.benchmark.results import TaskResult
from cellglot.evaluation.metrics.cell_embedding_quality.cell_embedding_quality import (
    group_codes,
    nearest_neighbors,
    neighbor_graph,
    silhouette_widths,
)
from cellglot.evaluation.scores.bootstrap import DRAWS, Score, bootstrap_scores, weighted_mean
from cellglot.evaluation.scores.clustering import connectivities, evaluate_embedding, leiden_clusters


CLUSTERING = ("nmi", "ari", "asw_label", "avg_bio")
BIASED = ("nmi", "avg_bio")
INTEGRATION = ("asw_batch", "graph_connectivity", "avg_batch")


def score_embedding(
    embedding: np.ndarray,
    labels: np.ndarray | None,
    batches: np.ndarray | None,
    *,
    seed: int = 0,
    draws: int = DRAWS,
    **options: Any,
) -> dict[str, TaskResult]:
    """Score an embedding by cell types and batches: `evaluate_embedding` with intervals.

    Intervals are over bootstrap samples of cells, with fixed clusters, silhouette widths and neighbour graph. A cell
    that is drawn twice agrees with itself: ARI excludes such pairs; the intervals of NMI and AvgBIO, which would be
    too high, are shifted to the score. There are no intervals if the embedding is scored in parts.

    Parameters
    ----------
    labels, batches
        Cell type and batch of each cell, None if missing.
    **options
        As for `evaluate_embedding`.

    Returns
    -------
    dict
        ``"clustering"`` and ``"integration"`` -> result.
    """
    names = CLUSTERING + INTEGRATION
    try:
        found = evaluate_embedding(embedding, labels, batches, seed=seed, **options)
    except ValueError as error:  # too few cells, or no label
        return {task: TaskResult({}, dict.fromkeys(of, str(error)), {}) for task, of in _TASKS.items()}
    scores = {name: Score(found[name]) for name in names if found[name] is not None}
    if found["parts"] == 1 and scores:
        with_intervals = bootstrap_scores(
            *_cell_scores(embedding, labels, batches, found, seed), draws=draws, seed=seed, biased=BIASED
        )
        scores |= {name: Score(scores[name].value, s.low, s.high) for name, s in with_intervals.items()}
    details = {name: value for name, value in found.items() if name not in (*names, "undefined")}
    return {
        task: TaskResult(
            {name: scores[name] for name in of if name in scores},
            {name: why for name, why in found["undefined"].items() if name in of},
            details,
        )
        for task, of in _TASKS.items()
    }


_TASKS = {"clustering": CLUSTERING, "integration": INTEGRATION}


def _cell_scores(
    embedding: np.ndarray, labels: np.ndarray | None, batches: np.ndarray | None, found: dict[str, Any], seed: int
) -> tuple[Callable[[np.ndarray], dict[str, float]], int]:
    """Return the scores as a function of the weights of the cells, and the number of cells."""
    kept = np.isfinite(embedding).all(axis=1)
    types = None if labels is None else group_codes(labels)
    if types is not None:
        kept &= types >= 0
        types = types[kept]
    x, of_batches = embedding[kept], None if batches is None else group_codes(batches)[kept]
    parts: list[Callable[[np.ndarray], dict[str, float]]] = []
    if types is not None:
        numbers, distances = nearest_neighbors(x, found["n_neighbors"])
        if found["resolutions"]:
            clusters = leiden_clusters(connectivities(numbers, distances), found["resolutions"], seed)[0]
            parts.append(agreement(types, clusters))
        if found["asw_label"] is not None:
            widths = silhouette_widths(x, [types])[0]
            parts.append(lambda weights: {"asw_label": (weighted_mean(widths, weights) + 1) / 2})
        parts.append(_connectivity(numbers, types))
    if of_batches is not None and found["asw_batch"] is not None:
        parts.append(_batch_silhouette(silhouette_widths(x, [of_batches])[0], of_batches))

    def scores(weights: np.ndarray) -> dict[str, float]:
        result: dict[str, float] = {}
        for part in parts:
            result |= part(weights)
        for mean, of in (("avg_bio", CLUSTERING[:3]), ("avg_batch", INTEGRATION[:2])):
            if all(name in result for name in of):
                result[mean] = float(np.mean([result[name] for name in of]))
        return result

    return scores, len(x)


def agreement(types: np.ndarray, clusters: np.ndarray) -> Callable[[np.ndarray], dict[str, float]]:
    """Return NMI and ARI as a function of the weights of cells; scikit-learn has the same scores without weights.

    ARI excludes pairs of a cell with itself.

    Parameters
    ----------
    types, clusters
        Of each cell, from 0, shape (cells,).
    """
    shape = int(types.max()) + 1, int(clusters.max()) + 1
    pairs = types * shape[1] + clusters

    def scores(weights: np.ndarray) -> dict[str, float]:
        table = np.bincount(pairs, weights, minlength=shape[0] * shape[1]).reshape(shape)
        total, rows, columns = table.sum(), table.sum(axis=1), table.sum(axis=0)
        entropies = [-xlogy(sums / total, sums / total).sum() for sums in (rows, columns)]
        joint = -xlogy(table / total, table / total).sum()
        mean = np.mean(entropies)
        with_itself = _pairs(weights)
        together, in_rows, in_columns = (_pairs(counts) - with_itself for counts in (table, rows, columns))
        expected = in_rows * in_columns / max(total * (total - 1) / 2 - with_itself, 1)
        best = (in_rows + in_columns) / 2
        return {
            "nmi": float((sum(entropies) - joint) / mean) if mean > 0 else 1.0,
            "ari": float((together - expected) / (best - expected)) if best != expected else 1.0,
        }

    return scores


def _pairs(counts: np.ndarray) -> float:
    return float((counts * (counts - 1) / 2).sum())


def _batch_silhouette(widths: np.ndarray, batches: np.ndarray) -> Callable[[np.ndarray], dict[str, float]]:
    inside = [batches == batch for batch in np.unique(batches[batches >= 0])]

    def scores(weights: np.ndarray) -> dict[str, float]:
        means = [1 - weighted_mean(np.abs(widths[m]), weights[m]) for m in inside if weights[m].any()]
        return {"asw_batch": (1 + float(np.mean(means))) / 2 if means else float("nan")}

    return scores


def _connectivity(numbers: np.ndarray, types: np.ndarray) -> Callable[[np.ndarray], dict[str, float]]:
    edges = neighbor_graph(numbers).tocoo()
    inside = types[edges.row] == types[edges.col]
    graph = coo_matrix((np.ones(int(inside.sum())), (edges.row[inside], edges.col[inside])), shape=edges.shape)
    _, parts = connected_components(graph, directed=False)
    largest = np.bincount(parts)
    groups = []
    for cell_type in np.unique(types):
        mine = np.flatnonzero(types == cell_type)
        groups.append((mine, parts[mine] == parts[mine][largest[parts[mine]].argmax()]))

    def scores(weights: np.ndarray) -> dict[str, float]:
        shares = [weighted_mean(best.astype(float), weights[mine]) for mine, best in groups if weights[mine].any()]
        return {"graph_connectivity": float(np.mean(shares)) if shares else float("nan")}

    return scores


__all__ = ["CLUSTERING", "INTEGRATION", "agreement", "score_embedding"]
