"""The genes whose embeddings are most similar to that of each gene."""

import numpy as np
import pandas as pd

from cellglot.evaluation.genes.vectors import Embedded


AT_ONCE = 1 << 24  # similarities in memory


def nearest_genes(embedding: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the nearest other genes of each by the cosine of centred embeddings.

    Parameters
    ----------
    embedding
        NaN for genes without one, shape (genes, size).
    number
        Neighbours of each gene; all others, if there are fewer.

    Returns
    -------
    genes
        Places of the genes with an embedding, shape (known,).
    neighbours
        Places of their neighbours, the nearest first, shape (known, number).
    similarities
        Cosines, float32, shape (known, number).
    """
    vectors = Embedded.centred(embedding)
    genes = np.flatnonzero(vectors.lengths)
    rows = vectors.rows[genes]
    number = min(number, max(len(genes) - 1, 0))
    neighbours = np.zeros((len(genes), number), dtype=np.int64)
    similarities = np.zeros((len(genes), number), dtype=np.float32)
    step = max(1, AT_ONCE // max(len(genes), 1))
    for start in range(0, len(genes) if number else 0, step):
        block = rows[start : start + step] @ rows.T
        own = np.arange(len(block))
        block[own, start + own] = -np.inf
        nearest = np.argpartition(-block, number - 1, axis=1)[:, :number]
        found = np.take_along_axis(block, nearest, axis=1)
        order = np.lexsort((nearest, -found), axis=1)  # equal ones in the order of genes
        neighbours[start : start + step] = genes[np.take_along_axis(nearest, order, axis=1)]
        similarities[start : start + step] = np.take_along_axis(found, order, axis=1)
    return genes, neighbours, similarities


def neighbour_table(embedding: np.ndarray, number: int, ids: np.ndarray, symbols: np.ndarray) -> pd.DataFrame:
    """Return one row for each gene and neighbour: ``gene, symbol, rank, neighbour, neighbour_symbol, similarity``.

    Parameters
    ----------
    embedding, number
        As for `nearest_genes`.
    ids, symbols
        Names of the genes, shape (genes,).
    """
    genes, neighbours, similarities = nearest_genes(embedding, number)
    given, found = np.repeat(genes, neighbours.shape[1]), neighbours.ravel()
    return pd.DataFrame(
        {
            "gene": ids[given],
            "symbol": symbols[given],
            "rank": np.tile(np.arange(1, neighbours.shape[1] + 1), len(genes)),
            "neighbour": ids[found],
            "neighbour_symbol": symbols[found],
            "similarity": similarities.ravel(),
        }
    )


__all__ = ["nearest_genes", "neighbour_table"]
