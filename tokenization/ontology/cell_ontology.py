"""The Cell Ontology: labels to classes, ancestors, and how near cell types are to each other."""

import copy
import difflib
import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cellglot.tokenization.ontology.labels import CellLabelMatch, LabelIndex, clean_label, resolve_labels
from cellglot.tokenization.ontology.parsing import read_ontology_file
from cellglot.tokenization.ontology.releases import fetch_release
from cellglot.tokenization.ontology.similarity import pagerank_levels, personalised_pagerank
from cellglot.tokenization.ontology.terms import EXACT, CellOntologyError, CellTerm, parents_first


logger = logging.getLogger(__name__)

BLOOD_FILE = Path(__file__).with_name("blood_lineage.json")


@dataclass(frozen=True)
class CellTypeTables:
    """The geometry of some cell types, computed on the whole ontology: what scCello's objectives read.

    Parameters
    ----------
    cell_types
        Ids, in the order of the rows and columns.
    names
        Their names.
    similarity
        Personalised PageRank, float64, shape (types, types).
    levels
        Levels of `similarity`, int64, shape (types, types).
    ancestor_mask
        Whether the second type is an ancestor of the first or itself, bool, shape (types, types).
    """

    cell_types: list[str]
    names: list[str]
    similarity: np.ndarray
    levels: np.ndarray
    ancestor_mask: np.ndarray


