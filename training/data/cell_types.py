"""From labels of a corpus to cell types of the Cell Ontology for which a model has prototypes."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from cellglot.modeling.cell_losses import IGNORED
from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.tokenization.corpus.sources import read_columns
from cellglot.tokenization.ontology.cell_ontology import CellOntology, CellTypeTables
from cellglot.tokenization.ontology.labels import CellLabelReport
from cellglot.tokenization.ontology.releases import guide_definitions
from cellglot.training.data.labels import label_counts


LABEL_COLUMNS = ("cell_type_ontology_term_id", "cell_type")

Labels = tuple[str, ...]


@dataclass
class CorpusCellTypes:
    """Cell types of the training cells of a corpus.

    Parameters
    ----------
    columns
        Columns with labels; the first label that is a cell type is used.
    tables
        The types with ancestors and similarities, None if no label is a cell type.
    rows
        Label -> row of `tables`, -100 for a type that no training cell has.
    report
        How the labels of the training cells were resolved.
    held_out_without
        Number of held-out cells without a label, or of a type that no training cell has.
    """

    columns: list[str]
    tables: CellTypeTables | None
    rows: dict[str, int]
    report: CellLabelReport
    held_out_without: int

    @property
    def training_without(self) -> int:
        """Number of training cells without a cell type."""
        return self.report.lost


def open_ontology(name: str | os.PathLike | date) -> CellOntology:
    """Open an ontology.

    Parameters
    ----------
    name
        ``"shipped"``, the Cell Ontology that comes with the package; ``"guide"``, the same with the definitions of the
        optional ``cellxgene-ontology-guide``; ``"blood"``, its small table of blood; a release's date; or a file.
    """
    if str(name) == "shipped":
        return CellOntology.shipped()
    if str(name) == "guide":
        return CellOntology.shipped(definitions=guide_definitions())
    if str(name) == "blood":
        return CellOntology.blood()
    if Path(str(name)).exists():
        return CellOntology.from_file(Path(str(name)))
    if str(name)[:4].isdigit() and len(str(name)) == 10:
        return CellOntology.from_release(str(name))
    raise ValueError(
        f"ontology {str(name)!r} is not a file: write 'shipped' or 'blood' (come with cellglot), 'guide', the date of "
        "a release such as '2024-04-05', or an OBO or OWL file"
    )


def cell_types_of(corpus: Corpus, ontology: CellOntology, columns: Sequence[str] = LABEL_COLUMNS) -> CorpusCellTypes:
    """Resolve the labels of a corpus.

    The label of a cell is the first of its columns that is a cell type, else the first that is not missing. The types
    are those of the training cells only, in the order of their ids. Cells of other labels train without a type; the
    report counts them.

    Parameters
    ----------
    columns
        Columns of labels; those that the corpus does not have are skipped.
    """
    present = [c for c in columns if c in _columns(corpus)]
    if not present:
        raise ValueError(
            f"{corpus.folder} has no column {' or '.join(columns)}: tokenize with the labels, e.g. cellglot tokenize "
            "--rename my_labels=cell_type"
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
    return read_columns(shards[0]) if shards else []


def _labels(corpus: Corpus, split: str, columns: Sequence[str]) -> Counter[Labels]:
    """Count the cells of a split by their labels in all columns; missing ones are left out."""
    counts: Counter[Labels] = Counter()
    for row, n in label_counts(corpus, split, columns).items():
        counts[tuple(label for label in row if label)] += n
    return counts


def _known_labels(cells: Sequence[Labels], ontology: CellOntology) -> dict[str, str]:
    """Return label -> cell type, for labels that are one."""
    found = ontology.resolve(sorted({label for labels in cells for label in labels}))
    pairs = zip(found.labels, found.cell_types, strict=True)
    return {label: cell_type for label, cell_type in pairs if label is not None and cell_type is not None}


def _chosen(cells: Counter[Labels], by_label: Mapping[str, str]) -> tuple[Counter[str], Counter[str]]:
    """Count the label that is used of each cell (empty if it has none), and first labels that are not used."""
    chosen, passed_over = Counter[str](), Counter[str]()
    for labels, n in cells.items():
        known = [label for label in labels if label in by_label]
        label = next(iter([*known, *labels]), "")
        chosen[label] += n
        if label != next(iter(labels), ""):
            passed_over[labels[0]] += n
    return chosen, passed_over


__all__ = ["CorpusCellTypes", "LABEL_COLUMNS", "cell_types_of", "open_ontology"]
