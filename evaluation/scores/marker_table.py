"""Tables of marker genes, and which of them are markers of the cells at hand."""

import csv
import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cellglot.inputs import read_text, reading
from cellglot.tokenization.gene_vocabulary import GeneVocabulary
from cellglot.tokenization.ontology.cell_ontology import CellOntology


CELL_TYPE_COLUMNS = ("celltype", "celltypes", "cellname", "cell", "type", "label", "celltypename", "geneset", "set")
GENE_COLUMNS = (
    "genemarker",
    "genemarkers",
    "gene",
    "genes",
    "marker",
    "markers",
    "markergene",
    "markergenes",
    "symbol",
    "genesymbol",
    "officialgenesymbol",
    "ensemblid",
    "geneid",
)


def read_marker_table(
    path: str | Path, cell_type_column: str | None = None, gene_column: str | None = None
) -> dict[str, list[str]]:
    """Read which genes are markers of which cell types.

    Parameters
    ----------
    path
        ``.gmt`` (name, description, genes), or a table with a head: commas in ``.csv``, tabs otherwise. A cell type
        may stand in several rows, a field may hold several genes between commas, semicolons or bars.
    cell_type_column, gene_column
        Columns of the table; found by their usual names by default.

    Returns
    -------
    dict
        Cell type -> genes, each once, by symbol or Ensembl id as they are written.

    Raises
    ------
    ValueError
        If a column is missing or not found, or there are no genes.
    OSError
        If the file cannot be read.
    """
    path = Path(path)
    with io.StringIO(read_text(path), newline="") as file, reading(path, "write it again as a table"):
        if path.suffix == ".gmt":
            rows = [line.rstrip("\r\n").split("\t") for line in file]
            pairs = [(row[0], gene) for row in rows for gene in row[2:]]
        else:
            reader = csv.DictReader(file, delimiter="," if path.suffix == ".csv" else "\t")
            head = [name for name in reader.fieldnames or [] if name]
            types = _column(path, head, cell_type_column, CELL_TYPE_COLUMNS, "cell types", "cell_type_column")
            genes = _column(path, head, gene_column, GENE_COLUMNS, "genes", "gene_column")
            pairs = [(row[types] or "", gene) for row in reader for gene in re.split(r"[,;|]", row[genes] or "")]
    table: dict[str, dict[str, None]] = {}
    for cell_type, gene in pairs:
        if cell_type.strip() and gene.strip():
            table.setdefault(cell_type.strip(), {})[gene.strip()] = None
    if not table:
        raise ValueError(f"{path} names no marker genes")
    return {cell_type: list(found) for cell_type, found in table.items()}


def _column(path: Path, head: list[str], given: str | None, usual: Iterable[str], what: str, option: str) -> str:
    if given is not None:
        if given not in head:
            raise ValueError(f"{path} has no column {given!r}; it has {', '.join(head) or 'none'}")
        return given
    plain = {re.sub(r"[^a-z]", "", name.lower()): name for name in reversed(head)}
    found = next((plain[name] for name in usual if name in plain), None)
    if found is None:
        raise ValueError(
            f"{path}: which column holds the {what}? It has {', '.join(head) or 'none'}: pass {option}=..."
        )
    return found


@dataclass
class MarkerGenes:
    """Markers of the cell types that cells are labelled with.

    Parameters
    ----------
    genes
        Label -> names of its markers.
    found_as
        Label -> the table's cell types whose genes these are.
    without
        Labels that the table has no cell type for.
    """

    genes: dict[str, list[str]]
    found_as: dict[str, list[str]] = field(default_factory=dict)
    without: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """Say which labels have markers, how many, and from where."""
        lines = [
            f"{label}: {len(self.genes[label]):,} markers of {', '.join(names)}"
            for label, names in self.found_as.items()
        ]
        if self.without:
            lines.append(f"no markers: {', '.join(self.without)}")
        return "\n".join(lines)


def markers_of(
    labels: Iterable[str],
    table: Mapping[str, Iterable[str]],
    ontology: CellOntology | None = None,
    types: Mapping[str, str] | None = None,
) -> MarkerGenes:
    """Find the markers of labels.

    A label's cell type in the table is the one that `types` names; else the one written the same way, capitals aside;
    else every one that stands for the same class of the ontology. Nothing is guessed beyond.

    Parameters
    ----------
    table
        From `read_marker_table`.
    ontology
        Where both are looked up.
    types
        Label -> cell type of the table.
    """
    wanted, types = sorted({str(label) for label in labels}), dict(types or {})
    missing = sorted(set(types.values()) - set(table))
    if missing:
        raise ValueError(f"the marker table has no cell type {missing[0]!r}; it has {_some(list(table))}")
    written: dict[str, list[str]] = {}
    for name in table:
        written.setdefault(name.casefold(), []).append(name)
    classes = _classes(ontology, wanted, table)
    result = MarkerGenes({})
    for label in wanted:
        own = [types[label]] if label in types else []
        names = own or written.get(label.casefold()) or classes.get(label, [])
        if names:
            result.found_as[label] = names
            result.genes[label] = list(dict.fromkeys(gene for name in names for gene in table[name]))
        else:
            result.without.append(label)
    if not result.genes:
        raise ValueError(
            f"the marker table has no cell type for any label: labels are {_some(wanted)}; the table has "
            f"{_some(list(table))}. Say which is which: {{label: cell type}}"
        )
    return result


def _classes(ontology: CellOntology | None, labels: list[str], table: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return each label the cell types of the table that stand for its class."""
    if ontology is None:
        return {}
    of_class: dict[str, list[str]] = {}
    for name, cell_type in zip(table, ontology.resolve(table).cell_types, strict=True):
        if cell_type is not None:
            of_class.setdefault(cell_type, []).append(name)
    found = zip(labels, ontology.resolve(labels).cell_types, strict=True)
    return {label: of_class.get(cell_type, []) for label, cell_type in found if cell_type is not None}


def _some(names: list[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")


def marker_tokens(markers: MarkerGenes, vocabulary: GeneVocabulary) -> dict[str, set[int]]:
    """Return the token ids of each label's markers; those that the vocabulary does not know are left out."""
    names = list(dict.fromkeys(gene for genes in markers.genes.values() for gene in genes))
    match = vocabulary.resolve(names)
    token = {name: int(i) for name, i, known in zip(names, match.token_ids, match.known, strict=True) if known}
    return {label: {token[g] for g in genes if g in token} for label, genes in markers.genes.items()}


__all__ = ["MarkerGenes", "marker_tokens", "markers_of", "read_marker_table"]
