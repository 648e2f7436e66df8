"""Fine-tuning for classes of cells."""

from collections import Counter
from collections.abc import Mapping

import numpy as np

from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.tokenization.reading.labels import read_labels
from cellglot.training.data.expression import CorpusExpression
from cellglot.training.data.label_check import LabelCheck, check_labels
from cellglot.training.data.label_collators import CellClassCollator, balanced_weights
from cellglot.training.data.labels import labels_of, read_column
from cellglot.training.data.splits import Part, divide
from cellglot.training.finetuning.label_levels import class_ids, label_level_task, set_weights
from cellglot.training.finetuning.settings import FinetuneSettings
from cellglot.training.finetuning.tasks import (
    BOTH,
    Task,
    common_facts,
    head_fields,
    labelled_cells,
    listed,
    n_cells,
)
from cellglot.training.metrics import ClassificationMetrics


def cell_type_task(corpus: Corpus, column: str, settings: FinetuneSettings, seed: int) -> Task:
    """Prepare the classification of cells.

    The classes are those of the training cells. Cells without a label are left out, held-out cells of other classes
    count as errors, and ``unlikely_labels=leave_out`` leaves out training cells that look like another class than
    theirs. The facts have all these numbers.
    """
    if settings.levels:
        return label_level_task(corpus, column, settings, seed)
    how = settings.split
    read = read_labels(read_column(corpus, BOTH, column))
    every, note = read.texts.tolist(), read.note(column)
    division = divide(corpus, how, every, seed)
    names = {id(part): _names(corpus, part, column) for part in division.parts()}
    of_train = _chosen(division.train, names)
    counts = Counter(name for name in of_train if name is not None)
    classes = sorted(counts)
    if len(classes) < 2:
        raise ValueError(
            f"{corpus.folder}: {column!r} has {len(classes)} classes among the training cells "
            f"({', '.join(classes) or 'none'}): classification needs two"
        )
    numbers = {name: i for i, name in enumerate(classes)}
    for part in division.parts():
        for name in _chosen(part, names):
            if name is not None:
                numbers.setdefault(name, len(numbers))

    def labels(part: Part) -> tuple[np.ndarray, np.ndarray]:
        given = np.array([-1 if name is None else numbers.get(name, -1) for name in names[id(part)]], dtype=np.int64)
        return given, given >= 0

    check = _checked(corpus, division.train, labels(division.train)[0], settings, seed)
    left_out = settings.unlikely_labels == "leave_out"

    def labels_to_use(part: Part) -> tuple[np.ndarray, np.ndarray]:
        given, keep = labels(part)
        if part is division.train and check is not None and left_out:
            keep = keep & ~check.unlikely
        return given, keep

    train, held_out, test = labelled_cells(corpus, division, labels_to_use)
    set_weights(train, corpus, settings, numbers)
    pairs = {} if check is None else check.pairs(labels(division.train)[0], classes)
    if left_out:
        counts.subtract({name: sum(others.values()) for name, others in pairs.items()})
    other = Counter(
        name for part in division.parts()[1:] for name in _chosen(part, names)
        if name is not None and name not in counts
    )  # fmt: skip
    without = sum(_chosen(part, names).count(None) for part in division.parts())
    ids = class_ids(classes, settings)
    weights = balanced_weights(np.array([counts[c] for c in classes])) if settings.balanced else None
    unknown = f"; held-out cells of classes without training cells, which count as errors: {listed(other)}"
    return Task(
        fields=head_fields(classes, "single_label_classification", label_cl_ids=ids or None),
        train=train,
        held_out=held_out,
        test=test,
        collator=lambda cells, training: CellClassCollator(cells, len(classes), weights if training else None),
        metrics=ClassificationMetrics(),
        metric_names=("accuracy", "macro_f1"),
        facts={
            "label_column": column,
            "classes": classes,
            "cells_of_each_class": {name: counts[name] for name in classes},
            "label_cl_ids": ids,
            **common_facts(division, train, held_out, test),
            "cells_without_label": without,
            "unlikely_labels": None if check is None else {"left_out": left_out, "looks_like": pairs},
            "held_out_cells_of_other_classes": sum(other.values()),
            "other_classes": dict(other.most_common()),
        },
        summary=f"{len(classes):,} classes, {len(ids):,} of them cell types of the ontology; {len(train):,} cells for "
        f"training, {n_cells(held_out):,} held out by {division.by}; left out: {without:,} without label"
        f"{_unlikely(pairs, left_out)}" + (unknown if other else "") + (f"; {note}" if note else ""),
    )


def _checked(
    corpus: Corpus, part: Part, labels: np.ndarray, settings: FinetuneSettings, seed: int
) -> LabelCheck | None:
    """Check the labels of training cells; return None if that is off or the corpus has no expression values."""
    how = settings.unlikely_labels
    if how == "unchecked" or (how == "keep" and not CorpusExpression.held_by(corpus)):
        return None
    expression = CorpusExpression(
        corpus,
        part.splits,
        wanted_for="the check of labels needs",
        otherwise=", or set finetuning.unlikely_labels=unchecked",
    )
    return check_labels(expression, np.where(part.chosen, labels, -1), seed)


def _unlikely(pairs: Mapping[str, Mapping[str, int]], left_out: bool) -> str:
    """Return the part of the summary about training cells with unlikely labels."""
    if not pairs:
        return ""
    found = {f"{given} like {other}": n for given, others in pairs.items() for other, n in others.items()}
    found = dict(sorted(found.items(), key=lambda pair: -pair[1]))
    number = f"{sum(found.values()):,} training cells that look like another class: {listed(found)}"
    return f", and {number}" if left_out else f"; kept: {number}; finetuning.unlikely_labels=leave_out leaves them out"


def _names(corpus: Corpus, part: Part, column: str) -> list[str | None]:
    return [name for split in part.splits for name in labels_of(corpus, split, column)]


def _chosen(part: Part, names: Mapping[int, list[str | None]]) -> list[str | None]:
    return [name for name, chosen in zip(names[id(part)], part.chosen, strict=True) if chosen]


__all__ = ["cell_type_task"]
