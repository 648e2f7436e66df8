"""Which genes each data set of a corpus measured, to train cells of one on the genes of another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.tokenization.corpus.sources import open_parquet
from cellglot.training.data.columns import read_column
from cellglot.training.data.expression import CorpusExpression


FEWEST_CELLS = 50  # of a data set, to know its genes
BINS = 20  # of genes with like means, within which variable ones are found
LOWEST_MEAN = 0.0125  # of the log expression of a variable gene


@dataclass
class Panels:
    """The genes of data sets.

    A class whose cells come from one data set alone is easily learned by the genes that this data set lacks. If cells
    of all data sets are often seen on the genes of another one, that no longer tells classes apart. Files that people
    share are often cut to variable genes: panels of them prepare for these. Our choice, see
    docs/studies/collection.md.

    Parameters
    ----------
    names
        Data sets; with the number of genes for panels of variable ones.
    measured
        Whether each panel has each token id, shape (panels, vocabulary).
    chances
        Chance of each panel to be drawn, shape (panels,).
    share
        Chance of a cell to be restricted at all.
    """

    names: list[str]
    measured: np.ndarray = field(repr=False)
    chances: np.ndarray
    share: float

    def keeps(self, tokens: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Draw a panel for a cell, and return which of its genes to keep, bool, shape (genes,).

        Parameters
        ----------
        tokens
            The cell's genes, as token ids.
        random
            Where draws come from.
        """
        if random.random() >= self.share:
            return np.ones(len(tokens), dtype=bool)
        return self.measured[random.choice(len(self.names), p=self.chances), tokens]


def panels_of(
    corpus: Corpus,
    share: float,
    column: str,
    weights: Mapping[str, float] | None = None,
    variable: Sequence[int] = (),
) -> Panels | None:
    """Find the genes of the data sets of a corpus: those with counts in any training cell.

    Parameters
    ----------
    corpus
        Tokenized with expression values.
    share
        As for `Panels`.
    column
        Column of the corpus that names the data set of each cell.
    weights
        Data set -> how often it is drawn, relative to 1 for the others; names that the corpus lacks are ignored.
    variable
        Numbers of genes: each data set with more genes than that adds a panel of its most variable ones.

    Returns
    -------
    Panels or None
        None if fewer than two data sets have 50 cells or more.
    """
    expression = CorpusExpression(corpus, wanted_for="data.swap_panels needs", otherwise=", or set data.swap_panels=0")
    given = np.array([str(name) for name in read_column(corpus, ["train"], column)])
    names, of_cell, cells = np.unique(given, return_inverse=True, return_counts=True)
    tokens = expression.tokenizer.vocabulary.gene_token_ids
    shape = (len(names), expression.n_genes)
    found, sums, squares = np.zeros(shape, dtype=bool), np.zeros(shape), np.zeros(shape)
    first = 0
    for logs in expression.logs():
        data_set = np.repeat(of_cell[first : first + logs.shape[0]], np.diff(logs.indptr))
        found[data_set, logs.indices] = True
        np.add.at(sums, (data_set, logs.indices), logs.data)
        np.add.at(squares, (data_set, logs.indices), logs.data**2)
        first += logs.shape[0]
    used = np.flatnonzero(cells >= FEWEST_CELLS)
    if len(used) < 2:
        return None
    panels, chosen, chances = [], [], []
    for i in used.tolist():
        name, weight = str(names[i]), float((weights or {}).get(str(names[i]), 1.0))
        sizes = [size for size in variable if size < found[i].sum()]
        mean = sums[i] / cells[i]
        ranked = most_variable(mean, squares[i] / cells[i] - mean**2)
        for size in (None, *sizes):
            panel = np.zeros(expression.tokenizer.vocabulary.vocab_size, dtype=bool)
            panel[tokens[found[i] if size is None else ranked[:size]]] = True
            panels.append(panel)
            chosen.append(name if size is None else f"{name}, {size:,} variable genes")
            chances.append(weight / (1 + len(sizes)))
    return Panels(chosen, np.stack(panels), np.array(chances) / sum(chances), share)


def genes_of_data_sets(corpus: Corpus, splits: Sequence[str], column: str) -> tuple[list[str], np.ndarray]:
    """Find the genes of the data sets of a corpus: those with counts in any of their cells.

    Parameters
    ----------
    corpus
        Tokenized cells.
    splits
        Splits of the corpus that are read.
    column
        Column of the corpus that names the data set of each cell.

    Returns
    -------
    list of str
        Names of the data sets, sorted.
    numpy.ndarray
        Whether each has each token id, bool, shape (data sets, vocabulary).
    """
    given = [str(name) for name in read_column(corpus, splits, column)]
    names, of_cell = np.unique(given, return_inverse=True)
    vocabulary = corpus.tokenizer().vocabulary
    found = np.zeros((len(names), vocabulary.vocab_size), dtype=bool)
    first = 0
    for shard in (shard for split in splits for shard in corpus.shards(split)):
        for batch in open_parquet(shard).iter_batches(columns=["input_ids"]):
            tokens = batch.column(0)
            rows = of_cell[first : first + len(tokens)]
            found[np.repeat(rows, tokens.value_lengths().to_numpy()), tokens.flatten().to_numpy()] = True
            first += len(tokens)
    genes = np.zeros(vocabulary.vocab_size, dtype=bool)
    genes[vocabulary.gene_token_ids] = True
    return names.tolist(), found & genes


def most_variable(means: np.ndarray, variances: np.ndarray) -> np.ndarray:
    """Return the numbers of genes, those first whose variance is highest among genes with a like mean.

    The ratio of variance and mean, standardised within 20 bins of genes with like means (Satija et al. 2015, the
    method ``seurat`` of scanpy); genes of low mean come last.

    Parameters
    ----------
    means, variances
        Of log expression, shape (genes,).
    """
    order = np.argsort(means)
    order = order[means[order] > LOWEST_MEAN]
    score = np.full(len(means), -np.inf)
    for genes in np.array_split(order, BINS):
        if len(genes):
            ratio = np.log(np.maximum(variances[genes], 1e-12) / means[genes])
            score[genes] = (ratio - ratio.mean()) / max(ratio.std(), 1e-12)
    return np.argsort(-score, kind="stable")


__all__ = ["Panels", "genes_of_data_sets", "most_variable", "panels_of"]