class CellOntology:
    """Cell types tied by `is_a`.

    Wherever an id is wanted, ``CL:0000236``, ``CL_0000236`` and the IRI will do.

    Parameters
    ----------
    terms
        Classes, obsolete ones included.
    release
        The ontology's version.
    checksum
        SHA-256 of the file.
    source
        Where the ontology comes from.
    added_synonyms
        Label -> id, for labels that the ontology does not know.
    left_out
        `is_a` edges of the file that are not kept, by reason.

    Raises
    ------
    CellOntologyError
        If `is_a` runs in a circle or to a class that is not there, or an added synonym stands for no live class.

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
        """Read an ontology from a file; what was read is kept by the file's checksum.

        Cell types are the classes whose ids have one of the prefixes. They are tied by `is_a` alone; edges to classes
        of other ontologies and to obsolete classes are left out and counted in `left_out`.

        Parameters
        ----------
        path
            OBO, or OWL in RDF/XML, plain or gzip-compressed.
        prefixes
            Prefixes of ids; name yours, too, where you add cell types of your own: ``("CL", "MYLAB")``.
        cache_folder
            Where to keep what was read; None for the assets cache of huggingface_hub (``HF_ASSETS_CACHE``).

        Raises
        ------
        CellOntologyError
            If the file is cut off or no ontology, defines no such class, or `is_a` runs in a circle or to a class
            with these prefixes that the file does not define.
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
        """Fetch a release of the Cell Ontology from the OBO Foundry, the first time only.

        Parameters
        ----------
        release
            Its date: ``"2024-04-05"``.
        cache_folder
            Where to keep the file and what was read; None for the assets cache of huggingface_hub.

        Raises
        ------
        CellOntologyError
            If it is not there yet and cannot be fetched; the message says what to do without a network.
        """
        return cls.from_file(fetch_release(release, cache_folder), cache_folder=cache_folder)

    @classmethod
    def blood(cls) -> "CellOntology":
        """Return a small table of the blood lineage, which comes with the package.

        Some 70 classes of the Cell Ontology, release 2024-04-05: the usual cell types of blood, fibroblast and
        endothelial cell, and all their ancestors. Ids, names, `is_a` and exact synonyms are the ontology's.
        Definitions are our own. Its similarities are those of this small graph, not of the whole ontology.
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
        """Return the same ontology with further labels.

        Parameters
        ----------
        synonyms
            Label -> id, before exact synonyms and behind ids and names; later ones replace earlier ones.

        Raises
        ------
        CellOntologyError
            If an id is not in the ontology, or obsolete, or two spellings of one label get two classes.
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
                    f"the label {label!r} is given two classes, {checked[clean_label(label)]} and {i}"
                )
        return checked

    # ---------------------------------------------------------------- what stands in it

    def __len__(self) -> int:
        """Return the number of live classes."""
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
        """Return a live class.

        Raises
        ------
        CellOntologyError
            If the id is unknown or obsolete; the message gives what comes close or replaces it. So do all methods that
            take ids.
        """
        return self._terms[self.ids([cell_type])[0]]

    def name(self, cell_type: str) -> str:
        """Return the name: ``"B cell"``."""
        return self.term(cell_type).name

    def definition(self, cell_type: str) -> str:
        """Return the text definition, empty where it has none."""
        return self.term(cell_type).definition

    def synonyms(self, cell_type: str, scope: str | None = None) -> list[str]:
        """Return the ontology's synonyms, sorted: all, or those of a scope (``"EXACT"``); added ones are not here."""
        return [s for s, own in self.term(cell_type).synonyms if scope is None or own == scope.upper()]

    def parents(self, cell_type: str) -> list[str]:
        """Return the classes that it is tied to by `is_a`, sorted."""
        return list(self.term(cell_type).parents)

    def ids(self, cell_types: Iterable[str]) -> list[str]:
        """Check ids and write them as ``CL:0000236``.

        Raises
        ------
        CellOntologyError
            If there are none, or one is unknown or obsolete.
        TypeError
            If `cell_types` is one text.
        """
        if isinstance(cell_types, str):
            raise TypeError(f"cell types are given as the text {cell_types!r}: pass a list of ids")
        given = list(cell_types)
        if not given:
            raise CellOntologyError(
                "no cell types are given; labels without a cell type are listed by resolve().report"
            )
        ids = [self._index.id_of(t) if isinstance(t, str) else None for t in given]
        unknown = sorted({repr(t): t for t, i in zip(given, ids, strict=True) if i not in self._row}.items())
        if unknown:
            more = f" (and {len(unknown) - 1:,} more)" if len(unknown) > 1 else ""
            raise CellOntologyError(f"{unknown[0][0]} is no cell type here{more}: {self._advice(unknown[0][1])}")
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
            return f"it is a label of {self._terms[finding.cell_type]}: pass ids, which resolve(labels) finds"
        by_id = difflib.get_close_matches(given.upper().replace("_", ":"), self.cell_types, n=3, cutoff=0.8)
        names = {clean_label(self._terms[t].name): t for t in self.cell_types}
        by_name = [names[n] for n in difflib.get_close_matches(clean_label(given), names, n=3, cutoff=0.6)]
        close = ", ".join(str(self._terms[t]) for t in (by_id or by_name))
        return (
            f"close to it are {close}"
            if close
            else f"nothing among {len(self):,} cell types of {self.source} is close"
        )

    # ---------------------------------------------------------------- labels

    def resolve(self, labels: Iterable[Any]) -> CellLabelMatch:
        """Find the classes that labels stand for.

        A label is looked up as an id (``CL:0000236``, ``CL_0000236``, IRI), then as a name, added synonym, exact
        synonym, plural of one of these, shorthand (``CD14+ Mono``), other synonym, and name of an obsolete class.
        Case, underscores and runs of blanks make no difference. Obsolete classes are followed through *replaced by*.
        A label that stands for several classes by the same rule is ambiguous and gets none; *consider* is reported
        and never followed.

        Parameters
        ----------
        labels
            Text, one per cell; None, NaN and blanks count as missing. Or a Counter of texts, where there are many
            cells: the result then holds each different one once.

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
        """Return all classes above one, without itself."""
        return set(self._ancestors[self.term(cell_type).id])

    def descendants(self, cell_type: str) -> set[str]:
        """Return all classes below one, without itself."""
        own = self.term(cell_type).id
        return {i for i, ancestors in self._ancestors.items() if own in ancestors}

    def lowest_common_ancestors(self, first: str, second: str) -> list[str]:
        """Return the common ancestors that have no common ancestor below them, the most informative first.

        A class counts as its own ancestor. The order is by number of descendants, fewest first (the information
        content of Resnik 1995, counted over classes), then by id: our choice.

        Returns
        -------
        list of str
            Ids, empty where the two have nothing in common.
        """
        a, b = self.ids([first, second])
        common = (self._ancestors[a] | {a}) & (self._ancestors[b] | {b})
        above = frozenset().union(*(self._ancestors[c] for c in common))
        return sorted(common - above, key=lambda c: (self._descendant_counts[c], c))

    def lowest_common_ancestor(self, first: str, second: str) -> str | None:
        """Return the first of `lowest_common_ancestors`, the one with the fewest descendants, or None."""
        return next(iter(self.lowest_common_ancestors(first, second)), None)

    # ---------------------------------------------------------------- geometry

    def ancestor_mask(self, cell_types: Sequence[str]) -> np.ndarray:
        """Tell which types are ancestors of which.

        Parameters
        ----------
        cell_types
            Ids.

        Returns
        -------
        numpy.ndarray
            Whether the second type is an ancestor of the first or itself, bool, shape (types, types).
        """
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
        """Return how near types are: the personalised PageRank on the whole ontology, `is_a` taken without direction.

        Source: scCello (Yuan et al. 2024, arXiv 2408.12373), alpha 0.9, solved to the limit rather than stopped early.

        Parameters
        ----------
        cell_types
            Ids.

        Returns
        -------
        numpy.ndarray
            In row i, column j the PageRank of type j with restarts at type i; float64, shape (types, types). It is not
            symmetric: a type with many neighbours collects more.
        """
        rows = [self._row[i] for i in self.ids(cell_types)]
        return personalised_pagerank(len(self), self._edges, rows)[:, rows]

    def similarity_levels(self, cell_types: Sequence[str]) -> np.ndarray:
        """Return `similarity` in whole numbers: 1 below 1e-4, else the whole part of log2(similarity / 1e-4 + 1).

        Parameters
        ----------
        cell_types
            Ids.

        Returns
        -------
        numpy.ndarray
            Levels, int64, shape (types, types).
        """
        return pagerank_levels(self.similarity(cell_types))

    def restrict(self, cell_types: Iterable[str]) -> CellTypeTables:
        """Return the tables of the types of a corpus.

        Parameters
        ----------
        cell_types
            Ids in any order, repeated or not: ``ontology.resolve(labels).found_types``.

        Returns
        -------
        CellTypeTables
            Rows and columns of the whole ontology's tables, types sorted by id.
        """
        ids = sorted(set(self.ids(cell_types)))
        similarity = self.similarity(ids)
        names = [self._terms[i].name for i in ids]
        return CellTypeTables(ids, names, similarity, pagerank_levels(similarity), self.ancestor_mask(ids))


__all__ = ["CellOntology", "CellOntologyError", "CellTypeTables"]
