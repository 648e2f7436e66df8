"""Labels of a corpus -> cell types of the Cell Ontology that a model has prototypes for."""

import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.tokenization.ontology.cell_ontology import CellOntology, CellTypeTables
from cellglot.tokenization.ontology.labels import CellLabelReport
from cellglot.training.data.collators import class_name


logger = logging.getLogger(__name__)

IGNORED = -100
LABEL_COLUMNS = ("cell_type_ontology_term_id", "cell_type")

Labels = tuple[str, ...]


@dataclass
class CorpusCellTypes:
    """Cell types of the training cells of a corpus.

    Parameters
    ----------
    columns
        Columns that hold labels, the first whose label stands for a cell type counts.
    tables
        Types with their geometry, None where no label stands for one.
    rows
        Label -> row of `tables`, -100 where it stands for a type that no training cell has.
    report
        What became of the labels of the training cells.
    held_out_without
        Held-out cells without a label, or whose type no training cell has.
    """

    columns: list[str]
    tables: CellTypeTables | None
    rows: dict[str, int]
    report: CellLabelReport
    held_out_without: int

    @property
    def training_without(self) -> int:
        """Training cells that train without cell type."""
        return self.report.lost


def open_ontology(name: str | os.PathLike | date) -> CellOntology:
    """Open an ontology: ``"blood"``, the table that comes with the package; a release's date; or a file."""
    if str(name) == "blood":
        return CellOntology.blood()
    if Path(str(name)).exists():
        return CellOntology.from_file(Path(str(name)))
    if str(name)[:4].isdigit() and len(str(name)) == 10:
        return CellOntology.from_release(str(name))
    raise ValueError(
        f"ontology {str(name)!r}: it is 'blood' (comes with cellglot), a release's date such as '2024-04-05', or "
        "an OBO or OWL file, and there is no such file"
    )


def cell_types_of(corpus: Corpus, ontology: CellOntology, columns: Sequence[str] = LABEL_COLUMNS) -> CorpusCellTypes:
    """Resolve the labels of a corpus.

    A cell's label is the first of its columns that stands for a type, or, where none does, the first that is not
    missing. Types are those of training cells alone, in the order of their ids. Labels that stand for none are
    counted; their cells train without a type.

    Parameters
    ----------
    ontology
        Where to look labels up.
    columns
        Columns of labels, those that the corpus does not have are passed over.
    """
    present = [c for c in columns if c in _columns(corpus)]
    if not present:
        raise ValueError(
            f"{corpus.folder} has no column {' or '.join(columns)}: carry the labels when tokenizing, e.g. "
            "cellglot tokenize --rename my_labels=cell_type"
        )
    train, held_out = (_labels(corpus, split, present) for split in ("train", "validation"))
    by_label = _known_labels([*train, *held_out], ontology)
    counts, passed_over = _chosen(train, by_label)
    found = ontology.resolve(counts)
    found.report.passed_over = dict(passed_over.most_common())
    types = found.found_types
    row = {t: i for i, t in enumerate(types)}
    rows = {label: row.get(t, IGNORED) for label, t in by_label.items()}
    others, _ = _chosen(held_out, by_label)
    return CorpusCellTypes(
        columns=present,
        tables=ontology.restrict(types) if types else None,
        rows=rows,
        report=found.report,
        held_out_without=sum(n for label, n in others.items() if rows.get(label, IGNORED) == IGNORED),
    )


def _columns(corpus: Corpus) -> list[str]:
    shards = corpus.shards("train")
    return pq.read_schema(shards[0]).names if shards else []


def _labels(corpus: Corpus, split: str, columns: Sequence[str]) -> Counter[Labels]:
    """Count the cells of a split by their labels in all columns; those that are missing are left out."""
    return Counter(labels for shard in corpus.shards(split) for labels in _read(shard, columns))


def _read(shard: str, columns: Sequence[str]) -> Iterator[Labels]:
    for batch in pq.ParquetFile(shard).iter_batches(columns=list(columns)):
        values: list[list[Any]] = [batch.column(c).to_pylist() for c in columns]
        for row in zip(*values, strict=True):
            yield tuple(name for name in map(class_name, row) if name)


def _known_labels(cells: Sequence[Labels], ontology: CellOntology) -> dict[str, str]:
    """Return the cell type of each label that stands for one."""
    found = ontology.resolve(sorted({label for labels in cells for label in labels}))
    pairs = zip(found.labels, found.cell_types, strict=True)
    return {label: cell_type for label, cell_type in pairs if label is not None and cell_type is not None}


def _chosen(cells: Counter[Labels], by_label: Mapping[str, str]) -> tuple[Counter[str], Counter[str]]:
    """Count the label that counts in each cell (empty where it has none), and those passed over for a further one."""
    chosen, passed_over = Counter[str](), Counter[str]()
    for labels, n in cells.items():
        known = [label for label in labels if label in by_label]
        label = next(iter([*known, *labels]), "")
        chosen[label] += n
        if label != next(iter(labels), ""):
            passed_over[labels[0]] += n
    return chosen, passed_over


__all__ = ["CorpusCellTypes", "LABEL_COLUMNS", "cell_types_of", "open_ontology"]
