"""The Cell Ontology: classes of labels, ancestors, and the similarity of cell types."""

import copy
import difflib
import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cellglot.tokenization.ontology.labels import CellLabelMatch, LabelIndex, clean_label, resolve_labels
from cellglot.tokenization.ontology.parsing import read_ontology_file
from cellglot.tokenization.ontology.releases import fetch_release
from cellglot.tokenization.ontology.shipped import read_shipped
from cellglot.tokenization.ontology.similarity import pagerank_levels, personalised_pagerank
from cellglot.tokenization.ontology.terms import EXACT, CellOntologyError, CellTerm, parents_first


logger = logging.getLogger(__name__)

BLOOD_FILE = Path(__file__).with_name("blood_lineage.json")


@cache
def blood_definitions() -> dict[str, str]:
    """Return our own definitions of the cell types of blood, by id."""
    content = json.loads(BLOOD_FILE.read_text(encoding="utf-8"))
    return {i: t["description"] for i, t in content["terms"].items()}


@dataclass(frozen=True)
class CellTypeTables:
    """Similarities and ancestors of some cell types in the whole ontology, for scCello's objectives.

    Parameters
    ----------
    cell_types
        Ids, in the order of the rows and columns.
    names
        Names of these types.
    similarity
        Personalised PageRank, float64, shape (types, types).
    levels
        Levels of `similarity`, int64, shape (types, types).
    ancestor_mask
        Whether the second type is the first or an ancestor of it, bool, shape (types, types).
    """

    cell_types: list[str]
    names: list[str]
    similarity: np.ndarray
    levels: np.ndarray
    ancestor_mask: np.ndarray


