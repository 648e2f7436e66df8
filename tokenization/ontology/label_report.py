"""What became of the cell-type labels of a corpus on their way to classes of the Cell Ontology."""

from dataclasses import asdict, dataclass, field


LABEL_RULES = ("id", "name", "added_synonym", "exact_synonym", "plural", "other_synonym", "replaced_by")

_LISTED = 10


@dataclass
class CellLabelReport:
    """Labels with and without a class, by rule; numbers count labels (cells) unless they are said to be distinct.

    Parameters
    ----------
    labels
        Labels given: one per cell, as a rule.
    distinct
        Different labels among them.
    missing
        Labels that are None, NaN or empty.
    matched_by_rule
        Labels with a class, by the rule that found it: ``id``, ``name``, ``added_synonym`` (no fact of the ontology
        but given by the caller or by `CellOntology.blood`; its plural counts here, too), ``exact_synonym``,
        ``plural`` (of a name or exact synonym), ``other_synonym`` (broad, narrow or related), ``replaced_by`` (an
        obsolete id or name).
    distinct_matched
        Different labels with a class.
    not_exact
        Label -> class, where an added or inexact synonym decided: worth a look.
    replaced
        Obsolete label -> the class that the ontology says replaces it.
    consider
        Obsolete label without replacement -> classes that the ontology suggests; none is taken.
    ambiguous
        Label -> the classes that it may stand for; none is taken.
    unresolved
        Label -> how often it stands there, most frequent first; obsolete labels without replacement are among them,
        ambiguous ones are not.
    passed_over
        Label without a class -> how often the label of a further column, which has one, was taken in its place; such
        labels count under none of the above.
    names
        Class -> name, for the classes mentioned above.
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
    passed_over: dict[str, int] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    @property
    def matched(self) -> int:
        """Labels with a class, by any rule."""
        return sum(self.matched_by_rule.values())

    @property
    def lost(self) -> int:
        """Labels without a class: missing, ambiguous or unresolved."""
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
        """Return all fields and the derived numbers as plain types, for JSON."""
        return asdict(self) | {"matched": self.matched, "lost": self.lost, "coverage": self.coverage}

    def summary(self) -> str:
        """Say in a few lines which labels have a class, by what, and which have none."""
        rules = ", ".join(f"{n:,} by {rule.replace('_', ' ')}" for rule, n in self.matched_by_rule.items() if n)
        lines = [
            f"{self.matched:,} of {self.labels:,} labels ({self.distinct_matched:,} of {self.distinct:,} distinct) "
            "stand for a cell type" + (f": {rules}" if rules else "")
        ]
        if self.not_exact:
            lines.append("by synonyms that are added or not exact: " + self._pairs(self.not_exact))
        if self.replaced:
            lines.append("obsolete, replaced as the ontology says: " + self._pairs(self.replaced))
        if self.passed_over:
            listed = ", ".join(f"{label!r} ({n:,})" for label, n in list(self.passed_over.items())[:_LISTED])
            lines.append(
                f"not in the ontology, so that a further column's label counts: {listed}{_more(self.passed_over)}"
            )
        if self.missing:
            lines.append(f"{self.missing:,} labels are missing")
        if self.ambiguous:
            lines.append("ambiguous, left without a cell type: " + self._choices(self.ambiguous))
        if self.unresolved:
            losses = ", ".join(f"{label!r} ({n:,})" for label, n in self.largest_losses)
            times = sum(self.unresolved.values())
            lines.append(f"{times:,} labels are not in the ontology: {losses}{_more(self.unresolved)}")
            lines.append("name their classes by CellOntology.with_synonyms({label: 'CL:...'})")
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


__all__ = ["LABEL_RULES", "CellLabelReport"]
