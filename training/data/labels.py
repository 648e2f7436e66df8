"""Labels of cells from a corpus, and of genes from a table."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from cellglot.inputs import read_json, read_table, read_text
from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.tokenization.corpus.sources import read_parquet
from cellglot.tokenization.gene_vocabulary import GeneVocabulary
from cellglot.tokenization.reading.labels import label_text, read_labels, value_text
from cellglot.training.data.columns import read_column


def label_rows(corpus: Corpus, split: str, columns: Sequence[str]) -> Iterator[tuple[str | None, ...]]:
    """Yield the labels of each cell of a split in some columns, None for missing ones."""
    for shard in corpus.shards(split):
        for batch in read_parquet(shard, list(columns)).to_batches():
            read = [map(label_text, batch.column(c).to_pylist()) for c in columns]
            yield from zip(*read, strict=True) if read else [()] * len(batch)


def label_counts(corpus: Corpus, split: str, columns: Sequence[str]) -> Counter[tuple[str | None, ...]]:
    """Count the cells of a split by their labels in some columns, None for missing ones; one shard at a time."""
    counts: Counter[tuple[str | None, ...]] = Counter()
    if not columns:
        return Counter({(): corpus.n_cells(split)} if corpus.n_cells(split) else {})
    names = list(columns)
    for shard in corpus.shards(split):
        grouped = read_parquet(shard, names).group_by(names, use_threads=False).aggregate([([], "count_all")])
        read = [map(label_text, grouped[name].to_pylist()) for name in names]
        for labels, n in zip(zip(*read, strict=True), grouped["count_all"].to_pylist(), strict=True):
            counts[labels] += n
    return counts


def labels_of(corpus: Corpus, split: str, column: str) -> list[str | None]:
    """Read the labels of the cells of a split, None for cells without one."""
    return read_labels(read_column(corpus, [split], column)).texts.tolist()


def values_of(corpus: Corpus, splits: Sequence[str], column: str) -> np.ndarray:
    """Read a number of each cell, NaN if it is missing, shape (cells,), float64."""
    given = [None if label_text(v) is None else v for v in read_column(corpus, splits, column)]
    values = np.full(len(given), np.nan)
    for row, value in enumerate(given):
        if value is None:
            continue
        try:
            values[row] = float(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{column!r} of {corpus.folder} contains {value!r}, which is not a number") from error
    if np.isinf(values).any():
        raise ValueError(f"{column!r} of {corpus.folder} contains infinite values")
    return values


def read_gene_labels(path: str | Path) -> dict[str, str]:
    """Read a table of genes and their classes.

    Parameters
    ----------
    path
        Comma- or tab-separated with a header: genes (Ensembl ids or symbols) in the first column, classes in the
        second; or JSON with gene -> class.
    """
    path = Path(path)
    if path.suffix == ".json":
        pairs = list(read_json(path).items())
    else:
        lines = read_text(path).splitlines()
        header = next((line for line in lines if not line.startswith("#")), "")
        table = read_table(path, sep="\t" if "\t" in header else ",", dtype=str, comment="#")
        if table.shape[1] < 2:
            raise ValueError(f"{path} has only one column: put genes in the first and classes in the second")
        pairs = list(table.iloc[:, :2].itertuples(index=False, name=None))
    classes: dict[str, str] = {}
    for gene, label in pairs:
        name, of_class = value_text(gene), label_text(label)
        if not name or of_class is None:
            continue
        if classes.setdefault(name, of_class) != of_class:
            raise ValueError(f"{path} names {name} as {classes[name]!r} and as {of_class!r}: a gene has one class")
    return classes


def gene_classes(labels: Mapping[str, str], vocabulary: GeneVocabulary) -> dict[int, str]:
    """Find labelled genes in a vocabulary: token id -> class. Genes that are not in it are left out."""
    names = list(labels)
    found: dict[int, str] = {}
    for name, token in zip(names, vocabulary.resolve(names).token_ids.tolist(), strict=True):
        if token >= 0 and found.setdefault(token, labels[name]) != labels[name]:
            raise ValueError(
                f"{name} and another name of the same gene have different classes in the table of genes: keep one"
            )
    return found


__all__ = ["gene_classes", "label_counts", "label_rows", "labels_of", "read_column", "read_gene_labels", "values_of"]
