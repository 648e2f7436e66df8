"""Human genes of the collection's models: names of a file to Ensembl ids, and the vocabulary of training cells."""

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
from anndata import AnnData

from cellglot.tokenization.corpus.gene_statistics import CorpusStatistics
from cellglot.tokenization.gene_vocabulary import GeneVocabulary
from cellglot.tokenization.genes.tables import human_genes


@cache
def _all_genes() -> GeneVocabulary:
    return GeneVocabulary.from_statistics(human_genes().ids)


def find_genes(index: Sequence[str], columns: Mapping[str, Sequence[str]] | None = None) -> np.ndarray:
    """Return the Ensembl id of each gene of a file, empty where it is not known; shape (genes,), object."""
    vocabulary = _all_genes()
    tokens = vocabulary.resolve(index, columns).token_ids
    return np.array([vocabulary.tokens[int(t)] if t >= 0 else "" for t in tokens], dtype=object)


def make_vocabulary(parts: Sequence[AnnData], protein_coding: bool, fewest_cells: int) -> GeneVocabulary:
    """Make the vocabulary of training cells.

    Means and deviations are over the cells of data sets that measured a gene: a panel does not make other genes rare.
    Genes that no data set measured have mean 0, deviation 1 and median 1.

    Parameters
    ----------
    parts
        Counts with Ensembl ids as names of genes.
    protein_coding, fewest_cells
        As for `cellglot.model_cards.collection.recipe.GeneSettings`.
    """
    human = human_genes()
    codes = frozenset(human.coding_ids())
    names = sorted(set(codes if protein_coding else ()).union(*(part.var_names for part in parts)))
    number = {gene: i for i, gene in enumerate(names)}
    statistics, measured = CorpusStatistics(len(names)), np.zeros(len(names), dtype=np.int64)
    for part in parts:
        columns = np.array([number[gene] for gene in part.var_names])
        measured[columns] += part.n_obs
        counts = part.X.tocsr()
        statistics.update(counts.data, counts.indices, counts.indptr, columns)
    cells, of_gene = max(statistics.n_cells, 1), np.maximum(measured, 1)
    means = statistics.mean * cells / of_gene
    squares = (statistics.squares + cells * statistics.mean**2) / of_gene
    stds = np.sqrt(np.maximum(squares - means**2, 0.0))
    medians = statistics.medians()
    coding = np.array([gene in codes for gene in names])
    kept = (statistics.detected >= fewest_cells) | (coding & protein_coding)
    genes = [gene for gene, keep in zip(names, kept, strict=True) if keep]
    return GeneVocabulary.from_statistics(
        genes,
        symbols={gene: symbol for gene in genes if (symbol := human.symbol(gene))},
        aliases={g: names for g in genes if (names := [*human.earlier_names(g), *human.earlier_ids(g)])},
        medians=np.where(np.isnan(medians), 1.0, medians)[kept],
        means=means[kept],
        stds=np.where(stds > 0, stds, 1.0)[kept],
        metadata={"source": "training cells of the collection; names from the table of human genes of cellglot"},
    )


__all__ = ["find_genes", "make_vocabulary"]
