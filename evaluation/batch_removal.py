"""Removal of batches from embeddings by Harmony."""

from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np

from cellglot.tokenization.reading.cells import Cells
from cellglot.tokenization.reading.labels import read_labels


INSTALL = "removing batches needs harmonypy: install it by pip install 'cellglot[integration]'"
ROUNDS, CELLS_PER_CLUSTER, MOST_CLUSTERS = 10, 30, 100


@dataclass
class BatchRemoval:
    """Embeddings of which batches were removed.

    Parameters
    ----------
    embedding
        Shape (cells, size), float32; NaN where it was NaN before.
    facts
        What was done, as plain types: ``method``, ``package``, ``column``, ``batches`` (name -> cells), ``cells``,
        ``clusters``, ``rounds``, ``seed``.
    """

    embedding: np.ndarray
    facts: dict[str, Any]

    def summary(self) -> str:
        """Say what was done, in one line."""
        facts = self.facts
        return (
            f"batches of column {facts['column']!r} removed by Harmony ({facts['package']}): {facts['cells']:,} "
            f"cells, {len(facts['batches'])} batches, rounds: {facts['rounds']}"
        )


def check_harmony() -> None:
    """Refuse to begin without harmonypy.

    Raises
    ------
    ImportError
        If it is not installed; says how to install it.
    """
    _harmony()


def read_batches(cells: Cells, column: str) -> np.ndarray:
    """Read the batch of each cell from a column of obs.

    Returns
    -------
    numpy.ndarray
        Names of batches, str, shape (cells,).

    Raises
    ------
    ValueError
        If the column does not exist, a cell has no batch, there are fewer than two batches, or so many that most
        have one cell.
    """
    if column not in cells.obs.names:
        raise ValueError(f"{cells.name}: no column {column!r} in obs; it has {', '.join(cells.obs.names) or 'none'}")
    return check_batches(read_labels(cells.obs.column(column, 0, len(cells))).texts, column, cells.name)


def check_batches(batches: np.ndarray, column: str, source: str) -> np.ndarray:
    """Return batches as text, and refuse batches that Harmony cannot remove.

    Parameters
    ----------
    batches
        Batch of each cell, None if missing, shape (cells,).
    column, source
        Column of obs and name of the file, for errors.
    """
    missing = sum(batch is None for batch in batches)
    if missing:
        raise ValueError(
            f"{source}: {missing:,} of {len(batches):,} cells have no batch in column {column!r}: fill in the column, "
            "or leave these cells out"
        )
    number = len(set(batches))
    if number < 2:
        raise ValueError(
            f"{source}: column {column!r} has {number} batch ({', '.join(sorted(set(batches))) or 'no cells'}): there "
            "is nothing to remove, name a column with two or more batches"
        )
    if 2 * number > len(batches):
        raise ValueError(
            f"{source}: column {column!r} has {number:,} values for {len(batches):,} cells: it is not a column of "
            "batches"
        )
    return np.asarray(batches, dtype=str)


def remove_batches(embedding: np.ndarray, batches: np.ndarray, column: str = "batch", seed: int = 0) -> BatchRemoval:
    """Remove batches from an embedding by Harmony (Korsunsky et al. 2019), with the settings of harmonypy.

    Clusters are at least two, where harmonypy would use none below 15 cells (our choice). The embedding is not scaled
    or reduced before.

    Parameters
    ----------
    embedding
        Shape (cells, size). Cells with NaN, which express no gene of the model, take no part.
    batches
        Batch of each cell, shape (cells,), as of `check_batches`.
    column
        Where the batches come from, for `BatchRemoval.facts`.
    seed
        Of the start of the clusters.

    Returns
    -------
    BatchRemoval
        The embedding without batches, and what was done.

    Raises
    ------
    ValueError
        If the cells with an embedding are of one batch.
    ImportError
        If harmonypy is not installed.
    """
    harmony = _harmony()
    known = np.isfinite(embedding).all(axis=1)
    names, counts = np.unique(batches[known], return_counts=True)
    if len(names) < 2:
        raise ValueError(
            f"column {column!r}: {int(known.sum()):,} of {len(known):,} cells have an embedding, and they are of "
            f"{len(names)} batch: there is nothing to remove"
        )
    clusters = int(np.clip(round(known.sum() / CELLS_PER_CLUSTER), 2, MOST_CLUSTERS))
    # Genes in rows: harmonypy takes this shape for certain, the other one by comparing numbers.
    values = np.ascontiguousarray(embedding[known].T, dtype=np.float64)
    found = harmony.run_harmony(
        values,
        {column: batches[known]},
        column,
        nclust=clusters,
        max_iter_harmony=ROUNDS,
        random_state=seed,
        verbose=False,
    )
    result = np.full(embedding.shape, np.nan, dtype=np.float32)
    result[known] = found.Z_corr
    return BatchRemoval(
        result,
        {
            "method": "Harmony",
            "package": f"harmonypy {metadata.version('harmonypy')}",
            "column": column,
            "batches": {str(name): int(count) for name, count in zip(names, counts, strict=True)},
            "cells": int(known.sum()),
            "clusters": clusters,
            "rounds": len(found.objective_harmony) - 1,
            "seed": seed,
        },
    )


def _harmony() -> Any:
    try:
        import harmonypy
    except ImportError as error:
        raise ImportError(INSTALL) from error
    return harmonypy


__all__ = ["BatchRemoval", "check_batches", "check_harmony", "read_batches", "remove_batches"]
