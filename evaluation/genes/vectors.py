"""Similarity of genes: cosines of centred embeddings, or correlations of expression, without a matrix of all pairs.

Both kinds answer the same three questions about sets of genes: their summed vectors, the squared lengths of these
sums, and the products of each gene with them.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sp


class Vectors(Protocol):
    """Vectors of genes, each of length 1, or 0 for a gene without a vector.

    Parameters
    ----------
    lengths
        1 for genes with a vector, else 0, shape (genes,).
    """

    lengths: np.ndarray

    def sums(self, selection: sp.csr_matrix) -> Any:
        """Return the summed vectors of sets of genes; `selection` has shape (sets, genes)."""
        ...

    def squares(self, sums: Any) -> np.ndarray:
        """Return the squared lengths of sums, shape (sets,)."""
        ...

    def products(self, sums: Any) -> np.ndarray:
        """Return the product of each gene with each sum, shape (genes, sets)."""
        ...


@dataclass
class Embedded:
    """Vectors of embedded genes.

    Parameters
    ----------
    rows
        Float32, shape (genes, size).
    lengths
        As for `Vectors`.
    """

    rows: np.ndarray
    lengths: np.ndarray

    @classmethod
    def centred(cls, embedding: np.ndarray) -> "Embedded":
        """Subtract the mean of all genes with an embedding (our choice: it is the same in all), and scale to length 1.

        Parameters
        ----------
        embedding
            NaN for genes without one, shape (genes, size).
        """
        known = np.isfinite(embedding).all(axis=1)
        rows = np.zeros(embedding.shape, dtype=np.float32)
        if known.any():
            rows[known] = embedding[known] - embedding[known].mean(axis=0, dtype=np.float64)
        norms = np.linalg.norm(rows, axis=1)
        known &= norms > 1e-12 * max(float(norms.max(initial=0.0)), 1e-300)
        rows[known] /= norms[known, None]
        rows[~known] = 0.0
        return cls(rows, known.astype(np.float32))

    def sums(self, selection: sp.csr_matrix) -> np.ndarray:
        """As for `Vectors`, shape (sets, size)."""
        return selection @ self.rows

    def squares(self, sums: np.ndarray) -> np.ndarray:
        """As for `Vectors`."""
        return np.square(sums).sum(axis=1)

    def products(self, sums: np.ndarray) -> np.ndarray:
        """As for `Vectors`."""
        return self.rows @ sums.T


@dataclass
class Coexpressed:
    """Vectors of the expression of genes over cells, whose products are Pearson correlations. They stay sparse.

    Parameters
    ----------
    scaled
        Log counts of a gene divided by their deviation's length, shape (genes, cells).
    means
        Mean of each row of `scaled`, shape (genes,).
    lengths
        As for `Vectors`.
    """

    scaled: sp.csr_matrix
    means: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, log_counts: sp.csr_matrix) -> "Coexpressed":
        """Make the vectors from log counts, shape (cells, genes); a gene of constant expression has none."""
        by_gene = log_counts.T.tocsr().astype(np.float64)
        n_cells = by_gene.shape[1]
        means = np.asarray(by_gene.mean(axis=1)).ravel()
        squares = np.asarray(by_gene.multiply(by_gene).sum(axis=1)).ravel() - n_cells * means**2
        known = squares > 1e-9
        factors = np.where(known, 1 / np.sqrt(np.maximum(squares, 1e-300)), 0.0)
        scaled = sp.diags(factors) @ by_gene
        return cls(scaled.tocsr().astype(np.float32), means * factors, known.astype(np.float32))

    def sums(self, selection: sp.csr_matrix) -> np.ndarray:
        """As for `Vectors`, shape (sets, cells)."""
        return (selection @ self.scaled).toarray() - (selection @ self.means)[:, None].astype(np.float32)

    def squares(self, sums: np.ndarray) -> np.ndarray:
        """As for `Vectors`."""
        return np.square(sums).sum(axis=1)

    def products(self, sums: np.ndarray) -> np.ndarray:
        """As for `Vectors`: sums are centred, so that the means of genes add nothing."""
        return self.scaled @ sums.T


def selection(sets: list[np.ndarray], genes: int) -> sp.csr_matrix:
    """Return sets of genes, each as places, as a matrix of ones, shape (sets, genes)."""
    indptr = np.concatenate([[0], np.cumsum([len(own) for own in sets])])
    indices = np.concatenate([*sets, np.zeros(0, dtype=np.int64)]).astype(np.int64)
    return sp.csr_matrix((np.ones(len(indices), dtype=np.float32), indices, indptr), shape=(len(sets), genes))


__all__ = ["Coexpressed", "Embedded", "Vectors", "selection"]
