"""Fine-tuning for labels at several levels of an ontology, and how often labels are drawn."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.tokenization.reading.labels import read_labels
from cellglot.training.data.cell_types import open_ontology
from cellglot.training.data.label_collators import (
    LabelledCells,
    LabelSetCollator,
    balanced_weights,
    sampling_weights,
)
from cellglot.training.data.label_levels import label_levels
from cellglot.training.data.labels import labels_of, read_column
from cellglot.training.data.splits import Part, divide
from cellglot.training.finetuning.settings import FinetuneSettings
from cellglot.training.finetuning.tasks import BOTH, Task, common_facts, head_fields, labelled_cells, listed, n_cells
from cellglot.training.metrics import LabelSetMetrics


def label_level_task(corpus: Corpus, column: str, settings: FinetuneSettings, seed: int) -> Task:
    """Prepare the classification of cells with labels at several levels, such as T cell and naive CD4 T cell.

    Classes are the finest types with enough training cells; see `cellglot.training.data.label_levels.label_levels`. A
    coarser label trains the summed probability of the classes below it. Training cells without a class are left out,
    held-out cells without one count as errors; the facts have both numbers.
    """
    if settings.unlikely_labels == "leave_out":
        raise ValueError(
            "finetuning.unlikely_labels=leave_out does not work with finetuning.levels: set it to keep or unchecked"
        )
    read = read_labels(read_column(corpus, BOTH, column))
    division = divide(corpus, settings.split, read.texts.tolist(), seed)
    names = {id(p): [n for s in p.splits for n in labels_of(corpus, s, column)] for p in division.parts()}

    def counted(part: Part) -> Counter[str]:
        chosen = zip(names[id(part)], part.chosen, strict=True)
        return Counter(name for name, among in chosen if among and name is not None)

    counts, others = counted(division.train), Counter[str]()
    for part in division.parts()[1:]:
        others.update(counted(part))
    levels = label_levels(
        counts,
        open_ontology(settings.ontology),
        fewest=settings.fewest_cells,
        classes=settings.classes,
        others=others,
    )
    numbers = {label: i for i, label in enumerate(levels.sets)}
    sets = np.stack(list(levels.sets.values()))
    sizes = sets.sum(axis=1)
    unused = {label: counts[label] for label in levels.unused if counts[label]}
    unknown = {label: others[label] for label in levels.unused if others[label]}

    def labels(part: Part) -> tuple[np.ndarray, np.ndarray]:
        given = np.array([-1 if name is None else numbers[name] for name in names[id(part)]], dtype=np.int64)
        keep = given >= 0
        return given, keep & (sizes > 0)[given] if part is division.train else keep

    train, held_out, test = labelled_cells(corpus, division, labels)
    set_weights(train, corpus, settings, numbers, sizes)
    used = np.array([counts[label] for label in numbers])
    weights = balanced_weights(used) if settings.balanced else None
    without = sum(name is None for p in division.parts() for name in np.array(names[id(p)], dtype=object)[p.chosen])
    return Task(
        fields=head_fields(levels.classes, "single_label_classification", label_cl_ids=levels.ids or None),
        train=train,
        held_out=held_out,
        test=test,
        collator=lambda cells, training: LabelSetCollator(cells, sets, weights if training else None),
        metrics=LabelSetMetrics(sets),
        metric_names=("accuracy", "macro_f1"),
        facts={
            "label_column": column,
            "classes": levels.classes,
            "labels": {
                label: {"cells": counts[label], "classes": [levels.classes[i] for i in np.flatnonzero(sets[number])]}
                for label, number in numbers.items()
            },
            "label_cl_ids": levels.ids,
            **common_facts(division, train, held_out, test),
            "cells_without_label": without,
            "labels_with_too_few_cells": unused,
            "held_out_cells_of_other_classes": sum(unknown.values()),
            "other_classes": unknown,
        },
        summary=f"{len(levels.classes):,} classes from {len(numbers):,} labels, {len(levels.ids):,} of them cell "
        f"types of the ontology; {len(train):,} cells for training, "
        f"{n_cells(held_out):,} held out by {division.by}; left out: {without:,} without label"
        + (f", and labels with too few cells: {listed(unused)}" if unused else "")
        + (f"; held-out cells without a class, which count as errors: {listed(unknown)}" if unknown else ""),
    )


def set_weights(
    train: LabelledCells,
    corpus: Corpus,
    settings: FinetuneSettings,
    numbers: Mapping[str, int],
    open_classes: np.ndarray | None = None,
) -> None:
    """Set how often each training cell is drawn, where the settings ask for it.

    Parameters
    ----------
    train
        Training cells.
    numbers
        Class or label -> its number among the labels of `train`.
    open_classes
        Number of classes that each label leaves open, shape (labels,); by default each label is one class.
    """
    if not (settings.balance or settings.balance_shares or settings.balance_open):
        return
    groups = np.zeros(len(train), dtype=np.int64)
    if settings.balance_by is not None:
        texts = np.array([str(v) for v in read_column(corpus, BOTH, settings.balance_by)], dtype=object)
        groups = np.unique(texts, return_inverse=True)[1][train.rows]
    shares = settings.balance_shares or {}
    missing = [name for name in shares if name not in numbers]
    if missing:
        raise ValueError(f"finetuning.balance_shares has {', '.join(missing)}: no label has this name")
    of_labels = {numbers[name]: share for name, share in shares.items()}
    less = None if open_classes is None else np.maximum(open_classes, 1.0) ** -float(settings.balance_open)
    train.weights = sampling_weights(train.labels, groups, float(settings.balance), of_labels, less)


def class_ids(classes: Sequence[str], settings: FinetuneSettings) -> dict[str, str]:
    """Find classes in the ontology of `settings`: class -> Cell Ontology id, for classes that are a cell type."""
    found = open_ontology(settings.ontology).resolve(classes)
    return {name: i for name, i in zip(classes, found.cell_types, strict=True) if i is not None}


__all__ = ["class_ids", "label_level_task", "set_weights"]
