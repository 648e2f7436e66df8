"""Genes of the collection: all human genes to find names in, and the vocabulary of a model with its statistics."""

import gzip
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from anndata import AnnData

from cellglot.tokenization.corpus.gene_statistics import CorpusStatistics
from cellglot.tokenization.gene_vocabulary import GeneVocabulary


GENE_FILE = "genes/ensembl115_genes.tsv.gz"
HGNC_FILE = "genes/hgnc_2020_11.tsv.gz"


@dataclass(frozen=True)
class HumanGenes:
    """All human genes.

    Parameters
    ----------
    names
        Every gene with symbol and aliases, to find the names of files in.
    protein_coding
        Ensembl ids of protein-coding genes.
    """

    names: GeneVocabulary
    protein_coding: frozenset[str]

    @classmethod
    def read(cls, data: Path) -> "HumanGenes":
        """Read the tables of Ensembl and of HGNC below the folder of data.

        Raises
        ------
        FileNotFoundError
            If one is not there.
        """
        genes = _rows(data / GENE_FILE)
        known = {row["ensembl_gene_id"] for row in genes}
        coding = frozenset(row["ensembl_gene_id"] for row in genes if row["biotype"] == "protein_coding")
        symbols: dict[str, str] = {}
        taken: dict[str, str] = {}
        for row in sorted(genes, key=lambda row: (row["ensembl_gene_id"] not in coding, row["ensembl_gene_id"])):
            gene, symbol = row["ensembl_gene_id"], row["symbol"]
            if symbol and taken.setdefault(symbol, gene) == gene:
                symbols[gene] = symbol
        former: dict[str, set[str]] = {}
        for row in _rows(data / HGNC_FILE):
            if row["ensembl"] in known:
                for name in (row["symbol"], *row["previous_symbols"].split("|"), *row["alias_symbols"].split("|")):
                    if name and name not in taken:
                        former.setdefault(name, set()).add(row["ensembl"])
        aliases: dict[str, list[str]] = {}
        for name, found in former.items():
            if len(found) == 1:  # a name of several genes is not guessed
                aliases.setdefault(next(iter(found)), []).append(name)
        return cls(GeneVocabulary.from_statistics(sorted(known), symbols=symbols, aliases=aliases), coding)

    def find(self, index: Sequence[str], columns: Mapping[str, Sequence[str]] | None) -> np.ndarray:
        """Return the Ensembl id of each gene of a file, empty where it is not known; shape (genes,), object."""
        tokens = self.names.resolve(index, columns).token_ids
        return np.array([self.names.tokens[int(t)] if t >= 0 else "" for t in tokens], dtype=object)


def _rows(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        head, *lines = file.read().split("\n")
    names = head.split("\t")
    return [dict(zip(names, line.split("\t"), strict=False)) for line in lines if line]


def make_vocabulary(
    parts: Sequence[AnnData], genes: HumanGenes, protein_coding: bool, fewest_cells: int
) -> GeneVocabulary:
    """Make the vocabulary of training cells.

    Means and deviations are over the cells of data sets that measured a gene: a panel does not make other genes rare.
    Genes that no data set measured have mean 0, deviation 1 and median 1.

    Parameters
    ----------
    parts
        Counts with Ensembl ids as names of genes.
    genes
        All human genes.
    protein_coding, fewest_cells
        As for `cellglot.model_cards.collection.recipe.GeneSettings`.
    """
    names = sorted(set(genes.protein_coding if protein_coding else ()).union(*(part.var_names for part in parts)))
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
    coding = np.array([gene in genes.protein_coding for gene in names])
    kept = (statistics.detected >= fewest_cells) | (coding & protein_coding)
    symbols = {gene: genes.names.symbols[gene] for gene in names if gene in genes.names.symbols}
    aliases = {gene: genes.names.aliases[gene] for gene in names if gene in genes.names.aliases}
    return GeneVocabulary.from_statistics(
        [gene for gene, keep in zip(names, kept, strict=True) if keep],
        symbols=symbols,
        aliases=aliases,
        medians=np.where(np.isnan(medians), 1.0, medians)[kept],
        means=means[kept],
        stds=np.where(stds > 0, stds, 1.0)[kept],
        metadata={"source": "training cells of the collection; names of Ensembl 115 and HGNC (CC0)"},
    )


__all__ = ["HumanGenes", "make_vocabulary"]
