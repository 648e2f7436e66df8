"""Find the classes of an ontology for labels of cells, and report what was found."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from cellglot.tokenization.ontology.shipped import shipped_ancestors, shipped_parents
from cellglot.tokenization.ontology.shorthand import read_shorthand
from cellglot.tokenization.ontology.terms import EXACT, CellTerm
from cellglot.tokenization.reading.labels import label_text, read_labels


LABEL_RULES = ("id", "name", "added_synonym", "exact_synonym", "plural", "shorthand", "other_synonym", "replaced_by")

_LISTED = 10


@dataclass
class CellLabelReport:
    """Numbers of labels (usually one for each cell) with and without a class, by rule.

    Parameters
    ----------
    labels
        Number of labels.
    distinct
        Number of different labels.
    missing
        Number of labels that are None, NaN or empty.
    matched_by_rule
        Number of labels by the rule that found their class: ``id``, ``name``, ``added_synonym`` (of the caller; also
        its plural), ``exact_synonym``, ``plural`` (of a name or exact synonym), ``shorthand`` (see
        `cellglot.tokenization.ontology.shorthand`), ``other_synonym`` (broad, narrow or related), ``replaced_by`` (an
        obsolete id or name).
    distinct_matched
        Number of different labels with a class.
    not_exact
        Label -> class that was found by shorthand, an added or an inexact synonym: worth a check.
    replaced
        Obsolete label -> the class that replaces it in the ontology.
    consider
        Obsolete label without replacement -> classes that the ontology suggests; none is used.
    ambiguous
        Label -> its possible classes; none is used.
    unresolved
        Label -> how often it occurs, most frequent first, including obsolete labels without replacement but not
        ambiguous ones.
    reasons
        Label without a class -> why it has none, if that is known: ``EC`` is an endothelial or an epithelial cell.
    passed_over
        Label without a class -> how often the label of another column, which has a class, was used instead; such
        labels are not counted above.
    names
        Class -> name, for the classes above.
    """

    labels: int = 0
    distinct: int = 0
    missing: int = 0
    matched_by_rule: dict[str, int] = field(default_factory=lambda: dict.fromkeys(LABEL_RULES, 0))
    distinct_matched: int = 0
    not_exact: dict[str, str] = field(default_factory=dict)
    replaced: dict[str, str] = field(default_factory=dict)
    consider: dict[str, list[str]] = field(default_factory=dict)
    ambiguous: dict[str, list[str]] = field(default_factory=dict)
    unresolved: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    passed_over: dict[str, int] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    @property
    def matched(self) -> int:
        """Number of labels with a class."""
        return sum(self.matched_by_rule.values())

    @property
    def lost(self) -> int:
        """Number of labels without a class: missing, ambiguous or unresolved."""
        return self.labels - self.matched

    @property
    def coverage(self) -> float:
        """Share of labels with a class, between 0 and 1."""
        return self.matched / self.labels if self.labels else 0.0

    @property
    def largest_losses(self) -> list[tuple[str, int]]:
        """The ten most frequent unresolved labels, as (label, times)."""
        return list(self.unresolved.items())[:_LISTED]

    def to_dict(self) -> dict:
        """Return all fields and derived numbers as plain types, for JSON."""
        return asdict(self) | {"matched": self.matched, "lost": self.lost, "coverage": self.coverage}

    def summary(self) -> str:
        """Describe in a few lines which labels have a class, by which rule, and which have none."""
        rules = ", ".join(f"{n:,} by {rule.replace('_', ' ')}" for rule, n in self.matched_by_rule.items() if n)
        lines = [
            f"{self.matched:,} of {self.labels:,} labels ({self.distinct_matched:,} of {self.distinct:,} distinct) "
            "have a cell type" + (f": {rules}" if rules else "")
        ]
        if self.not_exact:
            lines.append("by shorthand, or by synonyms that are added or not exact: " + self._pairs(self.not_exact))
        if self.replaced:
            lines.append("obsolete, replaced by the ontology: " + self._pairs(self.replaced))
        if self.passed_over:
            listed = ", ".join(f"{label!r} ({n:,})" for label, n in list(self.passed_over.items())[:_LISTED])
            lines.append(f"not in the ontology, another column is used: {listed}{_more(self.passed_over)}")
        if self.missing:
            lines.append(f"{self.missing:,} labels are missing")
        if self.ambiguous:
            lines.append("ambiguous, without a cell type: " + self._choices(self.ambiguous))
        if self.unresolved:
            losses = ", ".join(f"{label!r} ({n:,})" for label, n in self.largest_losses)
            times = sum(self.unresolved.values())
            lines.append(f"{times:,} labels are not in the ontology: {losses}{_more(self.unresolved)}")
            lines += [f"{label!r}: {reason}" for label, reason in list(self.reasons.items())[:_LISTED]]
            lines.append("add their classes with CellOntology.with_synonyms({label: 'CL:...'})")
        if self.consider:
            lines.append("obsolete without replacement; the ontology suggests: " + self._choices(self.consider))
        return "\n".join(lines)

    def _class(self, cell_type: str) -> str:
        return f"{cell_type} {self.names[cell_type]}" if cell_type in self.names else cell_type

    def _pairs(self, pairs: dict[str, str]) -> str:
        listed = [f"{label!r} -> {self._class(t)}" for label, t in list(pairs.items())[:_LISTED]]
        return "; ".join(listed) + _more(pairs)

    def _choices(self, choices: dict[str, list[str]]) -> str:
        listed = [
            f"{x!r} ({' or '.join(map(self._class, ts)) or 'none'})" for x, ts in list(choices.items())[:_LISTED]
        ]
        return "; ".join(listed) + _more(choices)

    def __str__(self) -> str:
        return self.summary()


def _more(listed: dict) -> str:
    return f" and {len(listed) - _LISTED:,} more" if len(listed) > _LISTED else ""


_CURIE = re.compile(r"^<?(?:.*[/#])?([A-Za-z][A-Za-z0-9.]*?)[:_ ]?(\d{4,})>?$")
_OBSOLETE = re.compile(r"^obsolete\.?:? ")


@dataclass(frozen=True)
class LabelFinding:
    """The class of a label.

    Parameters
    ----------
    cell_type
        Id of the class; None unless exactly one is found.
    rule
        The rule of `LABEL_RULES` that found it.
    candidates
        Possible classes of an ambiguous label.
    consider
        Suggestions of the ontology for an obsolete class without replacement; None for other labels.
    reason
        Why the label has no class, if the table of shorthand says so.
    """

    cell_type: str | None = None
    rule: str | None = None
    candidates: tuple[str, ...] = ()
    consider: tuple[str, ...] | None = None
    reason: str = ""


@dataclass
class CellLabelMatch:
    """Labels of cells with their classes in an ontology.

    Parameters
    ----------
    labels
        The labels; None for missing ones.
    cell_types
        Id of the class of each label; None without a class.
    rules
        The rule that found each class; None without a class.
    report
        Numbers by rule, and labels without a class.
    """

    labels: list[str | None]
    cell_types: list[str | None]
    rules: list[str | None]
    report: CellLabelReport

    @property
    def found_types(self) -> list[str]:
        """The different classes found, sorted."""
        return sorted({t for t in self.cell_types if t is not None})

    def rows(self, cell_types: Sequence[str]) -> np.ndarray:
        """Return the position of each label's class in a model's table of ids, int64, shape (labels,).

        It is -100 for labels without a class, or with one that is not in `cell_types`.
        """
        row = {t: i for i, t in enumerate(cell_types)}
        return np.array([-100 if t is None else row.get(t, -100) for t in self.cell_types], dtype=np.int64)


class LabelIndex:
    """Ids, names and synonyms of an ontology, in which labels are looked up.

    Parameters
    ----------
    terms
        Classes by id, including obsolete ones.
    added_synonyms
        Additional label -> id of a live class.
    """

    def __init__(self, terms: Mapping[str, CellTerm], added_synonyms: Mapping[str, str]):
        self.terms = terms
        self._ids = {i.casefold(): i for i in terms}
        live = [t for t in terms.values() if not t.obsolete]
        self._merged = _table((a, t.id) for t in live for a in t.alternate_ids)
        self._names = _table((t.name, t.id) for t in live)
        self._added = _table(added_synonyms.items())
        self._exact = _table((s, t.id) for t in live for s, scope in t.synonyms if scope == EXACT)
        self._other = _table((s, t.id) for t in live for s, scope in t.synonyms if scope != EXACT)
        withdrawn = [t for t in terms.values() if t.obsolete]
        self._withdrawn = _table((n, t.id) for t in withdrawn for n in {t.name, _OBSOLETE.sub("", t.name)})

    def find(self, label: str) -> LabelFinding:
        """Look up a label by each of `LABEL_RULES`, until one finds one or several classes.

        Shorthand overrides an exact synonym of another class: ``DC2`` is a synonym of plasmacytoid dendritic cells,
        but data sets use it for the second type of conventional dendritic cells.
        """
        known = self.id_of(label)
        if known is not None:
            return self._by_id(known)
        text = clean_label(label)
        for rule, table in (("name", self._names), ("added_synonym", self._added)):
            if text in table:
                return _only(table[text], rule)
        found = self._by_synonym(text)
        if found.rule != "added_synonym":
            cell_type, reason = read_shorthand().find(label)
            cell_type = None if cell_type is None else self._here(cell_type)
            if cell_type is not None and cell_type != found.cell_type:
                return LabelFinding(cell_type, "shorthand")
            if reason and found.cell_type is None:
                return LabelFinding(candidates=found.candidates, reason=reason)
        if found.cell_type is not None or found.candidates:
            return found
        if text in self._other:
            return _only(self._other[text], "other_synonym")
        if text in self._withdrawn:
            return self._by_id(*self._withdrawn[text])
        return LabelFinding()

    def _here(self, cell_type: str) -> str | None:
        """Return a type of the shorthand, or where this ontology lacks it the nearest one above that it has.

        Types above are those of the shorthand: a small table gives ``memory T cell`` for ``CD4 TCM``, never ``cell``.
        """
        types, level = read_shorthand().labels, [cell_type]
        while level:
            present = [t for t in level if t in types and t in self.terms and not self.terms[t].obsolete]
            if present:  # several are all true of the cell: the most special one
                return max(present, key=lambda t: len(shipped_ancestors(t)))
            level = sorted({parent for t in level for parent in shipped_parents().get(t, ())})
        return None

    def _by_synonym(self, text: str) -> LabelFinding:
        """Look up a label among exact synonyms and plurals."""
        if text in self._exact:
            return _only(self._exact[text], "exact_synonym")
        if text.endswith("s"):
            tables = (("plural", self._names), ("added_synonym", self._added), ("plural", self._exact))
            for rule, table in tables:
                if text[:-1] in table:
                    return _only(table[text[:-1]], rule)
        return LabelFinding()

    def id_of(self, label: str) -> str | None:
        """Return the id of a label that is an id (``CL:0000236``, ``CL_0000236``, an IRI); None for other labels."""
        text = label.strip().casefold()
        curie = _CURIE.match(text)
        if text not in self._ids and clean_label(text) not in self._merged and curie is not None:
            text = f"{curie.group(1)}:{curie.group(2)}"
        if text in self._ids:
            return self._ids[text]
        return text if clean_label(text) in self._merged else None

    def successors(self, cell_type: str) -> set[str]:
        """Follow `replaced_by` from an obsolete class to live ones; a live class is its own successor."""
        found: set[str] = set()
        seen: set[str] = set()
        waiting = [cell_type]
        while waiting:
            term = self.terms.get(waiting.pop())
            if term is not None and term.id not in seen:
                seen.add(term.id)
                if term.obsolete:
                    waiting.extend(term.replaced_by)
                else:
                    found.add(term.id)
        return found

    def _by_id(self, *ids: str) -> LabelFinding:
        if len(ids) == 1 and ids[0] in self.terms and not self.terms[ids[0]].obsolete:
            return LabelFinding(ids[0], "id")
        merged = {t for i in ids for t in self._merged.get(clean_label(i), ())}
        found = merged.union(*(self.successors(i) for i in ids))
        if found:
            return _only(found, "replaced_by")
        withdrawn = [self.terms[i] for i in ids]
        return LabelFinding(consider=tuple(sorted({c for t in withdrawn for c in (*t.replaced_by, *t.consider)})))


def _table(pairs: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    table: dict[str, set[str]] = {}
    for text, cell_type in pairs:
        table.setdefault(clean_label(text), set()).add(cell_type)
    return table


def _only(found: set[str], rule: str) -> LabelFinding:
    if len(found) == 1:
        return LabelFinding(next(iter(found)), rule)
    return LabelFinding(candidates=tuple(sorted(found)))


def clean_label(label: str) -> str:
    """Normalise case, underscores, repeated blanks and compatibility characters of a label."""
    return " ".join(unicodedata.normalize("NFKC", label).replace("_", " ").split()).casefold()


def resolve_labels(index: LabelIndex, labels: Iterable[Any]) -> CellLabelMatch:
    """Look up labels: see `CellOntology.resolve`."""
    if isinstance(labels, str):
        raise TypeError(f"labels is the text {labels!r}: pass a list of labels")
    texts: list[str | None]
    if isinstance(labels, Counter):
        counts = Counter[str]()
        for label, n in labels.items():
            if (text := label_text(label)) is not None:
                counts[text] += n
        texts, n_labels = list(counts), labels.total()
    else:
        texts = read_labels(list(labels)).texts.tolist()
        counts, n_labels = Counter(t for t in texts if t is not None), len(texts)
    findings = {text: index.find(text) for text in counts}
    nothing = LabelFinding()
    each = [nothing if t is None else findings[t] for t in texts]
    report = _report(index, n_labels, counts, findings)
    return CellLabelMatch(texts, [f.cell_type for f in each], [f.rule for f in each], report)


def _report(
    index: LabelIndex, n_labels: int, counts: Counter[str], findings: Mapping[str, LabelFinding]
) -> CellLabelReport:
    report = CellLabelReport(labels=n_labels, distinct=len(counts), missing=n_labels - counts.total())
    for label, times in counts.most_common():
        finding = findings[label]
        mentioned: tuple[str, ...] = (*finding.candidates, *(finding.consider or ()))
        if finding.rule is not None and finding.cell_type is not None:
            report.matched_by_rule[finding.rule] += times
            report.distinct_matched += 1
            mentioned = (finding.cell_type,)
            if finding.rule in ("added_synonym", "shorthand", "other_synonym"):
                report.not_exact[label] = finding.cell_type
            elif finding.rule == "replaced_by":
                report.replaced[label] = finding.cell_type
        elif finding.candidates:
            report.ambiguous[label] = list(finding.candidates)
        else:
            report.unresolved[label] = times
            if finding.consider is not None:
                report.consider[label] = list(finding.consider)
        if finding.reason:
            report.reasons[label] = finding.reason
        report.names |= {t: index.terms[t].name for t in mentioned if t in index.terms}
    return report


__all__ = [
    "LABEL_RULES", "CellLabelMatch", "CellLabelReport", "LabelFinding", "LabelIndex", "clean_label", "resolve_labels",
]  # fmt: skip
