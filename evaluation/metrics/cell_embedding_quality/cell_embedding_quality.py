"""Scores of an embedding of cells: separation of cell types (AvgBIO) and mixing of batches (AvgBatch)."""

from collections.abc import Iterable, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.csgraph import connected_components
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.neighbors import NearestNeighbors


DESCRIPTION = """\
Scores of an embedding of cells, as in scCello's evaluation (Yuan et al. 2024, arXiv 2408.12373). Cell types: NMI and
ARI of given clusters, silhouette width rescaled to [0, 1] (asw_label), and their mean (avg_bio). Batches: silhouette
width of batches (asw_batch), connectivity of cell types in the nearest-neighbour graph, and their mean (avg_batch).
Cells without a label are excluded from all scores, cells without a batch from asw_batch. An undefined score is None,
with the reason.
"""

INPUTS = """\
Args:
    predictions: embedding of each cell.
    references: cell type of each cell; None, NaN, '' or a text such as 'Unknown' or 'NA' if unknown.
    batches (optional): batch of each cell; None, NaN or '' if unknown.
    clusters (optional): cluster of each cell; for nmi, ari and avg_bio.
    n_neighbors (optional): neighbours of a cell in the graph, including itself; 15.
Returns:
    nmi, ari, asw_label, avg_bio, asw_batch, graph_connectivity, avg_batch: floats, or None if undefined.
    cells, cell_types, batches, cells_without_label, cells_without_batch: numbers.
    undefined: score that is None -> the reason.
"""

CELLS_AT_ONCE = 2048  # size of a block of distances: 34 MB


# Labels that mean that the type is unknown, compared without case.
MISSING = frozenset(
    (
        "", "nan", "na", "n/a", "n.a.", "<na>", "#n/a", "nat", "none", "null", "missing", "-", "--", "?", ".",
        "unknown", "unassigned", "unannotated", "unlabelled", "unlabeled", "undefined", "undetermined",
        "not available", "not applicable", "not provided", "not annotated", "not assigned",
    )
)  # fmt: skip


def texts(values: Iterable[Any]) -> list[str]:
    """Return labels as text, '' for None, NaN or blank."""
    given = [v if isinstance(v, str) else "" if str(v) in ("None", "nan", "<NA>", "NaT") else str(v) for v in values]
    return [v if v.strip() else "" for v in given]


def known_labels(values: Iterable[Any]) -> list[str]:
    """Return labels as text, '' for those that are missing, of which many data sets write ``Unknown``."""
    return ["" if v.strip().casefold() in MISSING else v for v in texts(values)]


def group_codes(values: Iterable[Any]) -> np.ndarray:
    """Return the number of each cell's group, in sorted order; int64, shape (cells,), -1 without a group."""
    names = np.array(texts(values), dtype=str)
    known, codes = np.unique(names, return_inverse=True)
    return codes.astype(np.int64) - 1 if len(known) and known[0] == "" else codes.astype(np.int64)


