"""Tables of marker genes, and the markers of labels."""

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
    """Read a table of marker genes.

    Parameters
    ----------
    path
        ``.gmt`` (name, description, genes), or a table with a header: ``.csv`` with commas, others with tabs. A cell
        type may have several rows, a field may contain several genes, separated by commas, semicolons or bars.
    cell_type_column, gene_column
        Columns of the table; by default found by their usual names.

    Returns
    -------
    dict
        Cell type -> distinct genes, symbols or Ensembl ids as written.

    Raises
    ------
    ValueError
        If a column is not found, or there are no genes.
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
        raise ValueError(f"{path} contains no marker genes")
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
            f"{path}: no column of {what} found among {', '.join(head) or 'no columns'}: pass {option}=..."
        )
    return found


@dataclass
class MarkerGenes:
    """Markers of labels.

    Parameters
    ----------
    genes
        Label -> names of its markers.
    found_as
        Label -> the matching cell types of the table.
    without
        Labels without a matching cell type.
    """

    genes: dict[str, list[str]]
    found_as: dict[str, list[str]] = field(default_factory=dict)
    without: list[str] = field(default_factory=list)


def markers_of(
    labels: Iterable[str],
    table: Mapping[str, Iterable[str]],
    ontology: CellOntology | None = None,
    types: Mapping[str, str] | None = None,
) -> MarkerGenes:
    """Find the markers of labels.

    A label's cell type in the table is the one in `types`; else the one of the same name, ignoring case; else all
    those of the same class of the ontology.

    Parameters
    ----------
    table
        From `read_marker_table`.
    types
        Label -> cell type of the table.

    Raises
    ------
    ValueError
        If no label has markers, or a cell type of `types` is not in the table.
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
            f"{_some(list(table))}. Pass the matching ones as {{label: cell type}}"
        )
    return result


def _classes(ontology: CellOntology | None, labels: list[str], table: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return label -> cell types of the table of the same class of the ontology."""
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
    """Return the token ids of each label's markers, without markers that are not in the vocabulary."""
    names = list(dict.fromkeys(gene for genes in markers.genes.values() for gene in genes))
    match = vocabulary.resolve(names)
    token = {name: int(i) for name, i, known in zip(names, match.token_ids, match.known, strict=True) if known}
    return {label: {token[g] for g in genes if g in token} for label, genes in markers.genes.items()}


__all__ = ["MarkerGenes", "marker_tokens", "markers_of", "read_marker_table"]
