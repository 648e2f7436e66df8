"""Classes of a cell ontology, and the checks of their hierarchy."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


EXACT = "EXACT"


class CellOntologyError(ValueError):
    """A file is not a valid cell ontology, or a cell type is not in it."""


@dataclass(frozen=True, slots=True)
class CellTerm:
    """A class of the ontology.

    Parameters
    ----------
    id
        ``CL:0000236``.
    name
        ``B cell``.
    parents
        Parents by `is_a` that are not obsolete, sorted.
    definition
        Text; empty if there is none.
    synonyms
        (text, scope) pairs, sorted; the scope is ``EXACT``, ``BROAD``, ``NARROW`` or ``RELATED``.
    obsolete
        Obsolete classes have no parents here.
    alternate_ids
        Ids of classes merged into this one.
    replaced_by
        Ids that replace an obsolete class.
    consider
        Ids that the ontology suggests for an obsolete class, but not as a replacement.
    """

    id: str
    name: str
    parents: tuple[str, ...] = ()
    definition: str = ""
    synonyms: tuple[tuple[str, str], ...] = ()
    obsolete: bool = False
    alternate_ids: tuple[str, ...] = ()
    replaced_by: tuple[str, ...] = ()
    consider: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.id} {self.name}"


def parents_first(terms: Mapping[str, CellTerm]) -> list[str]:
    """Order live classes so that every parent comes before its children."""
    waiting = {i: set(t.parents) for i, t in terms.items() if not t.obsolete}
    missing = [(i, p) for i, parents in waiting.items() for p in sorted(parents) if p not in waiting]
    if missing:
        pairs = ", ".join(f"{terms[i]} is_a {p}" for i, p in missing[:3])
        raise CellOntologyError(
            f"{len(missing):,} is_a edges lead to a class that the ontology does not define: {pairs}. "
            "The file is cut short, or is a part of an ontology: use the whole one"
        )
    children: dict[str, list[str]] = {i: [] for i in waiting}
    for i, parents in waiting.items():
        for parent in parents:
            children[parent].append(i)
    ordered = sorted(i for i, parents in waiting.items() if not parents)
    for i in ordered:  # grows while it is read
        for child in children[i]:
            waiting[child].discard(i)
            if not waiting[child]:
                ordered.append(child)
    if len(ordered) < len(waiting):
        circle = _circle({i: parents for i, parents in waiting.items() if parents})
        raise CellOntologyError(f"is_a has a cycle: {' is_a '.join(str(terms[i]) for i in circle)}")
    return ordered


def _circle(parents: Mapping[str, Iterable[str]]) -> list[str]:
    """Follow parents until one occurs again; each class of `parents` has a parent in it."""
    path = [min(parents)]
    while path[-1] not in path[:-1]:
        path.append(min(parents[path[-1]]))
    return path[path.index(path[-1]) :]


__all__ = ["EXACT", "CellOntologyError", "CellTerm", "parents_first"]
