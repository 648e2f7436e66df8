"""Candidates of zero-shot annotation: cell types with their texts, from labels or a branch of the ontology."""

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

NO_COMMAS = (None, "shorthand")  # rules of labels: shorthand ignores commas
_LISTED = 10


@dataclass
class CandidateReport:
    """How candidates became classes.

    Parameters
    ----------
    given
        Number of given candidates.
    from_branch
        Number of classes from a branch of the ontology.
    duplicates
        (candidate, class that it repeats).
    own_text
        Candidates that are not in the ontology: their text is the candidate itself.
    ambiguous
        Those of them that are labels of several cell types.
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
        """Describe the number of classes, repeated candidates, and those that are not in the ontology."""
        classes = self.given + self.from_branch - len(self.duplicates)
        origin = f"{self.given:,} given" + (f", {self.from_branch:,} of the branch" if self.from_branch else "")
        lines = [f"{classes:,} candidates ({origin})"]
        if self.duplicates:
            listed = [label if label == name else f"{label!r} is {name!r}" for label, name in self.duplicates]
            lines.append(f"{len(self.duplicates):,} duplicates are used once: {_listed(listed)}")
        if self.own_text:
            lines.append(
                f"{len(self.own_text):,} candidates are not in the ontology and are their own text: "
                f"{_listed(self.own_text)}" + (f"; ambiguous: {_listed(self.ambiguous)}" if self.ambiguous else "")
            )
        if self.labels is not None and (self.labels.not_exact or self.labels.replaced):
            lines += [x for x in self.labels.summary().split("\n") if "not exact" in x or "replaced" in x]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.summary()


@dataclass
class Candidates:
    """Classes for annotation.

    Parameters
    ----------
    names
        Name of each class: the ontology's, or the candidate itself.
    cell_types
        Id of each class; None if it is not in the ontology.
    texts
        Texts of each class, one or more.
    report
        How candidates became classes.
    ontology
        The ontology of the ids.
    """

    names: list[str]
    cell_types: list[str | None]
    texts: list[list[str]]
    report: CandidateReport = field(default_factory=CandidateReport)
    ontology: CellOntology | None = None

    def __len__(self) -> int:
        return len(self.names)

    def class_of(self, labels: Iterable[str | None]) -> dict[str, int]:
        """Find the class of each different label by name, id or synonym; labels without a class are left out."""
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
        Names, ids or synonyms of cell types; those that are not in the ontology are their own text. Or a mapping of
        a class to its text or texts, which are used unchanged. Candidates of the same class are merged.
    ontology
        Where candidates are looked up; without it each is its own text.
    branch
        Cell type whose descendants, without itself, are candidates. All `candidates` then have to be cell types, too.
    leaves_only
        Use only types of the branch without subtypes in the ontology, or with `among`, without subtypes in that.
    among
        Labels of a corpus: use only types of the branch that have such a label.
    template
        Template of texts of cell types, see `describe_cell_types`.

    Returns
    -------
    Candidates
        Classes in the order given, followed by those of the branch, by id.

    Raises
    ------
    ValueError
        If there are no candidates, a candidate or its text is empty, or a branch has no ontology or no types.
    CellOntologyError
        If the branch, or with a branch a candidate, is not a cell type.
    TypeError
        If `candidates` is a text.
    """
    if isinstance(candidates, str):
        raise TypeError(f"candidates are given as the text {candidates!r}: pass a list of names")
    if branch is None and (leaves_only or among is not None):
        raise ValueError("leaves_only and among need a branch")
    given = list(candidates or ())
    if not given and branch is None:
        raise ValueError("no candidates: name at least one cell type, or a branch of the ontology")
    for number, label in enumerate(given, 1):
        if not isinstance(label, str) or not label.strip():
            raise ValueError(f"candidate {number} of {len(given):,} is empty: {label!r}")
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


def _resolved(
    given: Sequence[str], ontology: CellOntology | None, branch: str | None, report: CandidateReport
) -> list[str | None]:
    if ontology is None:
        if branch is not None:
            raise ValueError(f"the branch {branch!r} needs an ontology")
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
                raise CellOntologyError(f"candidate {label!r} is ambiguous, {choices}: pass an id")
            ontology.ids([label])
    return found.cell_types


def _add(made: Candidates, label: str, cell_type: str | None, texts: list[str]) -> None:
    """Add a class, or add its texts to the same class."""
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
        raise ValueError(f"candidate {label!r} has an empty text: {given!r}. Describe every class")
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
        raise ValueError(f"{ontology.term(root)} has no descendants{where}: there are no candidates")
    return sorted(types)


def split_candidates(text: str, ontology: CellOntology | None = None) -> list[str]:
    """Split candidates at commas, but not at commas in double quotes or in a label of the ontology.

    Adjacent pieces are one candidate if together they are a label: ``"B cell, CD4-positive, alpha-beta T cell"``
    has two candidates.
    """
    pieces, found, start = split_list(text), [], 0
    while start < len(pieces):
        stop = start + 1
        for end in range(len(pieces), start + 1, -1) if ontology is not None else ():
            if ontology is not None and ontology.resolve([",".join(pieces[start:end])]).rules[0] not in NO_COMMAS:
                stop = end
                break
        found.append(",".join(pieces[start:stop]).strip())
        start = stop
    return found


def read_candidates(path: str | Path) -> Labels:
    """Read candidates from a ``.json`` file with a list, or with class -> text or texts, or from lines of text."""
    if Path(path).suffix != ".json":
        return [line.strip() for line in read_text(path).splitlines() if line.strip()]
    given = read_json(path, kind=None)
    if not isinstance(given, list | dict):
        raise ValueError(f"{path} must contain a list of candidates, or class -> text or texts")
    if isinstance(given, dict):
        for label, texts in given.items():
            if not isinstance(texts, str | list):
                raise ValueError(f"{path}: {label!r} has {texts!r}, not a text or a list of texts")
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
