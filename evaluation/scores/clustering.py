"""Scores of an embedding by cell-type clustering and batch integration."""

import random
from collections.abc import Iterable, Sequence
from typing import Any

import igraph
import numpy as np
from scipy.sparse import coo_matrix, csr_matrix, triu
from sklearn.metrics import normalized_mutual_info_score

from cellglot.evaluation.metrics.cell_embedding_quality.cell_embedding_quality import (
    embedding_scores,
    nearest_neighbors,
    texts,
)


SCORES = ("nmi", "ari", "asw_label", "avg_bio", "asw_batch", "graph_connectivity", "avg_batch")
RESOLUTIONS = tuple(round(0.1 * n, 1) for n in range(1, 21))
PARTS = 10


def evaluate_embedding(
    embedding: np.ndarray,
    labels: Iterable[Any] | None = None,
    batches: Iterable[Any] | None = None,
    *,
    n_neighbors: int = 15,
    resolutions: Sequence[float] = RESOLUTIONS,
    seed: int = 0,
    most_cells: int = 500_000,
) -> dict[str, Any]:
    """Score an embedding by cell types (AvgBIO) and batches (AvgBatch).

    The protocol of scCello (Yuan et al. 2024): a nearest-neighbour graph as in scanpy, clustered at 20 resolutions, of
    which the one with the best NMI is used; above 500,000 cells, the mean over ten random parts. Our choices: igraph's
    Leiden (two iterations) instead of Louvain, exact neighbours for any number of cells, parts that do not overlap.

    Parameters
    ----------
    embedding
        Shape (cells, size); cells with NaN, which express no known gene, are excluded and counted.
    labels
        Cell type of each cell; cells with None, NaN or blank are excluded from all scores and counted.
    batches
        Batch of each cell; cells with None, NaN or blank are excluded from asw_batch and counted.
    n_neighbors
        Neighbours of a cell in the graph, including itself (as in scanpy).
    resolutions
        Resolutions of the clusterings, of which the best counts.
    seed
        Of the clustering and the parts.
    most_cells
        Number of cells above which ten parts are scored.

    Returns
    -------
    dict
        ``nmi``, ``ari``, ``asw_label``, ``avg_bio``, ``asw_batch``, ``graph_connectivity``, ``avg_batch`` in [0, 1]
        (ari in [-0.5, 1]), None if undefined; ``undefined``: score -> the reason; ``resolutions`` and ``clusters``,
        the best resolution and its number of clusters in each part; ``cells``, ``cell_types``, ``batches``,
        ``cells_without_embedding``, ``cells_without_label``, ``cells_without_batch``, ``parts``, ``n_neighbors``,
        ``seed``. Plain types.

    Raises
    ------
    ValueError
        If the number of labels or batches differs from the cells, no cell has an embedding (or a label, if labels are
        given), there are fewer cells than neighbours, or there are no resolutions.
    """
    x = np.asarray(embedding)
    if x.ndim != 2 or not x.size:
        raise ValueError(f"embedding has shape {x.shape}; it must be (cells, size)")
    if not len(resolutions):
        raise ValueError("no resolutions: pass at least one")
    types = _names(labels, "labels", len(x))
    of_batches = _names(batches, "batches", len(x))
    embedded = np.isfinite(x).all(axis=1)
    if not embedded.any():
        raise ValueError(f"none of {len(x):,} cells has an embedding: all contain NaN")
    kept = np.flatnonzero(embedded if types is None else embedded & (types != ""))
    if not len(kept):
        raise ValueError(f"none of {int(embedded.sum()):,} cells has a label: pass labels=None to score without them")
    n_parts = PARTS if len(kept) > most_cells else 1
    if n_parts > 1:
        kept = np.random.default_rng(seed).permutation(kept)
    parts = [
        _score_part(
            x[cells],
            None if types is None else types[cells],
            None if of_batches is None else of_batches[cells],
            n_neighbors,
            resolutions,
            seed,
        )
        for cells in np.array_split(kept, n_parts)
    ]
    return _mean_of_parts(parts) | {
        "cells": len(kept),
        "cell_types": _number(types, kept),
        "batches": _number(of_batches, kept),
        "cells_without_embedding": int((~embedded).sum()),
        "cells_without_label": int(embedded.sum()) - len(kept),
        "cells_without_batch": 0 if of_batches is None else int((of_batches[kept] == "").sum()),
        "parts": n_parts,
        "n_neighbors": n_neighbors,
        "seed": seed,
    }


def _names(values: Iterable[Any] | None, what: str, n_cells: int) -> np.ndarray | None:
    names = None if values is None else np.array(texts(values), dtype=object)
    if names is not None and len(names) != n_cells:
        raise ValueError(f"{len(names):,} {what} for embeddings of {n_cells:,} cells")
    return names


def _number(names: np.ndarray | None, kept: np.ndarray) -> int:
    return 0 if names is None else len(set(names[kept]) - {""})


