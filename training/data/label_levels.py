"""Labels at several levels of an ontology: classes are the finest types, a coarser label is the set of those below."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cellglot.tokenization.ontology.cell_ontology import CellOntology


ALTERNATIVES = "|"  # between the types of a label that leaves several open


@dataclass(frozen=True)
class LabelLevels:
    """Classes, and the labels in terms of them.

    Parameters
    ----------
    classes
        Names of the classes, sorted.
    ids
        Class -> Cell Ontology id, for those that have one.
    sets
        Label -> whether it may be each class, bool, shape (classes,). A label without any class is not used.
    """

    classes: list[str]
    ids: dict[str, str]
    sets: dict[str, np.ndarray]

    @property
    def unused(self) -> list[str]:
        """Labels that no class is for."""
        return [label for label, chosen in self.sets.items() if not chosen.any()]


def label_levels(
    counts: Mapping[str, int],
    ontology: CellOntology,
    *,
    fewest: int = 10,
    classes: Sequence[str] | None = None,
    others: Iterable[str] = (),
    every_class: bool = True,
) -> LabelLevels:
    """Find the classes of labels that stand at several levels, such as "T cell", "CD4 T cell" and "naive CD4 T cell".

    - A label may name several types between ``|``: it is one of these, unknown which.
    - Types of at least `fewest` cells are candidates. A candidate is a class unless two or more classes lie directly
      below it: then these are taken to be all of it.
    - A label means all classes below its types, and its types themselves. A type with neither means the nearest class
      above it. A type with none of these has too few cells: the label has no class.
    - A text that the ontology does not know is a type of its own, without parents.

    Parameters
    ----------
    counts
        Training cells of each label.
    ontology
        Where types and their parents come from.
    fewest
        Training cells that a class needs.
    classes
        The classes, as ids or labels of the ontology, or as texts of labels; by default they are found.
    others
        Labels of other cells, to be put in terms of the same classes.
    every_class
        Refuse given classes without a training cell. Otherwise they are left out.

    Raises
    ------
    ValueError
        If fewer than two classes are found, or a given class has no training cell at it or below it.
    """
    labels = list(dict.fromkeys([*counts, *others]))
    parts = {label: [p.strip() for p in label.split(ALTERNATIVES) if p.strip()] or [label] for label in labels}
    texts = list(dict.fromkeys([p for label in labels for p in parts[label]] + list(classes or [])))
    found = ontology.resolve(texts).cell_types
    types = {text: cell_type or text for text, cell_type in zip(texts, found, strict=True)}
    known = sorted({cell_type for cell_type in found if cell_type is not None})
    above = {t: ontology.ancestors(t) for t in known}
    if classes is None:
        cells: dict[str, int] = {}
        for label, number in counts.items():
            if len(parts[label]) == 1:
                cells[types[parts[label][0]]] = cells.get(types[parts[label][0]], 0) + number
        chosen = _finest([t for t, n in cells.items() if n >= fewest], above)
    else:
        chosen = list(dict.fromkeys(types[text] for text in classes))
    if classes is not None and not every_class:
        given = [_union([types[p] for p in parts[label]], chosen, above) for label in counts]
        chosen = [t for i, t in enumerate(chosen) if any(row[i] for row in given)]
    if len(chosen) < 2:
        raise ValueError(
            f"the labels give {len(chosen)} classes with {fewest:,} training cells or more "
            f"({', '.join(map(str, chosen)) or 'none'}): classification needs two"
        )
    names = {t: ontology.name(t) if t in above else t for t in chosen}
    order = sorted(chosen, key=lambda t: names[t])
    sets = {label: _union([types[p] for p in parts[label]], order, above) for label in labels}
    if classes is not None:
        missing = [names[t] for i, t in enumerate(order) if not any(sets[label][i] for label in counts)]
        if missing:
            raise ValueError(f"no training cell has a label for the classes {', '.join(missing)}: leave them out")
    return LabelLevels([names[t] for t in order], {names[t]: t for t in order if t in above}, sets)


def _finest(candidates: Sequence[str], above: Mapping[str, set[str]]) -> list[str]:
    """Return the candidates that do not have two or more classes directly below them."""
    chosen: list[str] = []
    for t in sorted(candidates, key=lambda t: (-len(above.get(t, ())), t)):  # a type comes after those below it
        below = [other for other in chosen if t in above.get(other, ())]
        if sum(not any(b in above[other] for b in below) for other in below) < 2:
            chosen.append(t)
    return chosen


def _union(types: Sequence[str], classes: Sequence[str], above: Mapping[str, set[str]]) -> np.ndarray:
    chosen = np.zeros(len(classes), dtype=bool)
    for t in types:
        under = np.array([c == t or t in above.get(c, ()) for c in classes])
        if not under.any():
            over = [i for i, c in enumerate(classes) if c in above.get(t, ())]
            nearest = [i for i in over if not any(classes[i] in above.get(classes[j], ()) for j in over)]
            under[nearest] = True
        chosen |= under
    return chosen


__all__ = ["ALTERNATIVES", "LabelLevels", "label_levels"]
