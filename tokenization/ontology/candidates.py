"""Candidates of zero-shot annotation: classes of cells with their texts, from labels or a branch of the ontology."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cellglot.inputs import read_json, read_text
from cellglot.lists import split_list
from cellglot.tokenization.ontology.cell_ontology import CellOntology
from cellglot.tokenization.ontology.descriptions import ANNOTATION_TEMPLATE, describe_cell_types
from cellglot.tokenization.ontology.labels import CellLabelReport, clean_label
from cellglot.tokenization.ontology.terms import CellOntologyError


Labels = Sequence[str] | Mapping[str, str | Sequence[str]]

_LISTED = 10


@dataclass
class CandidateReport:
    """What became of the candidates.

    Parameters
    ----------
    from_branch
        Classes that a branch of the ontology added.
    duplicates
        (candidate, the class that it repeats).
    own_text
        Candidates that are no cell type of the ontology and stand for themselves.
    ambiguous
        Those of them whose label stands for several cell types.
    labels
        How labels were found in the ontology.
    """

    given: int = 0
    from_branch: int = 0
    duplicates: list[tuple[str, str]] = field(default_factory=list)
    own_text: list[str] = field(default_factory=list)
    ambiguous: list[str] = field(default_factory=list)
    labels: CellLabelReport | None = None

    def summary(self) -> str:
        """Say how many classes are asked, what was repeated, and what the ontology does not know."""
        classes = self.given + self.from_branch - len(self.duplicates)
        origin = f"{self.given:,} given" + (f", {self.from_branch:,} of the branch" if self.from_branch else "")
        lines = [f"{classes:,} candidates ({origin})"]
        if self.duplicates:
            listed = [label if label == name else f"{label!r} is {name!r}" for label, name in self.duplicates]
            lines.append(f"{len(self.duplicates):,} duplicates are asked once: {_listed(listed)}")
        if self.own_text:
            lines.append(
                f"{len(self.own_text):,} candidates are no cell type of the ontology and stand for themselves: "
                f"{_listed(self.own_text)}" + (f"; ambiguous: {_listed(self.ambiguous)}" if self.ambiguous else "")
            )
        if self.labels is not None and (self.labels.not_exact or self.labels.replaced):
            lines += [x for x in self.labels.summary().split("\n") if "not exact" in x or "replaced" in x]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.summary()


@dataclass
class Candidates:
    """Classes between which cells are annotated.

    Parameters
    ----------
    names
        Name of each class: the ontology's, or the candidate itself.
    cell_types
        Id of each class, None where it is no cell type of the ontology.
    texts
        Texts of each class, one or more.
    report
        What became of what was given.
    ontology
        Where the ids come from.
    """

    names: list[str]
    cell_types: list[str | None]
    texts: list[list[str]]
    report: CandidateReport = field(default_factory=CandidateReport)
    ontology: CellOntology | None = None

    def __len__(self) -> int:
        """Return the number of classes."""
        return len(self.names)

    def class_of(self, labels: Iterable[str | None]) -> dict[str, int]:
        """Find the class of each different label, by name, id or synonym; labels without one are left out."""
        by_name = {clean_label(n): i for i, n in enumerate(self.names)}
        by_type = {t: i for i, t in enumerate(self.cell_types) if t is not None}
        found = {}
        for label in {str(x) for x in labels if x is not None and str(x).strip()}:
            row = by_name.get(clean_label(label))
            if row is None and self.ontology is not None:
                row = by_type.get(self.ontology.resolve([label]).cell_types[0] or "")
            if row is not None:
                found[label] = row
        return found


def make_candidates(
    candidates: Labels | None = None,
    ontology: CellOntology | None = None,
    *,
    branch: str | None = None,
    leaves_only: bool = False,
    among: Iterable[str] | None = None,
    template: str | Sequence[str] = ANNOTATION_TEMPLATE,
) -> Candidates:
    """Make classes and their texts.

    Parameters
    ----------
    candidates
        Names, ids or synonyms of cell types; one that the ontology does not know is its own text. Or class -> text or
        texts, which are taken as they are. Those that mean one class are that class once; its texts are collected.
    ontology
        Where candidates are looked up; without it each is its own text.
    branch
        Cell type whose descendants are candidates, itself not among them. Further `candidates` then have to be cell
        types, too.
    leaves_only
        Of the branch only types without subtypes in the ontology; with `among`, without subtypes among those.
    among
        Labels of a corpus: of the branch only the types that they stand for.
    template
        For texts of cell types, as for `describe_cell_types`.

    Returns
    -------
    Candidates
        Classes in the order given, those of the branch (by id) behind them.

    Raises
    ------
    ValueError
        If there are no candidates, one or its text is empty, a branch is asked without ontology, or it has no types.
    CellOntologyError
        If the branch, or with a branch a candidate, is no cell type.
    TypeError
        If `candidates` is one text.
    """
    if isinstance(candidates, str):
        raise TypeError(f"candidates are given as the text {candidates!r}: pass a list of names")
    if branch is None and (leaves_only or among is not None):
        raise ValueError("leaves_only and among choose types of a branch, and none is given")
    given = list(candidates or ())
    if not given and branch is None:
        raise ValueError("no candidates: name at least one cell type, or a branch of the ontology")
    _check_labels(given)
    made = Candidates([], [], [], CandidateReport(given=len(given)), ontology)
    types = _resolved(given, ontology, branch, made.report)
    own = candidates if isinstance(candidates, Mapping) else {}
    for label, cell_type in zip(given, types, strict=True):
        texts = _given_texts(label, own[label]) if label in own else _texts(label, cell_type, ontology, template)
        _add(made, label, cell_type, texts)
    if branch is not None:
        for cell_type in _branch_types(ontology, branch, leaves_only, among):
            if cell_type not in made.cell_types:
                _add(made, cell_type, cell_type, _texts(cell_type, cell_type, ontology, template))
                made.report.from_branch += 1
    return made


def _check_labels(given: Sequence[str]) -> None:
    for number, label in enumerate(given, 1):
        if not isinstance(label, str) or not label.strip():
            raise ValueError(f"candidate {number} of {len(given):,} is empty: {label!r}")


def _resolved(
    given: Sequence[str], ontology: CellOntology | None, branch: str | None, report: CandidateReport
) -> list[str | None]:
    if ontology is None:
        if branch is not None:
            raise ValueError(f"the branch {branch!r} is one of an ontology, and none is given")
        return [None] * len(given)
    if not given:
        return []
    found = ontology.resolve(given)
    report.labels = found.report
    report.ambiguous = list(found.report.ambiguous)
    for label, cell_type in zip(given, found.cell_types, strict=True):
        if cell_type is None and branch is not None:
            if label in found.report.ambiguous:
                choices = " or ".join(found.report.ambiguous[label])
                raise CellOntologyError(f"candidate {label!r} stands for {choices}: pass the id that is meant")
            ontology.ids([label])
    return found.cell_types


def _add(made: Candidates, label: str, cell_type: str | None, texts: list[str]) -> None:
    """Add a class, or its further texts to the class that is already there."""
    key = cell_type or clean_label(label)
    known = [t or clean_label(n) for t, n in zip(made.cell_types, made.names, strict=True)]
    if key in known:
        row = known.index(key)
        made.report.duplicates.append((label, made.names[row]))
        made.texts[row] = list(dict.fromkeys([*made.texts[row], *texts]))
        return
    if cell_type is None:
        made.report.own_text.append(label)
    made.names.append(label.strip() if cell_type is None or made.ontology is None else made.ontology.name(cell_type))
    made.cell_types.append(cell_type)
    made.texts.append(texts)


def _texts(
    label: str, cell_type: str | None, ontology: CellOntology | None, template: str | Sequence[str]
) -> list[str]:
    if cell_type is None or ontology is None:
        return [label.strip()]
    return describe_cell_types([cell_type], ontology, template)[0]


def _given_texts(label: str, given: str | Sequence[str]) -> list[str]:
    texts = [given] if isinstance(given, str) else list(given)
    if not texts or not all(isinstance(t, str) and t.strip() for t in texts):
        raise ValueError(f"candidate {label!r} has an empty text: {given!r}. Every class needs a description")
    return list(dict.fromkeys(texts))


def _branch_types(
    ontology: CellOntology | None, branch: str, leaves_only: bool, among: Iterable[str] | None
) -> list[str]:
    assert ontology is not None
    root = ontology.resolve([branch]).cell_types[0]
    if root is None:
        root = ontology.ids([branch])[0]
    types = ontology.descendants(root)
    if among is not None:
        found = ontology.resolve(list(among))
        types &= set(found.found_types)
    if leaves_only:
        types -= {a for t in types for a in ontology.ancestors(t)}
    if not types:
        where = " among the labels given" if among is not None else ""
        raise ValueError(f"no cell type lies below {ontology.term(root)}{where}: there are no candidates")
    return sorted(types)


def split_candidates(text: str, ontology: CellOntology | None = None) -> list[str]:
    """Split candidates at commas; a comma inside a cell type's name, or in double quotes, does not split it.

    Of adjacent pieces the longest run that the ontology knows is one candidate: ``"B cell, CD4-positive, alpha-beta T
    cell"`` gives two.

    Parameters
    ----------
    ontology
        Where names are looked up.
    """
    pieces, found, start = split_list(text), [], 0
    while start < len(pieces):
        stop = start + 1
        for end in range(len(pieces), start + 1, -1) if ontology is not None else ():
            if ontology is not None and ontology.resolve([",".join(pieces[start:end])]).cell_types[0] is not None:
                stop = end
                break
        found.append(",".join(pieces[start:stop]).strip())
        start = stop
    return found


def read_candidates(path: str | Path) -> Labels:
    """Read candidates from a file: ``.json`` with a list, or with class -> text or texts; else one a line."""
    if Path(path).suffix != ".json":
        return [line.strip() for line in read_text(path).splitlines() if line.strip()]
    given = read_json(path, kind=None)
    if not isinstance(given, list | dict):
        raise ValueError(f"{path} holds neither a list of candidates nor class -> text or texts")
    if isinstance(given, dict):
        for label, texts in given.items():
            if not isinstance(texts, str | list):
                raise ValueError(f"{path}: the text of {label!r} is {texts!r}: a text or a list of texts is wanted")
    return given


def _listed(items: Sequence[str]) -> str:
    more = f" and {len(items) - _LISTED:,} more" if len(items) > _LISTED else ""
    return ", ".join(items[:_LISTED]) + more


__all__ = [
    "CandidateReport",
    "Candidates",
    "make_candidates",
    "read_candidates",
    "split_candidates",
]