class CellOntology:
    """Cell types and their `is_a` hierarchy.

    All methods accept an id as ``CL:0000236``, ``CL_0000236`` or an IRI.

    Parameters
    ----------
    terms
        Classes, including obsolete ones.
    release
        The ontology's version.
    checksum
        SHA-256 of the file.
    source
        Name of the file, for messages and metadata.
    added_synonyms
        Label -> id, for labels that are not in the ontology.
    left_out
        Number of `is_a` edges of the file that were left out, by reason.

    Raises
    ------
    CellOntologyError
        If `is_a` has a cycle or leads to an unknown class, or an added synonym names an unknown or obsolete class.

    Examples
    --------
    >>> ontology = CellOntology.blood()
    >>> ontology.resolve(["B cell", "CD14+ Monocyte"]).cell_types
    ['CL:0000236', 'CL:0001054']
    """

    def __init__(
        self,
        terms: Iterable[CellTerm],
        *,
        release: str = "",
        checksum: str = "",
        source: str = "",
        added_synonyms: Mapping[str, str] | None = None,
        left_out: Mapping[str, int] | None = None,
    ):
        self._terms = {t.id: t for t in sorted(terms, key=lambda t: t.id)}
        self._ordered = parents_first(self._terms)
        self.cell_types: list[str] = sorted(self._ordered)
        self.release = release
        self.checksum = checksum
        self.source = source
        self.left_out = dict(left_out or {})
        self._row = {t: i for i, t in enumerate(self.cell_types)}
        self._index = LabelIndex(self._terms, {})
        self.added_synonyms: dict[str, str] = {}
        if added_synonyms:
            self.added_synonyms = self._checked(added_synonyms)
            self._index = LabelIndex(self._terms, self.added_synonyms)

    # ---------------------------------------------------------------- making ontologies

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike,
        *,
        prefixes: Sequence[str] = ("CL",),
        cache_folder: str | os.PathLike | None = None,
    ) -> "CellOntology":
        """Read an ontology from a file; the parsed ontology is cached by the file's checksum.

        Cell types are the classes whose ids have one of the prefixes. Only `is_a` is read; edges to classes of other
        ontologies and to obsolete classes are left out and counted in `left_out`.

        Parameters
        ----------
        path
            OBO, or OWL in RDF/XML, plain or gzip-compressed.
        prefixes
            Prefixes of ids of cell types. Add yours if the file has cell types of your own: ``("CL", "MYLAB")``.
        cache_folder
            Folder of the cache; None for the assets cache of huggingface_hub (``HF_ASSETS_CACHE``).

        Raises
        ------
        CellOntologyError
            If the file is cut short, is not an ontology, or defines no such class, or `is_a` has a cycle or leads to
            an undefined class with these prefixes.
        """
        content = read_ontology_file(path, prefixes, cache_folder)
        if content.left_out.get("is_a an obsolete class"):
            logger.warning("%s: is_a edges left out: %s", path, content.left_out)
        return cls(
            content.terms.values(),
            release=content.release,
            checksum=content.checksum,
            source=Path(path).name,
            left_out=content.left_out,
        )

    @classmethod
    def from_release(cls, release: str, *, cache_folder: str | os.PathLike | None = None) -> "CellOntology":
        """Read a release of the Cell Ontology; it is downloaded from the OBO Foundry the first time.

        Parameters
        ----------
        release
            Its date: ``"2024-04-05"``.
        cache_folder
            Folder for the file and its cache; None for the assets cache of huggingface_hub.

        Raises
        ------
        CellOntologyError
            If it cannot be downloaded; the message says what to do without a network.
        """
        return cls.from_file(fetch_release(release, cache_folder), cache_folder=cache_folder)

    @classmethod
    def shipped(cls, *, definitions: Mapping[str, str] | None = None) -> "CellOntology":
        """Return the Cell Ontology that comes with the package: all its cell types, without a download.

        Ids, names, synonyms and `is_a` are those of release 2024-04-05 (CC BY 4.0). Definitions are our own, of the
        cell types of blood alone; the ontology's come from a file (`from_file`), or from
        `cellglot.tokenization.ontology.releases.guide_definitions`.

        Parameters
        ----------
        definitions
            Id -> definition, in place of our own.
        """
        content = read_shipped()
        texts = blood_definitions() if definitions is None else definitions
        terms = [replace(t, definition=texts[t.id]) if t.id in texts else t for t in content.terms.values()]
        return cls(terms, release=content.release, checksum=content.checksum, source="cellglot's Cell Ontology")

    @classmethod
    def blood(cls) -> "CellOntology":
        """Return a small table of the blood lineage, which is part of the package.

        It has about 70 classes of the Cell Ontology, release 2024-04-05: the usual cell types of blood, fibroblast,
        endothelial cell, and all ancestors of these. Ids, names, `is_a` and exact synonyms are the ontology's;
        definitions are ours. Similarities are computed on this small graph and differ from those of the whole one.
        """
        content = json.loads(BLOOD_FILE.read_text(encoding="utf-8"))
        terms = [
            CellTerm(
                id=i,
                name=t["name"],
                parents=tuple(t["is_a"]),
                definition=t["description"],
                synonyms=tuple((s, EXACT) for s in t["exact_synonyms"]),
            )
            for i, t in content["terms"].items()
        ]
        return cls(
            terms,
            release=content["release"],
            checksum=hashlib.sha256(BLOOD_FILE.read_bytes()).hexdigest(),
            source=f"cellglot's {BLOOD_FILE.name}",
        )

    def with_synonyms(self, synonyms: Mapping[str, str]) -> "CellOntology":
        """Return a copy of the ontology with additional labels.

        Parameters
        ----------
        synonyms
            Label -> id, searched after ids and names and before exact synonyms; they replace earlier added ones.

        Raises
        ------
        CellOntologyError
            If an id is unknown or obsolete, or two spellings of a label have different classes.
        """
        other = copy.copy(self)
        other.added_synonyms = self.added_synonyms | self._checked(synonyms)
        other._index = LabelIndex(self._terms, other.added_synonyms)
        return other

    def _checked(self, synonyms: Mapping[str, str]) -> dict[str, str]:
        ids = self.ids(synonyms.values()) if synonyms else []
        checked: dict[str, str] = {}
        for label, i in zip(synonyms, ids, strict=True):
            if checked.setdefault(clean_label(label), i) != i:
                raise CellOntologyError(
                    f"the label {label!r} has two classes, {checked[clean_label(label)]} and {i}: keep one"
                )
        return checked

    # ---------------------------------------------------------------- classes

    def __len__(self) -> int:
        return len(self.cell_types)

    def __contains__(self, cell_type: object) -> bool:
        return isinstance(cell_type, str) and self._index.id_of(cell_type) in self._row

    def __repr__(self) -> str:
        return (
            f"CellOntology({len(self):,} cell types, {len(self._edges):,} is_a edges, "
            f"{len(self._terms) - len(self):,} obsolete, release {self.release or 'unknown'}, from {self.source!r})"
        )

    @property
    def metadata(self) -> dict[str, Any]:
        """Source, release, checksum and sizes as plain types, for a model's metadata."""
        return {
            "source": self.source,
            "release": self.release,
            "sha256": self.checksum,
            "cell_types": len(self),
            "is_a_edges": len(self._edges),
        }

    def term(self, cell_type: str) -> CellTerm:
        """Return a class.

        Raises
        ------
        CellOntologyError
            If the id is unknown or obsolete; the message suggests another. All methods that take ids raise it.
        """
        return self._terms[self.ids([cell_type])[0]]

    def name(self, cell_type: str) -> str:
        """Return the name: ``"B cell"``."""
        return self.term(cell_type).name

    def definition(self, cell_type: str) -> str:
        """Return the definition; empty if there is none."""
        return self.term(cell_type).definition

    def synonyms(self, cell_type: str, scope: str | None = None) -> list[str]:
        """Return the ontology's synonyms, sorted: all, or those of a scope (``"EXACT"``); not the added ones."""
        return [s for s, own in self.term(cell_type).synonyms if scope is None or own == scope.upper()]

    def parents(self, cell_type: str) -> list[str]:
        """Return the parents by `is_a`, sorted."""
        return list(self.term(cell_type).parents)

    def ids(self, cell_types: Iterable[str]) -> list[str]:
        """Check ids and write them as ``CL:0000236``.

        Raises
        ------
        CellOntologyError
            If the list is empty, or an id is unknown or obsolete.
        TypeError
            If `cell_types` is a text.
        """
        if isinstance(cell_types, str):
            raise TypeError(f"cell types are given as the text {cell_types!r}: pass a list of ids")
        given = list(cell_types)
        if not given:
            raise CellOntologyError("the list of cell types is empty; resolve().report lists labels without one")
        ids = [self._index.id_of(t) if isinstance(t, str) else None for t in given]
        unknown = sorted({repr(t): t for t, i in zip(given, ids, strict=True) if i not in self._row}.items())
        if unknown:
            more = f" (and {len(unknown) - 1:,} more)" if len(unknown) > 1 else ""
            raise CellOntologyError(f"{unknown[0][0]} is not a known cell type{more}: {self._advice(unknown[0][1])}")
        return [i for i in ids if i is not None]

    def _advice(self, given: Any) -> str:
        if not isinstance(given, str):
            return "ids are texts such as 'CL:0000236'"
        finding = self._index.find(given)
        if finding.rule == "replaced_by":
            return f"it is obsolete, replaced by {self._terms[finding.cell_type or '']}"
        if finding.consider is not None:
            return f"it is obsolete without replacement; the ontology suggests {', '.join(finding.consider) or 'none'}"
        if finding.cell_type is not None:
            return f"it is a label of {self._terms[finding.cell_type]}: pass the id, which resolve(labels) finds"
        by_id = difflib.get_close_matches(given.upper().replace("_", ":"), self.cell_types, n=3, cutoff=0.8)
        names = {clean_label(self._terms[t].name): t for t in self.cell_types}
        by_name = [names[n] for n in difflib.get_close_matches(clean_label(given), names, n=3, cutoff=0.6)]
        close = ", ".join(str(self._terms[t]) for t in (by_id or by_name))
        return f"similar are {close}" if close else f"none of {len(self):,} cell types of {self.source} is similar"

    # ---------------------------------------------------------------- labels

    def resolve(self, labels: Iterable[Any]) -> CellLabelMatch:
        """Find the classes of labels.

        A label is looked up as an id (``CL:0000236``, ``CL_0000236``, IRI), then as a name, added synonym, exact
        synonym, plural of one of these, shorthand (``CD14+ Mono``), other synonym, and name of an obsolete class.
        Case, underscores and repeated blanks make no difference. An obsolete class is followed to the class that
        replaces it (*replaced by*); *consider* is reported but not followed. A label of several classes by the same
        rule is ambiguous and gets no class.

        Parameters
        ----------
        labels
            A text for each cell; None, NaN and blanks count as missing. Or, for many cells, a Counter of texts:
            the result then has each text once.

        Returns
        -------
        CellLabelMatch
            ``cell_types`` (id or None per label), ``rules``, ``report``.
        """
        return resolve_labels(self._index, labels)

    # ---------------------------------------------------------------- hierarchy

    @cached_property
    def _ancestors(self) -> dict[str, frozenset[str]]:
        found: dict[str, frozenset[str]] = {}
        for i in self._ordered:
            parents = self._terms[i].parents
            found[i] = frozenset(parents).union(*(found[p] for p in parents))
        return found

    @cached_property
    def _descendant_counts(self) -> Counter[str]:
        return Counter(a for ancestors in self._ancestors.values() for a in ancestors)

    @cached_property
    def _edges(self) -> np.ndarray:
        pairs = [(self._row[i], self._row[p]) for i in self.cell_types for p in self._terms[i].parents]
        return np.array(pairs, dtype=np.int64).reshape(-1, 2)

    def ancestors(self, cell_type: str) -> set[str]:
        """Return all ancestors of a class, without itself."""
        return set(self._ancestors[self.term(cell_type).id])

    def descendants(self, cell_type: str) -> set[str]:
        """Return all descendants of a class, without itself."""
        own = self.term(cell_type).id
        return {i for i, ancestors in self._ancestors.items() if own in ancestors}

    def lowest_common_ancestors(self, first: str, second: str) -> list[str]:
        """Return the lowest common ancestors, the most informative first.

        A class is its own ancestor here. The order is by number of descendants, fewest first (the information
        content of Resnik 1995, counted over classes), then by id; this is our choice.

        Returns
        -------
        list of str
            Ids; empty if there is no common ancestor.
        """
        a, b = self.ids([first, second])
        common = (self._ancestors[a] | {a}) & (self._ancestors[b] | {b})
        above = frozenset().union(*(self._ancestors[c] for c in common))
        return sorted(common - above, key=lambda c: (self._descendant_counts[c], c))

    def lowest_common_ancestor(self, first: str, second: str) -> str | None:
        """Return the first of `lowest_common_ancestors`, or None."""
        return next(iter(self.lowest_common_ancestors(first, second)), None)

    # ---------------------------------------------------------------- tables

    def ancestor_mask(self, cell_types: Sequence[str]) -> np.ndarray:
        """Return whether the second type is the first or an ancestor of it, bool, shape (types, types)."""
        ids = self.ids(cell_types)
        columns: dict[str, list[int]] = {}
        for column, i in enumerate(ids):
            columns.setdefault(i, []).append(column)
        mask = np.zeros((len(ids), len(ids)), dtype=bool)
        for row, i in enumerate(ids):
            for above in (i, *self._ancestors[i]):
                mask[row, columns.get(above, [])] = True
        return mask

    def similarity(self, cell_types: Sequence[str]) -> np.ndarray:
        """Return the similarity of types: personalised PageRank on the whole ontology, with undirected `is_a`.

        Source: scCello (Yuan et al. 2024, arXiv 2408.12373), alpha 0.9, but solved exactly.

        Returns
        -------
        numpy.ndarray
            PageRank of type j with restarts at type i in row i, column j; float64, shape (types, types). It is not
            symmetric: types with many neighbours have larger values.
        """
        rows = [self._row[i] for i in self.ids(cell_types)]
        return personalised_pagerank(len(self), self._edges, rows)[:, rows]

    def similarity_levels(self, cell_types: Sequence[str]) -> np.ndarray:
        """Return the `pagerank_levels` of `similarity`, int64, shape (types, types)."""
        return pagerank_levels(self.similarity(cell_types))

    def restrict(self, cell_types: Iterable[str]) -> CellTypeTables:
        """Return the tables of the types of a corpus.

        Parameters
        ----------
        cell_types
            Ids in any order, maybe repeated: ``ontology.resolve(labels).found_types``.

        Returns
        -------
        CellTypeTables
            Computed on the whole ontology; types are sorted by id.
        """
        ids = sorted(set(self.ids(cell_types)))
        similarity = self.similarity(ids)
        names = [self._terms[i].name for i in ids]
        return CellTypeTables(ids, names, similarity, pagerank_levels(similarity), self.ancestor_mask(ids))


__all__ = ["CellOntology", "CellOntologyError", "CellTypeTables"]