def silhouette_widths(embedding: np.ndarray, groupings: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the silhouette widths of cells in one or several groupings, by Euclidean distance (Rousseeuw 1987).

    Equal to scikit-learn's ``silhouette_samples``, but each distance is computed only once for both directions and all
    groupings (three times faster for two), and memory is bounded by blocks and cells x groups.

    Parameters
    ----------
    groupings
        Group of each cell from 0, -1 for excluded cells; each of shape (cells,).

    Returns
    -------
    list of numpy.ndarray
        For each grouping the widths in [-1, 1], NaN for excluded cells or if there is only one group; float64, shape
        (cells,).
    """
    x = np.asarray(embedding, dtype=np.float64)
    x = x - x.mean(axis=0)
    sizes = [np.bincount(g[g >= 0]) for g in groupings]
    ends = np.cumsum([len(s) for s in sizes])
    sums = _distances_to_groups(x, groupings, [len(s) for s in sizes])
    return [
        _widths(sums[:, end - len(size) : end], grouping, size)
        for grouping, size, end in zip(groupings, sizes, ends, strict=True)
    ]


def _distances_to_groups(x: np.ndarray, groupings: Sequence[np.ndarray], numbers: list[int]) -> np.ndarray:
    """Sum the distances of each cell to the cells of each group, shape (cells, groups of all groupings)."""
    squares = np.einsum("ij,ij->i", x, x)
    blocks = [slice(i, min(i + CELLS_AT_ONCE, len(x))) for i in range(0, len(x), CELLS_AT_ONCE)]
    sums = np.zeros((len(x), sum(numbers)))

    def members(block: slice) -> np.ndarray:
        # Row -1, of excluded cells, is zero in all used columns.
        pairs = zip(groupings, numbers, strict=True)
        return np.concatenate([np.eye(n + 1)[g[block], :n] for g, n in pairs], axis=1)

    for i, rows in enumerate(blocks):
        for columns in blocks[i:]:
            distances = x[rows] @ x[columns].T
            distances *= -2
            distances += squares[rows, None]
            distances += squares[columns]
            np.sqrt(np.maximum(distances, 0, out=distances), out=distances)
            if rows == columns:
                np.fill_diagonal(distances, 0)
            else:
                sums[columns] += distances.T @ members(rows)
            sums[rows] += distances @ members(columns)
    return sums


def _widths(sums: np.ndarray, grouping: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    widths = np.full(len(grouping), np.nan)
    if (sizes > 0).sum() < 2:
        return widths
    cells = np.flatnonzero(grouping >= 0)
    own = grouping[cells]
    means = np.where(sizes > 0, sums[cells] / np.maximum(sizes, 1), np.inf)
    within = sums[cells, own] / np.maximum(sizes[own] - 1, 1)
    means[np.arange(len(cells)), own] = np.inf
    between = means.min(axis=1)
    larger = np.maximum(within, between)
    widths[cells] = np.where(sizes[own] > 1, (between - within) / np.where(larger > 0, larger, 1), 0)
    return widths


def batch_silhouette(widths: np.ndarray, batches: np.ndarray) -> float:
    """Return asw_batch: (1 + mean over batches of (1 - mean absolute width of the batch's cells)) / 2.

    As in scCello's release, over all cells and therefore in [0.5, 1]; scib uses 1 - the mean absolute width within
    each cell type. Widths and batches (from 0, -1 for excluded cells) have shape (cells,).
    """
    means = [1 - np.abs(widths[batches == b]).mean() for b in np.unique(batches[batches >= 0])]
    return float((1 + np.mean(means)) / 2)


def nearest_neighbors(embedding: np.ndarray, n_neighbors: int = 15) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest cells of each cell by Euclidean distance, exactly, in bounded memory.

    Parameters
    ----------
    n_neighbors
        Neighbours of a cell, including itself (as in scanpy).

    Returns
    -------
    tuple of numpy.ndarray
        Numbers of the neighbours, int64, and their distances, float64, both of shape (cells, n_neighbors), the cell
        itself first.
    """
    n_cells = len(embedding)
    if n_neighbors < 2:
        raise ValueError(f"n_neighbors={n_neighbors} (including the cell itself) must be at least 2")
    if n_cells < n_neighbors:
        raise ValueError(
            f"{n_cells:,} cells are fewer than n_neighbors={n_neighbors}: pass more cells or fewer neighbours"
        )
    search = NearestNeighbors(n_neighbors=n_neighbors - 1, algorithm="brute").fit(np.asarray(embedding))
    distances, numbers = search.kneighbors()
    own = np.arange(n_cells)[:, None]
    return np.hstack([own, numbers]), np.hstack([np.zeros((n_cells, 1)), distances])


def neighbor_graph(numbers: np.ndarray) -> csr_matrix:
    """Return the undirected graph of the neighbours from `nearest_neighbors`, shape (cells, cells)."""
    others = numbers[:, 1:]
    rows = np.repeat(np.arange(len(others)), others.shape[1])
    graph = coo_matrix((np.ones(rows.size, dtype=bool), (rows, others.ravel())), (len(others),) * 2).tocsr()
    return (graph + graph.T).astype(bool)


def graph_connectivity(graph: csr_matrix, labels: np.ndarray) -> float:
    """Return the share of cells in the largest connected component of their cell type, averaged over cell types.

    Edges are undirected, as in scib (in scib-metrics they are directed).

    Parameters
    ----------
    graph
        Edges between cells, shape (cells, cells).
    labels
        Cell type of each cell from 0, -1 for excluded cells, shape (cells,).
    """
    if not (labels >= 0).any():
        raise ValueError("no cell has a cell type: graph connectivity needs labels")
    edges = graph.tocoo()
    inside = labels[edges.row] == labels[edges.col]
    kept = (np.ones(int(inside.sum()), dtype=bool), (edges.row[inside], edges.col[inside]))
    _, parts = connected_components(coo_matrix(kept, shape=graph.shape), directed=False)
    sizes = np.bincount(parts)
    shares = [sizes[parts[labels == t]].max() / (labels == t).sum() for t in np.unique(labels[labels >= 0])]
    return float(np.mean(shares))


def embedding_scores(
    embedding: np.ndarray,
    labels: Iterable[Any] | None = None,
    batches: Iterable[Any] | None = None,
    clusters: Iterable[Any] | None = None,
    n_neighbors: int = 15,
    neighbors: np.ndarray | None = None,
) -> dict[str, Any]:
    """Score an embedding.

    Parameters
    ----------
    labels
        Cell type of each cell; cells with None, NaN, blank or a text of `MISSING` are excluded from all scores.
    batches
        Batch of each cell; cells with None, NaN or blank are excluded from asw_batch.
    n_neighbors
        Neighbours of a cell in the graph, including itself.
    neighbors
        Numbers from `nearest_neighbors`, if computed already and every cell has a type.

    Returns
    -------
    dict
        Fields of the metric's description; plain types.
    """
    x = np.asarray(embedding)
    if x.ndim != 2 or not x.size:
        raise ValueError(f"embedding has shape {x.shape}; it must be (cells, size)")
    known = None if labels is None else known_labels(labels)
    types = _codes(known, "labels", len(x))
    of_batches = _codes(batches, "batches", len(x))
    of_clusters = _codes(clusters, "clusters", len(x))
    kept = np.ones(len(x), dtype=bool) if types is None else types >= 0
    if not kept.any():
        raise ValueError(f"none of {len(x):,} cells has a label: pass labels=None to score without them")
    if not np.isfinite(x[kept]).all():
        raise ValueError(f"the embeddings of {int((~np.isfinite(x[kept]).all(axis=1)).sum()):,} cells are not finite")
    if of_clusters is not None and (of_clusters[kept] < 0).any():
        raise ValueError(f"{int((of_clusters[kept] < 0).sum()):,} cells have no cluster")
    if neighbors is None and types is not None:
        neighbors = nearest_neighbors(x[kept], n_neighbors)[0]
    types, of_batches, of_clusters = (None if g is None else g[kept] for g in (types, of_batches, of_clusters))
    scores, undefined = _scores(x[kept], types, of_batches, of_clusters, neighbors)
    names = ("nmi", "ari", "asw_label", "avg_bio", "asw_batch", "graph_connectivity", "avg_batch")
    numbers = {
        "cells": int(kept.sum()),
        "cell_types": _number(types),
        "batches": _number(of_batches),
        "cells_without_label": int((~kept).sum()),
        "cells_without_batch": 0 if of_batches is None else int((of_batches < 0).sum()),
    }
    return {name: scores.get(name) for name in names} | numbers | {"undefined": undefined}


def _codes(values: Iterable[Any] | None, what: str, n_cells: int) -> np.ndarray | None:
    codes = None if values is None else group_codes(values)
    if codes is not None and len(codes) != n_cells:
        raise ValueError(f"{len(codes):,} {what} for embeddings of {n_cells:,} cells")
    return codes


def _number(codes: np.ndarray | None) -> int:
    return 0 if codes is None else len(np.unique(codes[codes >= 0]))


def _scores(
    x: np.ndarray,
    types: np.ndarray | None,
    batches: np.ndarray | None,
    clusters: np.ndarray | None,
    neighbors: np.ndarray | None,
) -> tuple[dict[str, float], dict[str, str]]:
    """Return the defined scores, and the reasons for the undefined ones."""
    no_types = _cannot_compare(types, "cell type", "cell types")
    no_batches = _cannot_compare(batches, "batch", "batches")
    wanted = {
        n: g for n, g, no in (("t", types, no_types), ("b", batches, no_batches)) if g is not None and no is None
    }
    widths = dict(zip(wanted, silhouette_widths(x, list(wanted.values())), strict=True)) if wanted else {}
    scores: dict[str, float] = {}
    undefined: dict[str, str] = {}
    agreement = no_types or ("no clusters were given" if clusters is None else None)
    if agreement is None:
        scores["nmi"] = float(normalized_mutual_info_score(types, clusters))
        scores["ari"] = float(adjusted_rand_score(types, clusters))
    else:
        undefined |= dict.fromkeys(("nmi", "ari"), agreement)
    if "t" in widths:
        scores["asw_label"] = float((np.nanmean(widths["t"]) + 1) / 2)
    else:
        undefined["asw_label"] = str(no_types)
    if "b" in widths and batches is not None:
        scores["asw_batch"] = batch_silhouette(widths["b"], batches)
    else:
        undefined["asw_batch"] = str(no_batches)
    if types is None or neighbors is None:
        undefined["graph_connectivity"] = "no cell types were given"
    else:
        scores["graph_connectivity"] = graph_connectivity(neighbor_graph(neighbors), types)
    parts = {"avg_bio": ("nmi", "ari", "asw_label"), "avg_batch": ("asw_batch", "graph_connectivity")}
    for name, of in parts.items():
        without = [n for n in of if n not in scores]
        if without:
            undefined[name] = f"{', '.join(without)} undefined: {undefined[without[0]]}"
        else:
            scores[name] = float(np.mean([scores[n] for n in of]))
    return scores, undefined


def _cannot_compare(codes: np.ndarray | None, one: str, several: str) -> str | None:
    """Return why groups cannot be compared, or None if they can."""
    if codes is None:
        return f"no {several} were given"
    sizes = np.bincount(codes[codes >= 0])
    sizes = sizes[sizes > 0]
    if len(sizes) < 2:
        return f"the cells have {len(sizes)} {one if len(sizes) else several}: at least two are needed"
    if sizes.max() == 1:
        return f"every {one} has a single cell"
    return None


class CellEmbeddingQuality(evaluate.Metric):
    """The scores as a module of `evaluate`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Value("string"),
                }
            ),
            reference_urls=["https://arxiv.org/abs/2408.12373"],
        )

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Add cells; labels may be of any type."""
        super().add_batch(predictions=predictions, references=texts(references), **kwargs)

    def _compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> dict[str, Any]:
        return embedding_scores(np.asarray(predictions, dtype=np.float64), references, **kwargs)
