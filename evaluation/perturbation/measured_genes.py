"""The genes of a file without a model: which names mean which gene, and log counts of some cells."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from cellglot.evaluation.chosen_counts import ChosenCounts
from cellglot.evaluation.normalising import log_scaled
from cellglot.evaluation.perturbation.tokens import TARGET_SUM, Expression
from cellglot.tokenization.gene_vocabulary import GeneVocabulary
from cellglot.tokenization.genes.gene_catalogue import gene_catalogue
from cellglot.tokenization.genes.tables import human_genes
from cellglot.tokenization.reading.cells import Cells


@dataclass
class MeasuredGenes:
    """The genes of a file.

    Parameters
    ----------
    cells
        The opened file.
    catalogue
        Vocabulary of its genes.
    columns
        Sums the columns of the file that are of the same gene, shape (columns, genes).
    """

    cells: Cells
    catalogue: GeneVocabulary
    columns: sp.csr_matrix

    @classmethod
    def of(cls, cells: Cells, gene_column: str | None = None) -> "MeasuredGenes":
        """Find the genes of a file; `gene_column` as for the tokenizers."""
        counts = cells.counts
        catalogue = gene_catalogue([(counts.index, counts.columns)], human=human_genes())
        tokens = catalogue.resolve(counts.index, counts.columns, gene_column).token_ids
        known = np.flatnonzero(tokens >= 0)
        shape = (len(tokens), catalogue.vocab_size)
        return cls(cells, catalogue, sp.csr_matrix((np.ones(len(known)), (known, tokens[known])), shape=shape))

    def places(self, names: Sequence[str]) -> np.ndarray:
        """Return the place of each name among the genes, -1 where it is not the name of one gene, shape (names,)."""
        found = self.catalogue.resolve(list(names)).token_ids
        measured = np.asarray(self.columns.sum(axis=0)).ravel() > 0
        return np.where((found >= 0) & measured[found], found, -1)

    def log_counts(self, numbers: np.ndarray) -> sp.csr_matrix:
        """Return log1p of counts scaled to 10,000 of some cells, ascending numbers, float32, shape (cells, genes)."""
        parts = [sp.csr_matrix((0, self.columns.shape[1]), dtype=np.float32)]
        for _, rows in ChosenCounts(self.cells.counts, numbers).chunks():
            counts = sp.csr_matrix((rows.data, rows.indices, rows.indptr), shape=(len(rows), self.columns.shape[0]))
            parts.append(log_scaled((counts @ self.columns).tocsr(), TARGET_SUM))
        return sp.vstack(parts, format="csr")

    def expression(self, log_counts: sp.csr_matrix) -> Expression:
        """Return the mean expression of the genes in cells with these log counts."""
        scaled = log_counts.astype(np.float64).expm1()
        means = np.asarray(scaled.sum(axis=0)).ravel() / max(log_counts.shape[0], 1)
        measured = np.asarray(self.columns.sum(axis=0)).ravel() > 0
        return Expression(means, np.asarray((log_counts > 0).sum(axis=0)).ravel(), measured)


__all__ = ["MeasuredGenes"]
