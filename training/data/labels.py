"""Labels of cells and genes, as a corpus or a table has them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cellglot.inputs import read_json, read_table, read_text
from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.tokenization.gene_vocabulary import GeneVocabulary
from cellglot.tokenization.reading.labels import read_labels, value_text
from cellglot.training.data.collators import class_name
from cellglot.training.data.columns import read_column


def labels_of(corpus: Corpus, split: str, column: str) -> list[str | None]:
    """Read the labels of a split's cells, None for cells without one, as `cellglot.tokenization.reading.labels` does.

    Raises
    ------
    ValueError
        If there is no such column; names those that there are.
    """
    return read_labels(read_column(corpus, [split], column)).texts.tolist()


def values_of(corpus: Corpus, splits: Sequence[str], column: str) -> np.ndarray:
    """Read a number of each cell, NaN where it is missing, shape (cells,), float64."""
    given = [None if class_name(v) is None else v for v in read_column(corpus, splits, column)]
    values = np.full(len(given), np.nan)
    for row, value in enumerate(given):
        if value is None:
            continue
        try:
            values[row] = float(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{column!r} of {corpus.folder} holds {value!r}, which is no number") from error
    if np.isinf(values).any():
        raise ValueError(f"{column!r} of {corpus.folder} holds infinite values")
    return values


def read_gene_labels(path: str | Path) -> dict[str, str]:
    """Read a table of genes and their classes.

    Parameters
    ----------
    path
        Comma- or tab-separated with a header: genes (Ensembl ids or symbols) in the first column, classes in the
        second; or JSON with gene -> class.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    """
    path = Path(path)
    if path.suffix == ".json":
        pairs = list(read_json(path).items())
    else:
        lines = read_text(path).splitlines()
        header = next((line for line in lines if not line.startswith("#")), "")
        table = read_table(path, sep="\t" if "\t" in header else ",", dtype=str, comment="#")
        if table.shape[1] < 2:
            raise ValueError(f"{path} has one column: genes belong in the first, classes in the second")
        pairs = list(table.iloc[:, :2].itertuples(index=False, name=None))
    classes: dict[str, str] = {}
    for gene, label in pairs:
        name, of_class = value_text(gene), class_name(label)
        if not name or of_class is None:
            continue
        if classes.setdefault(name, of_class) != of_class:
            raise ValueError(f"{path} names {name} as {classes[name]!r} and as {of_class!r}: a gene has one class")
    return classes


def gene_classes(labels: Mapping[str, str], vocabulary: GeneVocabulary) -> dict[int, str]:
    """Find genes with labels in a vocabulary: token id -> class. Genes that are not there are left out.

    Parameters
    ----------
    labels
        Gene -> class.
    """
    names = list(labels)
    found: dict[int, str] = {}
    for name, token in zip(names, vocabulary.resolve(names).token_ids.tolist(), strict=True):
        if token >= 0 and found.setdefault(token, labels[name]) != labels[name]:
            raise ValueError(f"{name} and another name of the same gene have different classes in the table of genes")
    return found


__all__ = ["gene_classes", "labels_of", "read_column", "read_gene_labels", "values_of"]
