"""Baselines for the comparison with models."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from anndata import AnnData
from scipy.sparse import csr_matrix, vstack
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from cellglot.evaluation.normalising import log_scaled
from cellglot.evaluation.scores.marker_table import MarkerGenes
from cellglot.modeling.masked_genes import cosine_distances
from cellglot.tokenization.gene_vocabulary import name_sources
from cellglot.tokenization.reading.cells import Cells


COMPONENTS = 50
VARIABLE_GENES = 2000
NEIGHBORS = 15


@dataclass
class BaselineResult:
    """Class that a baseline predicts for each test cell."""

    name: str
    predicted: np.ndarray


def log_counts(cells: Cells, target_sum: float = 1e4) -> csr_matrix:
    """Return log1p of counts scaled to `target_sum` per cell, sparse, shape (cells, genes)."""
    return vstack([log_scaled(chunk, target_sum) for chunk in cells.chunks()], format="csr")


def logistic_regression(features: Any, labels: np.ndarray, train: np.ndarray, test: np.ndarray) -> BaselineResult:
    """Train multinomial logistic regression (L2, C 1) on the training cells and predict the test cells.

    Parameters
    ----------
    features
        Shape (cells, features), dense or sparse.
    labels
        Class names, shape (cells,).
    train, test
        Masks of cells, shape (cells,).
    """
    model = LogisticRegression(max_iter=2000)
    model.fit(features[train], labels[train])
    return BaselineResult("logistic regression on log counts", model.predict(features[test]))


def majority(labels: np.ndarray, train: np.ndarray, test: np.ndarray) -> BaselineResult:
    """Predict the most frequent class of the training cells."""
    names, counts = np.unique(labels[train], return_counts=True)
    return BaselineResult("most frequent class", np.full(int(test.sum()), names[counts.argmax()], dtype=object))


def pca_neighbors(
    features: csr_matrix, labels: np.ndarray, train: np.ndarray, test: np.ndarray, seed: int = 0
) -> BaselineResult:
    """Predict the majority of 15 neighbours in the principal components of the training cells.

    Parameters
    ----------
    features
        Log counts, shape (cells, genes).
    labels
        Class names, shape (cells,).
    train, test
        Masks of cells, shape (cells,).
    """
    pca = LogCountsPca.fit(features[train], seed=seed)
    model = KNeighborsClassifier(min(NEIGHBORS, int(train.sum()))).fit(pca.embed(features[train]), labels[train])
    return BaselineResult("15 neighbours in PCA of log counts", model.predict(pca.embed(features[test])))


@dataclass
class LogCountsPca:
    """Principal components of log counts, the baseline embedding."""

    pca: PCA

    @classmethod
    def fit(cls, features: csr_matrix, components: int = COMPONENTS, seed: int = 0) -> "LogCountsPca":
        """Fit the components of log counts, at most as many as cells or genes allow; the matrix stays sparse."""
        number = min(components, min(features.shape) - 1)
        if number < 2:
            raise ValueError(
                f"{features.shape[0]:,} cells of {features.shape[1]:,} genes: PCA needs at least three of each"
            )
        return cls(PCA(number, svd_solver="arpack", random_state=seed).fit(features))

    def embed(self, features: csr_matrix) -> np.ndarray:
        """Return the components of cells, float32, shape (cells, components)."""
        return self.pca.transform(features).astype(np.float32)

    def loadings(self) -> np.ndarray:
        """Return components times the deviation of cells along them, shape (genes, components)."""
        return self.pca.components_.T * np.sqrt(self.pca.explained_variance_)

    def gene_distances(self, cell: csr_matrix) -> np.ndarray:
        """Return 1 - cosine between the components of a cell with and without each of its expressed genes.

        Parameters
        ----------
        cell
            Log counts of one cell, shape (1, genes).

        Returns
        -------
        numpy.ndarray
            In the order of the cell's expressed genes, shape (expressed genes,).
        """
        whole = self.pca.transform(cell)[0].astype(np.float64)
        return cosine_distances(whole, whole - cell.data[:, None] * self.pca.components_[:, cell.indices].T)


def variable_genes(features: csr_matrix, number: int = VARIABLE_GENES) -> np.ndarray:
    """Return the mask of highly variable genes (scanpy's flavour "seurat"), shape (genes,); all if there are few."""
    import scanpy

    if features.shape[1] <= number:
        return np.ones(features.shape[1], dtype=bool)
    found = scanpy.pp.highly_variable_genes(AnnData(features), n_top_genes=number, inplace=False)
    return found["highly_variable"].to_numpy()


@dataclass
class VariableGeneNeighbors:
    """Vote of the nearest training cells by cosine of log counts of highly variable genes (a mask of genes)."""

    genes: np.ndarray
    classifier: KNeighborsClassifier

    @classmethod
    def fit(
        cls, features: csr_matrix, labels: np.ndarray, number: int = VARIABLE_GENES, neighbors: int = NEIGHBORS
    ) -> "VariableGeneNeighbors":
        """Choose genes and store the training cells, given their log counts, shape (cells, genes)."""
        genes = variable_genes(features, number)
        model = KNeighborsClassifier(min(neighbors, len(labels)), metric="cosine", algorithm="brute")
        return cls(genes, model.fit(features[:, genes], labels))

    def probabilities(self, features: csr_matrix) -> np.ndarray:
        """Return shares of votes, shape (cells, classes), in the order of ``classifier.classes_``."""
        return self.classifier.predict_proba(features[:, self.genes])


def expression_scores(cell: csr_matrix) -> np.ndarray:
    """Score the expressed genes of a cell by their log counts, shape (expressed genes,)."""
    return cell.data.astype(np.float64)


def baseline_gene_scores(
    score: Callable[[csr_matrix], np.ndarray],
    cells: Cells,
    markers: MarkerGenes,
    labels: Sequence[str],
    gene_column: str | None = None,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Score the expressed genes of cells by a baseline.

    Parameters
    ----------
    score
        Function of the log counts of a cell, shape (1, genes); returns scores of its expressed genes.
    gene_column
        Column of the gene names; by default all columns are searched.

    Returns
    -------
    scores, is_marker
        For each cell, one value per expressed gene, shape (expressed genes,).
    """
    features = log_counts(cells)
    sources = name_sources(cells.counts.index, cells.counts.columns, gene_column)
    flags = {
        label: np.any([np.isin(names.astype(str), genes) for _, names in sources], axis=0)
        for label, genes in markers.genes.items()
    }
    rows = [features[i] for i in range(features.shape[0])]
    return [score(row) for row in rows], [flags[label][row.indices] for label, row in zip(labels, rows, strict=True)]


__all__ = [
    "BaselineResult",
    "LogCountsPca",
    "VariableGeneNeighbors",
    "baseline_gene_scores",
    "expression_scores",
    "log_counts",
    "logistic_regression",
    "majority",
    "pca_neighbors",
    "variable_genes",
]
