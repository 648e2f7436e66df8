"""Texts that describe cells and cell types, by templates that users can change."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from string import Formatter
from typing import Any

import numpy as np
import pandas as pd

from cellglot.tokenization.ontology.cell_ontology import CellOntology
from cellglot.tokenization.ontology.terms import EXACT, CellTerm
from cellglot.tokenization.reading.labels import label_text
from cellglot.tokenization.reading.obs import plain_column, schema_names


# Of the released few-shot script; the name is the ontology's.
ANNOTATION_TEMPLATE = "cell type: {name}. {definition}; "

# The same for every aspect of a cell (our choice: the template of scLibrary was not released).
ASPECT_TEMPLATE = "{aspect}: {name}. {definition}; "

FIELDS = ("aspect", "name", "definition", "id", "synonyms", "parents")

# The eight aspects of scLibrary (Zhao et al. 2024) -> columns of the CELLxGENE schema; their values are joined.
ASPECTS: dict[str, tuple[str, ...]] = {
    "cell type": ("cell_type",),
    "development stage": ("development_stage",),
    "disease": ("disease",),
    "tissue": ("tissue",),
    "organ": ("organ",),
    "sex": ("sex",),
    "assay": ("assay", "suspension_type"),
    "ethnicity": ("self_reported_ethnicity",),
}

# Columns of the organ, which is not in the schema: Census calls it tissue_general.
ORGAN_COLUMNS = ("organ", "tissue_general")


def fill_template(template: str, fields: Mapping[str, Any]) -> str:
    """Fill in a template.

    A template is one of `str.format` with named fields: ``{name}``, ``{definition}``, ``{id}``, ``{synonyms}``
    (exact ones), ``{parents}``, ``{aspect}``. A field without a value (None or empty) is left out together with the
    text between it and the next field: ``"cell type: {name}. {definition}; "`` becomes ``"cell type: B cell. "``
    for a type without definition, as in the released script.
    """
    pieces: list[str] = []
    found, left_out = False, False
    for literal, name, plain in _parsed(template):
        if not left_out:
            pieces.append(literal)
        left_out = False
        if name is None:
            continue
        if name not in fields or not plain:
            known = ", ".join(f"{{{f}}}" for f in fields)
            raise ValueError(f"template {template!r}: {{{name}}} is not a field; use {known}, without formats")
        value = "" if fields[name] is None else str(fields[name]).strip()
        found, left_out = True, not value
        pieces.append(value)
    if not found:
        raise ValueError(f"template {template!r} has no field such as {{name}}: all texts would be the same")
    return "".join(pieces)


def _parsed(template: str) -> list[tuple[str, str | None, bool]]:
    """Return (literal, field after it, whether the field has neither format nor conversion)."""
    try:
        return [(text, name, not (spec or change)) for text, name, spec, change in Formatter().parse(template)]
    except ValueError as error:
        raise ValueError(f"template {template!r}: {error}; write a literal brace twice") from error


def term_fields(term: CellTerm, ontology: CellOntology, aspect: str = "cell type") -> dict[str, str]:
    """Return the fields of templates for a class of an ontology."""
    return {
        "aspect": aspect,
        "name": term.name,
        "definition": term.definition,
        "id": term.id,
        "synonyms": ", ".join(text for text, scope in term.synonyms if scope == EXACT),
        "parents": ", ".join(ontology.name(p) for p in term.parents),
    }


def describe_cell_types(
    cell_types: Sequence[str], ontology: CellOntology, template: str | Sequence[str] = ANNOTATION_TEMPLATE
) -> list[list[str]]:
    """Return the texts of cell types.

    Parameters
    ----------
    cell_types
        Ids.
    ontology
        The ontology of names and definitions.
    template
        One or several templates, see `fill_template`. By default the released one.

    Returns
    -------
    list of list of str
        Texts of each type, one for each template, without repeated and empty ones.

    Raises
    ------
    ValueError
        If there is no template or a template is invalid, all texts of a type are empty, or an id is unknown.
    """
    templates = [template] if isinstance(template, str) else list(template)
    if not templates:
        raise ValueError("no template is given")
    described = []
    for cell_type in cell_types:
        fields = term_fields(ontology.term(cell_type), ontology)
        texts = list(dict.fromkeys(fill_template(t, fields) for t in templates))
        texts = [text for text in texts if text.strip()]
        if not texts:
            raise ValueError(f"all texts of {cell_type} {fields['name']} are empty: {templates}")
        described.append(texts)
    return described


@dataclass
class CellDescriptions:
    """Texts of cells, for LangCellForPreTraining.

    Parameters
    ----------
    texts
        Different texts, in the order of their first cells.
    text_ids
        Text of each cell, -100 for cells without text, int64, shape (cells,).
    aspects
        Aspect -> number of cells that have it.
    defined
        Aspect -> number of cells with a definition of it.
    """

    texts: list[str]
    text_ids: np.ndarray
    aspects: dict[str, int] = field(default_factory=dict)
    defined: dict[str, int] = field(default_factory=dict)

    @property
    def without_text(self) -> int:
        """Number of cells without any aspect."""
        return int((self.text_ids < 0).sum())

    def of_cells(self) -> list[str | None]:
        """Return the text of each cell; None for cells without text."""
        return [None if i < 0 else self.texts[i] for i in self.text_ids]

    def summary(self) -> str:
        """Describe the number of texts and their aspects."""
        aspects = [f"{name} {n:,} ({self.defined[name]:,} defined)" for name, n in self.aspects.items() if n]
        lacking = [name for name, n in self.aspects.items() if not n]
        texts = f"{len(self.texts):,} different texts of {len(self.text_ids):,} cells"
        lines = [f"{texts}; cells by aspect: {', '.join(aspects) or 'none'}"]
        if lacking:
            lines.append(f"aspects that no cell has: {', '.join(lacking)}")
        if self.without_text:
            lines.append(f"{self.without_text:,} cells have no text")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.summary()


def describe_cells(
    metadata: pd.DataFrame,
    ontology: CellOntology | None = None,
    *,
    aspects: Sequence[str] = tuple(ASPECTS),
    template: str | Mapping[str, str] = ASPECT_TEMPLATE,
    ontologies: Mapping[str, CellOntology] | None = None,
) -> CellDescriptions:
    """Describe cells by their metadata.

    The aspects are those of scLibrary; the words around them are our choice. An aspect is left out if its value is
    missing or ``unknown``. A value that is in an ontology, by its id column or else by its name, is written with the
    ontology's name and definition.

    Parameters
    ----------
    metadata
        ``adata.obs``, or another table with a row for each cell and columns of the CELLxGENE schema or usual other
        names of these. The organ is in ``organ`` or ``tissue_general``.
    ontology
        Ontology of cell types.
    aspects
        Which of `ASPECTS` to use, in this order.
    template
        For every aspect, or aspect -> template; see `fill_template`. The texts of the aspects are joined.
    ontologies
        Aspect -> ontology of its values: ``{"tissue": CellOntology.from_file("uberon.obo", prefixes=("UBERON",))}``.

    Returns
    -------
    CellDescriptions
        Each different text once, and the text of each cell.

    Raises
    ------
    ValueError
        If an aspect is unknown or has no template, or a template is invalid.
    """
    unknown = [a for a in aspects if a not in ASPECTS]
    if unknown or not aspects:
        raise ValueError(f"aspect {unknown[0] if unknown else ()!r}: there are {', '.join(ASPECTS)}")
    templates = {a: template if isinstance(template, str) else template.get(a) for a in aspects}
    if not all(templates.values()):
        raise ValueError(f"aspect {next(a for a in aspects if not templates[a])!r} has no template")
    known = dict(ontologies or {}) | ({} if ontology is None else {"cell type": ontology})
    columns = {a: _aspect_columns(metadata, a) for a in aspects}
    parts, counts, defined = [], {}, {}
    for aspect in aspects:
        texts, numbers, has_definition = _aspect_texts(
            metadata, aspect, columns[aspect], str(templates[aspect]), known.get(aspect)
        )
        parts.append((texts, numbers))
        counts[aspect] = int((numbers >= 0).sum())
        defined[aspect] = int(has_definition[numbers].sum()) if len(has_definition) else 0
    texts, text_ids = _joined(parts, len(metadata))
    return CellDescriptions(texts, text_ids, counts, defined)


def _aspect_columns(metadata: pd.DataFrame, aspect: str) -> tuple[list[str], str | None]:
    """Find the columns of an aspect's values, and the column of their ids."""
    names = [str(c) for c in metadata.columns]
    found = schema_names(names)
    if aspect == "organ":
        own = next((c for c in ORGAN_COLUMNS if c in names and c != found.get("tissue")), None)
        ids = next((f"{c}_ontology_term_id" for c in ORGAN_COLUMNS if f"{c}_ontology_term_id" in names), None)
        return [own] if own else [], ids
    return [found[c] for c in ASPECTS[aspect] if c in found], found.get(f"{ASPECTS[aspect][0]}_ontology_term_id")


