"""Which genes each data set of a corpus measured, to train cells of one on the genes of another."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.training.data.columns import read_column
from cellglot.training.data.expression import CorpusExpression


FEWEST_CELLS = 50  # of a data set, to know its genes


@dataclass
class Panels:
    """The genes of data sets.

    A class whose cells come from one data set alone is easily learned by the genes that this data set lacks. If cells
    of all data sets are often seen on the genes of another one, that no longer tells classes apart. Our choice, see
    docs/studies/collection.md.

    Parameters
    ----------
    names
        Data sets.
    measured
        Whether each data set has counts of each token id, shape (data sets, vocabulary).
    chances
        Chance of each data set to be drawn, shape (data sets,).
    share
        Chance of a cell to be restricted at all.
    """

    names: list[str]
    measured: np.ndarray = field(repr=False)
    chances: np.ndarray
    share: float

    def keeps(self, tokens: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Draw a data set for a cell, and return which of its genes to keep, bool, shape (genes,).

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


def panels_of(corpus: Corpus, share: float, column: str, weights: Mapping[str, float] | None = None) -> Panels | None:
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

    Returns
    -------
    Panels or None
        None if fewer than two data sets have 50 cells or more.
    """
    expression = CorpusExpression(corpus, wanted_for="data.swap_panels needs", otherwise=", or set data.swap_panels=0")
    given = np.array([str(name) for name in read_column(corpus, ["train"], column)])
    names, of_cell, cells = np.unique(given, return_inverse=True, return_counts=True)
    vocabulary = expression.tokenizer.vocabulary
    measured = np.zeros((len(names), vocabulary.vocab_size), dtype=bool)
    first = 0
    for values in expression.values():
        data_set = np.repeat(of_cell[first : first + values.shape[0]], np.diff(values.indptr))
        measured[data_set, vocabulary.gene_token_ids[values.indices]] = True
        first += values.shape[0]
    used = np.flatnonzero(cells >= FEWEST_CELLS)
    if len(used) < 2:
        return None
    chosen = [str(names[i]) for i in used]
    chances = np.array([float((weights or {}).get(name, 1.0)) for name in chosen])
    return Panels(chosen, measured[used], chances / chances.sum(), share)


__all__ = ["Panels", "panels_of"]
