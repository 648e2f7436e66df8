"""Nearest neighbours by cosine: exact, or for large references by a graph whose recall is measured."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cellglot.evaluation.search.retrieval import nearest


LARGE = 100_000  # cells, above which a graph is made
RECALL = 0.98  # of a graph; where it is not reached, the search stays exact
MEASURED_CELLS = 256
MEASURED_NEIGHBOURS = 15
CONNECTIVITY = 32
EXPANSION_ADD = 128
EXPANSIONS = (64, 128, 256, 512, 1024)
ROWS_AT_ONCE = 1 << 14
QUERIES_AT_ONCE = 1024


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Return rows of length 1, float32; rows of zeros stay zeros."""
    wide = np.asarray(rows, dtype=np.float32)
    return wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), np.float32(1e-12))


def exact_neighbours(queries: np.ndarray, items: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Compare every query with every item, in bounded memory.

    Parameters
    ----------
    queries, items
        Rows of length 1, shapes (queries, size) and (items, size); items may be mapped from a file.
    k
        Neighbours of each query, all items if there are fewer.

    Returns
    -------
    tuple
        Rows of the items, int64, and cosine distances (1 - cosine), float32, shape (queries, k), the nearest first.
    """
    found = nearest(queries, items, k, queries_at_once=QUERIES_AT_ONCE)
    return found.numbers, np.maximum(1 - found.scores, 0)


def without_self(numbers: np.ndarray, distances: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Remove each query from its own neighbours, the last one where it is not among them; one column less."""
    own = numbers == rows[:, None]
    own[~own.any(axis=1), -1] = True
    shape = len(rows), numbers.shape[1] - 1
    return numbers[~own].reshape(shape), distances[~own].reshape(shape)


class NeighbourGraph:
    """A usearch graph (HNSW) over the rows of a reference, with exact distances of what it finds.

    Parameters
    ----------
    graph
        The ``usearch.index.Index``.
    vectors
        The rows, of length 1; may be mapped from a file.
    """

    def __init__(self, graph: Any, vectors: np.ndarray):
        self.graph, self.vectors = graph, vectors

    @classmethod
    def build(cls, vectors: np.ndarray) -> tuple["NeighbourGraph", float]:
        """Build a graph, and set the depth of its search such that it finds a share `RECALL` of the neighbours.

        Returns
        -------
        tuple
            The graph and its recall, measured on cells of the reference; the recall may be too small.
        """
        from usearch.index import Index

        graph = Index(
            ndim=vectors.shape[1], metric="ip", dtype="f16", connectivity=CONNECTIVITY, expansion_add=EXPANSION_ADD
        )
        for start, rows in _blocks(vectors):
            graph.add(np.arange(start, start + len(rows)), rows, threads=torch.get_num_threads())
        made = cls(graph, vectors)
        some = np.random.default_rng(0).choice(len(vectors), min(MEASURED_CELLS, len(vectors)), replace=False)
        asked, k = np.asarray(vectors[np.sort(some)], dtype=np.float32), MEASURED_NEIGHBOURS + 1
        wanted, _ = without_self(*exact_neighbours(asked, vectors, k), np.sort(some))
        recall = 0.0
        for expansion in EXPANSIONS:
            graph.expansion_search = expansion
            found, _ = without_self(*made.search(asked, k), np.sort(some))
            recall = float((found[:, :, None] == wanted[:, None, :]).any(axis=1).mean())
            if recall >= RECALL:
                break
        return made, recall

    @classmethod
    def load(cls, path: Path, vectors: np.ndarray, facts: Mapping[str, Any]) -> "NeighbourGraph":
        """Read a graph that `save` wrote.

        Raises
        ------
        ValueError
            If it does not belong to the vectors.
        """
        from usearch.index import Index

        head = Index.metadata(str(path)) or {}
        graph = Index(ndim=vectors.shape[1], metric="ip", dtype="f16", connectivity=CONNECTIVITY)
        if head.get("dimensions") == vectors.shape[1] and head.get("count_present") == len(vectors):
            graph.load(str(path))
        if len(graph) != len(vectors) or graph.ndim != vectors.shape[1]:
            raise ValueError(f"it has no graph of {len(vectors):,} vectors of size {vectors.shape[1]:,}")
        graph.expansion_search = int(facts["expansion_search"])
        return cls(graph, vectors)

    def save(self, path: Path) -> None:
        """Write the graph to a file."""
        self.graph.save(str(path))

    def facts(self) -> dict[str, Any]:
        """Return what `load` needs."""
        return {"expansion_search": int(self.graph.expansion_search)}

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Find neighbours as `exact_neighbours` does, some of which may be missed."""
        k = min(k, len(self.vectors))
        numbers = np.zeros((len(queries), k), dtype=np.int64)
        distances = np.zeros((len(queries), k), dtype=np.float32)
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            block = slice(start, start + QUERIES_AT_ONCE)
            numbers[block], distances[block] = self._search(np.asarray(queries[block], dtype=np.float32), k)
        return numbers, distances

    def _search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        found = self.graph.search(queries, k, threads=torch.get_num_threads())
        keys = np.asarray(found.keys).reshape(len(queries), -1).astype(np.int64)
        counts = np.asarray(getattr(found, "counts", [keys.shape[1]])).reshape(-1)
        if keys.shape[1] < k or (counts < k).any():
            return exact_neighbours(queries, self.vectors, k)
        if keys.min() < 0 or keys.max() >= len(self.vectors):
            raise ValueError("the graph of neighbours is damaged: make the index again")
        rows = np.asarray(self.vectors[keys.reshape(-1)], dtype=np.float32).reshape(*keys.shape, -1)
        distances = np.maximum(1 - np.einsum("qs,qks->qk", queries, rows), 0)
        order = np.argsort(distances, axis=1, kind="stable")
        return np.take_along_axis(keys, order, 1), np.take_along_axis(distances, order, 1)


def _blocks(vectors: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, len(vectors), ROWS_AT_ONCE):
        yield start, np.asarray(vectors[start : start + ROWS_AT_ONCE], dtype=np.float32)


__all__ = ["LARGE", "RECALL", "NeighbourGraph", "exact_neighbours", "unit_rows", "without_self"]