def _aspect_texts(
    metadata: pd.DataFrame,
    aspect: str,
    columns: tuple[list[str], str | None],
    template: str,
    ontology: CellOntology | None,
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return an aspect's different texts, the text of each cell (or -1), and whether each has a definition."""
    names, id_column = columns
    wanted = [*names, *([id_column] if id_column and ontology is not None else [])]
    none = np.full(len(metadata), -1, dtype=np.int64)
    if not wanted:
        return [], none, np.zeros(0, dtype=bool)
    values = pd.DataFrame({c: _texts(metadata[c]) for c in wanted})
    different = values.drop_duplicates(ignore_index=True)
    row = values.groupby(wanted, sort=False, dropna=False).ngroup().to_numpy()
    texts, defined = [], []
    for given in different.itertuples(index=False):
        fields = _aspect_fields(aspect, list(given)[: len(names)], list(given)[len(names) :], ontology)
        texts.append(fill_template(template, fields) if fields["name"] else "")
        defined.append(bool(fields["definition"]))
    has_text = np.array([bool(t) for t in texts])
    return texts, np.where(has_text[row], row, -1), np.array(defined)


def _aspect_fields(
    aspect: str, values: list[str], ids: list[str], ontology: CellOntology | None
) -> dict[str, str | None]:
    name = ", ".join(v for v in values if v)
    if ontology is not None:
        for label in (*ids, *values[:1]):
            cell_type = ontology.resolve([label]).cell_types[0]
            if cell_type is not None:
                fields: dict[str, str | None] = {**term_fields(ontology.term(cell_type), ontology, aspect)}
                more = [v for v in values[1:] if v]
                return fields | {"name": ", ".join([ontology.name(cell_type), *more])}
    return dict.fromkeys(FIELDS) | {"aspect": aspect, "name": name}


def _texts(values: pd.Series) -> np.ndarray:
    """Return a column as texts; missing values are empty."""
    codes, different = pd.factorize(plain_column(values))
    return np.array([*(label_text(v) or "" for v in different), ""], dtype=object)[codes]


def _joined(parts: Sequence[tuple[list[str], np.ndarray]], n_cells: int) -> tuple[list[str], np.ndarray]:
    """Join the texts of the aspects of each cell; return different texts, and the text of each cell or -100."""
    numbers = np.stack([n for _, n in parts], axis=1) if n_cells else np.zeros((0, len(parts)), dtype=np.int64)
    combinations, first, row = np.unique(numbers, axis=0, return_index=True, return_inverse=True)
    place: dict[str, int] = {}
    ids = np.zeros(len(combinations), dtype=np.int64)
    for i in np.argsort(first):
        pieces = [texts[n] for (texts, _), n in zip(parts, combinations[i], strict=True) if n >= 0]
        text = "".join(pieces)
        ids[i] = place.setdefault(text, len(place)) if text else -100
    return list(place), ids[row.reshape(-1)] if n_cells else np.zeros(0, dtype=np.int64)


__all__ = [
    "ANNOTATION_TEMPLATE",
    "ASPECTS",
    "ASPECT_TEMPLATE",
    "CellDescriptions",
    "describe_cell_types",
    "describe_cells",
    "fill_template",
    "term_fields",
]
