"""Fine-tuning for several labels of a cell at the same time, such as the pathways that are active in it."""

from collections import Counter

import numpy as np

from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.tokenization.reading.labels import label_text
from cellglot.training.data.columns import read_column
from cellglot.training.data.label_collators import SeveralLabelsCollator
from cellglot.training.data.splits import Part, divide
from cellglot.training.finetuning.settings import FinetuneSettings
from cellglot.training.finetuning.tasks import BOTH, Task, common_facts, head_fields, labelled_cells, listed, n_cells
from cellglot.training.metrics import SeveralLabelsMetrics


SEPARATOR = "|"


def several_labels_task(corpus: Corpus, column: str, settings: FinetuneSettings, seed: int) -> Task:
    """Prepare the classification of cells with any number of labels each.

    A text of the column is labels between ``|``; ``|`` alone is a cell without any. Cells with a missing text are left
    out. The labels to learn are those of the training cells; others of held-out cells are not scored, and the facts
    have their numbers.
    """
    division = divide(corpus, settings.split, [_split(value) for value in read_column(corpus, BOTH, column)], seed)
    given = {
        id(part): [_split(value) for value in read_column(corpus, part.splits, column)] for part in division.parts()
    }
    of_train = [
        labels for labels, chosen in zip(given[id(division.train)], division.train.chosen, strict=True) if chosen
    ]
    counts = Counter(label for labels in of_train if labels is not None for label in labels)
    names = sorted(counts)
    known = sum(labels is not None for labels in of_train)
    if not names or known < 2:
        raise ValueError(
            f"{corpus.folder}: the training cells have no labels in {column!r}: write labels between {SEPARATOR!r}, "
            f"such as 'apoptosis{SEPARATOR}cell cycle', and {SEPARATOR!r} alone for cells without any"
        )
    numbers = {name: number for number, name in enumerate(names)}

    def labels(part: Part) -> tuple[np.ndarray, np.ndarray]:
        texts = given[id(part)]
        table = np.zeros((len(texts), len(names)), dtype=np.float32)
        for row, own in enumerate(texts):
            table[row, [numbers[label] for label in own or () if label in numbers]] = 1.0
        return table, np.array([own is not None for own in texts], dtype=bool)

    train, held_out, test = labelled_cells(corpus, division, labels)
    others = Counter(
        label
        for part in division.parts()[1:]
        for own, chosen in zip(given[id(part)], part.chosen, strict=True)
        if chosen and own is not None
        for label in own
        if label not in numbers
    )
    without = sum(
        own is None
        for part in division.parts()
        for own, chosen in zip(given[id(part)], part.chosen, strict=True)
        if chosen
    )
    unknown = f"; labels of held-out cells that no training cell has, not scored: {listed(others)}" if others else ""
    return Task(
        fields=head_fields(names, "multi_label_classification"),
        train=train,
        held_out=held_out,
        test=test,
        collator=lambda cells, training: SeveralLabelsCollator(cells, len(names)),
        metrics=SeveralLabelsMetrics(),
        metric_names=("auprc", "auroc"),
        facts={
            "label_column": column,
            "classes": names,
            "cells_of_each_class": {name: counts[name] for name in names},
            **common_facts(division, train, held_out, test),
            "cells_without_label": without,
            "other_classes": dict(others.most_common()),
        },
        summary=f"{len(names):,} labels, {sum(counts.values()) / max(known, 1):.1f} a cell; {len(train):,} cells for "
        f"training, {n_cells(held_out):,} held out by {division.by}; left out: {without:,} without label{unknown}",
    )


def _split(value: object) -> tuple[str, ...] | None:
    """Return the labels of a text, sorted; None if it is missing."""
    text = label_text(value)
    if text is None:
        return None
    return tuple(sorted({part.strip() for part in text.split(SEPARATOR)} - {""}))


__all__ = ["SEPARATOR", "several_labels_task"]
