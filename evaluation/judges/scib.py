"""Scores of an embedding by the package scib-metrics (Luecken et al. 2022), computed by its own functions."""

import warnings
from collections.abc import Callable
from importlib import metadata
from typing import Any

import numpy as np

from cellglot.evaluation.judges.judged_cells import JudgedCells
from cellglot.evaluation.judges.names import BATCH, BIO, SCIB, TOTALS
from cellglot.evaluation.metrics.cell_embedding_quality.cell_embedding_quality import nearest_neighbors
from cellglot.evaluation.scores.bootstrap import Score
from cellglot.evaluation.scores.task_result import TaskResult


INSTALL = "--with scib-metrics needs the package: install it by pip install 'cellglot[judges]'"
NEIGHBORS = (15, 50, 90)  # of its Benchmarker: graph connectivity and Leiden, kBET, LISI
NOT_IN_TOTALS = ("silhouette_batch",)  # BRAS has taken its place in the Benchmarker
BIO_WEIGHT, BATCH_WEIGHT = 0.6, 0.4


def check_scib() -> None:
    """Refuse to begin without scib-metrics.

    Raises
    ------
    ImportError
        If it is not installed; says how to install it.
    """
    _scib()


def scib_scores(
    embedding: np.ndarray,
    labels: np.ndarray | None,
    batches: np.ndarray | None,
    unintegrated: np.ndarray | None = None,
) -> TaskResult:
    """Score an embedding by scib-metrics, with the settings of its ``Benchmarker``.

    The neighbours are given to it: they are exact, where the Benchmarker finds approximate ones by pynndescent.

    Parameters
    ----------
    embedding
        Shape (cells, size); cells with NaN are left out and counted.
    labels, batches
        Cell type and batch of each cell, None if missing; cells without one are left out and counted.
    unintegrated
        Principal components of the counts, shape (cells, components), with which PCR is compared; without them PCR is
        undefined.

    Returns
    -------
    TaskResult
        Scores from 0 (worst) to 1 by the names of `cellglot.evaluation.judges.names`, without intervals; the totals
        are means over the defined scores of a kind, and 0.6 and 0.4 of these.

    Raises
    ------
    ImportError
        If scib-metrics is not installed.
    """
    _scib()
    cells = JudgedCells.of(embedding, labels, batches)
    details: dict[str, Any] = {
        "package": f"{SCIB} {metadata.version(SCIB)}",
        "cells": len(cells),
        "neighbors": "exact",
    } | cells.left_out
    scores: dict[str, float] = {}
    undefined: dict[str, str] = {}
    for name, job in _jobs(cells, unintegrated).items():
        if isinstance(job, str):
            undefined[name] = job
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                value = float(job())
            except Exception as error:  # noqa: BLE001 - another package's errors are reasons of an undefined score
                undefined[name] = f"{SCIB} failed: {' '.join(str(error).split())[:200] or type(error).__name__}"
                continue
        if np.isfinite(value):
            scores[name] = value
        else:
            undefined[name] = f"{SCIB} returned {value}"
    _add_totals(scores, undefined)
    return TaskResult(
        {name: Score(scores[name]) for name in (*BIO, *BATCH, *TOTALS) if name in scores}, undefined, details
    )


def _add_totals(scores: dict[str, float], undefined: dict[str, str]) -> None:
    for total, of in (("bio", BIO), ("batch", BATCH)):
        known = [scores[name] for name in of if name in scores and name not in NOT_IN_TOTALS]
        if known:
            scores[total] = float(np.mean(known))
        else:
            undefined[total] = next(undefined[name] for name in of if name in undefined)
    if "bio" in scores and "batch" in scores:
        scores["total"] = BIO_WEIGHT * scores["bio"] + BATCH_WEIGHT * scores["batch"]
    else:
        undefined["total"] = undefined["bio" if "bio" not in scores else "batch"]


def _jobs(cells: JudgedCells, unintegrated: np.ndarray | None) -> dict[str, Callable[[], float] | str]:
    """Return for each score its computation, or the reason why it is undefined."""
    import scib_metrics as scib
    from scib_metrics.nearest_neighbors import NeighborsResults

    x, labels, batches = cells.embedding, cells.labels, cells.batches
    no_labels, no_batches = cells.why_no_labels(), cells.why_no_batches()
    both = no_labels or no_batches
    most = max(NEIGHBORS)
    few = None if len(cells) >= most else f"{len(cells):,} cells are fewer than the {most} neighbours of {SCIB}"
    found: dict[int, Any] = {}
    if few is None:
        numbers, distances = nearest_neighbors(x, most)
        found = {n: NeighborsResults(numbers[:, :n], distances[:, :n]) for n in NEIGHBORS}
    clusters: dict[str, dict[str, float]] = {}

    def agreement(kind: str, score: str) -> float:
        if kind not in clusters:
            if kind == "leiden":
                clusters[kind] = scib.nmi_ari_cluster_labels_leiden(found[15], labels)
            else:
                clusters[kind] = scib.nmi_ari_cluster_labels_kmeans(x, labels)
        return clusters[kind][score]

    mixed = both or _why_no_mixed_label(labels, batches)
    components = None if unintegrated is None else np.asarray(unintegrated)[cells.rows]
    jobs: dict[str, Callable[[], float] | str] = {
        "isolated_labels": both or (lambda: scib.isolated_labels(x, labels, batches)),
        "leiden_nmi": no_labels or few or (lambda: agreement("leiden", "nmi")),
        "leiden_ari": no_labels or few or (lambda: agreement("leiden", "ari")),
        "kmeans_nmi": no_labels or (lambda: agreement("kmeans", "nmi")),
        "kmeans_ari": no_labels or (lambda: agreement("kmeans", "ari")),
        "silhouette_label": no_labels or (lambda: scib.silhouette_label(x, labels)),
        "clisi": no_labels or few or (lambda: scib.clisi_knn(found[90], labels)),
        "silhouette_batch": mixed or (lambda: scib.silhouette_batch(x, labels, batches)),
        "bras": mixed or (lambda: scib.bras(x, labels, batches)),
        "ilisi": no_batches or few or (lambda: scib.ilisi_knn(found[90], batches)),
        "kbet": mixed or few or (lambda: scib.kbet_per_label(found[50], batches, labels)),
        "graph_connectivity": no_labels or few or (lambda: scib.graph_connectivity(found[15], labels)),
        "pcr": no_batches or (lambda: scib.pcr_comparison(components, x, batches, categorical=True)),
    }
    if components is None and no_batches is None:
        jobs["pcr"] = "no components of the counts were given"
    return jobs


def _why_no_mixed_label(labels: np.ndarray | None, batches: np.ndarray | None) -> str | None:
    """Return why batches cannot be compared within cell types, None if they can."""
    assert labels is not None and batches is not None
    mixed = any(1 < len(set(batches[labels == label])) < (labels == label).sum() for label in set(labels))
    return None if mixed else "no cell type has cells of several batches"


def _scib() -> Any:
    try:
        import scib_metrics
    except ImportError as error:
        raise ImportError(INSTALL) from error
    return scib_metrics


__all__ = ["check_scib", "scib_scores"]
