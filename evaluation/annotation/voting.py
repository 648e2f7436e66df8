"""Clusters of cells vote on their cell type, as CellTypist's majority voting does."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from cellglot.evaluation.metrics.cell_embedding_quality.cell_embedding_quality import nearest_neighbors
from cellglot.evaluation.scores.clustering import connectivities, leiden_clusters


NEIGHBORS = 15
FEWEST_CELLS = 10

# Cells below which a resolution is used: many small clusters, as CellTypist makes (Domínguez Conde et al. 2022).
RESOLUTIONS = ((500, 1.0), (5_000, 5.0), (20_000, 10.0), (40_000, 15.0), (100_000, 20.0), (200_000, 25.0))


def check_vote(n_cells: int) -> None:
    """Refuse to cluster too few cells, before any work.

    Raises
    ------
    ValueError
        If there are fewer than ten.
    """
    if n_cells < FEWEST_CELLS:
        raise ValueError(f"{n_cells:,} cells are too few for clusters that vote: it takes {FEWEST_CELLS} or more")


def vote(embedding: np.ndarray, labels: Sequence[str | None], seed: int = 0) -> list[str | None]:
    """Give each cell the most frequent label of its cluster (Leiden on the graph of nearest neighbours).

    Parameters
    ----------
    embedding
        Shape (cells, size); NaN for cells without an embedding.
    labels
        Label of each cell, None where it has none. ``"unassigned"`` is a label like any other.
    seed
        Of the clustering.

    Returns
    -------
    list
        Label of each cell's cluster, of equally frequent ones the first in the alphabet; None for cells without an
        embedding.

    Raises
    ------
    ValueError
        If fewer than ten cells have an embedding.
    """
    known = np.flatnonzero(np.isfinite(embedding).all(axis=1))
    check_vote(len(known))
    numbers, distances = nearest_neighbors(embedding[known], min(NEIGHBORS, len(known) - 1))
    resolution = next((value for most, value in RESOLUTIONS if len(known) < most), 30.0)
    clusters = leiden_clusters(connectivities(numbers, distances), [resolution], seed)[0]
    found: list[str | None] = [None] * len(labels)
    for cluster in range(int(clusters.max()) + 1):
        cells = known[clusters == cluster]
        counts = Counter(str(labels[cell]) for cell in cells if labels[cell] is not None)
        winner = min(counts, key=lambda name: (-counts[name], name)) if counts else None
        for cell in cells:
            found[cell] = winner
    return found


__all__ = ["check_vote", "vote"]