def _score_part(
    x: np.ndarray,
    types: np.ndarray | None,
    batches: np.ndarray | None,
    n_neighbors: int,
    resolutions: Sequence[float],
    seed: int,
) -> dict[str, Any]:
    if types is None:
        return embedding_scores(x, None, batches)
    numbers, distances = nearest_neighbors(x, n_neighbors)
    clusters, resolution = None, None
    if len(set(types)) > 1:
        graph = connectivities(numbers, distances)
        clusters, resolution = best_clusters(graph, types, resolutions, seed)
    scores = embedding_scores(x, types, batches, clusters, n_neighbors, numbers)
    return scores | {"resolution": resolution, "clusters": None if clusters is None else len(np.unique(clusters))}


def _mean_of_parts(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Average scores; a score that is undefined in one part is undefined."""
    result: dict[str, Any] = {}
    undefined = {}
    for name in SCORES:
        reasons = [p["undefined"][name] for p in parts if p[name] is None]
        result[name] = None if reasons else float(np.mean([p[name] for p in parts]))
        if reasons:
            where = f"in {len(reasons)} of {len(parts)} parts: " if len(parts) > 1 else ""
            undefined[name] = where + reasons[0]
    result["undefined"] = undefined
    result["resolutions"] = [p["resolution"] for p in parts if p.get("resolution") is not None]
    result["clusters"] = [p["clusters"] for p in parts if p.get("clusters") is not None]
    return result


def connectivities(numbers: np.ndarray, distances: np.ndarray) -> csr_matrix:
    """Weight the nearest-neighbour graph as in UMAP (McInnes et al. 2018, section 3.1) and scanpy.

    A cell's nearest neighbour has weight 1; weights decrease with the distance beyond it, scaled so that they sum to
    log2(n_neighbors); an edge exists if it exists in either direction. Equal to umap-learn's ``fuzzy_simplicial_set``
    within its tolerance of 1e-5, without its compilation of several seconds in every process.

    Parameters
    ----------
    numbers, distances
        Neighbours of each cell and their distances, the cell itself first, shape (cells, n_neighbors).

    Returns
    -------
    scipy.sparse.csr_matrix
        Weights in (0, 1], symmetric, float32, shape (cells, cells).
    """
    n_cells, n_neighbors = numbers.shape
    others = np.asarray(distances, dtype=np.float64)[:, 1:]
    nearest = np.where(others > 0, others, np.inf).min(axis=1)
    nearest[np.isinf(nearest)] = 0  # all neighbours are duplicates
    beyond = np.maximum(others - nearest[:, None], 0)
    # The scale is at least a thousandth of the mean distance: of the cell, or of all cells if it has only duplicates.
    least = 1e-3 * np.where(nearest > 0, distances.mean(axis=1), distances.mean())
    scales = np.maximum(_scales(beyond, np.log2(n_neighbors)), least)[:, None]
    weights = np.exp(-beyond / np.where(scales > 0, scales, 1))
    ends = (np.repeat(np.arange(n_cells), n_neighbors - 1), numbers[:, 1:].ravel())
    directed = coo_matrix((weights.ravel().astype(np.float32), ends), (n_cells, n_cells)).tocsr()
    graph = directed + directed.T - directed.multiply(directed.T)
    graph.eliminate_zeros()
    return graph.tocsr()


def _scales(beyond: np.ndarray, total: float) -> np.ndarray:
    """Find by bisection the scale at which exp(-beyond / scale) sums to a total in each row."""
    low, high = np.zeros(len(beyond)), 8 * beyond.max(axis=1)
    for _ in range(50):
        middle = (low + high) / 2
        sums = np.exp(-beyond / np.maximum(middle, 1e-300)[:, None]).sum(axis=1)
        low, high = np.where(sums < total, middle, low), np.where(sums < total, high, middle)
    return high


def leiden_clusters(graph: csr_matrix, resolutions: Sequence[float], seed: int = 0) -> list[np.ndarray]:
    """Cluster a graph by igraph's Leiden algorithm: modularity, two iterations, as scanpy recommends.

    Every resolution starts from the same seed, so that its clusters do not depend on the other resolutions.

    Parameters
    ----------
    graph
        Symmetric weights, shape (cells, cells).

    Returns
    -------
    list of numpy.ndarray
        For each resolution the cluster of each cell, shape (cells,).
    """
    half = triu(graph, k=1).tocoo()
    network = igraph.Graph(n=graph.shape[0], edges=np.stack([half.row, half.col], axis=1))
    weights = half.data.astype(float).tolist()
    found = []
    try:
        for resolution in resolutions:
            igraph.set_random_number_generator(random.Random(seed))
            clusters = network.community_leiden(
                objective_function="modularity", weights=weights, resolution=resolution, n_iterations=2
            )
            found.append(np.array(clusters.membership))
    finally:
        igraph.set_random_number_generator(random)
    return found


def best_clusters(
    graph: csr_matrix, labels: np.ndarray, resolutions: Sequence[float] = RESOLUTIONS, seed: int = 0
) -> tuple[np.ndarray, float]:
    """Return the clusters with the best NMI with the labels, and their resolution; the first of equals."""
    found = leiden_clusters(graph, resolutions, seed)
    codes = np.unique(np.asarray(labels, dtype=str), return_inverse=True)[1]
    best = int(np.argmax([normalized_mutual_info_score(codes, c) for c in found]))
    return found[best], float(resolutions[best])


__all__ = ["best_clusters", "connectivities", "evaluate_embedding", "leiden_clusters"]
