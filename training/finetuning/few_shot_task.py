"""The cells of few-shot learning: a few of each class, and the texts of the classes."""

import dataclasses
import datetime
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from huggingface_hub.dataclasses import strict

from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.tokenization.ontology.candidates import make_candidates
from cellglot.tokenization.ontology.descriptions import ANNOTATION_TEMPLATE
from cellglot.training.data.cell_types import open_ontology
from cellglot.training.data.label_collators import CellClassCollator
from cellglot.training.data.labels import labels_of
from cellglot.training.data.splits import Part, divide
from cellglot.training.finetuning.few_shot_objective import ALPHA
from cellglot.training.finetuning.tasks import Task, labelled_cells, n_cells
from cellglot.training.metrics import ClassificationMetrics


@strict
@dataclass(kw_only=True)
class FewShotSettings:
    """Keys of the section ``data``.

    Parameters
    ----------
    ontology
        ``blood``, the date of a release, or an OBO or OWL file.
    template
        Template of the text of a class.
    alpha
        Weight of similarity in the scores.
    """

    ontology: str | datetime.date = "shipped"
    template: str = ANNOTATION_TEMPLATE
    alpha: float | int = ALPHA


@dataclass
class Shots:
    """The cells that were drawn for training.

    Parameters
    ----------
    keep
        Whether each training cell was drawn, shape (training cells,).
    drawn
        Class -> number of cells drawn.
    """

    keep: np.ndarray
    drawn: dict[Any, int]

    def short(self, number: int) -> dict[Any, int]:
        """Return the classes with fewer than `number` cells: class -> cells."""
        return {name: n for name, n in self.drawn.items() if n < number}


def draw_cells(classes: Sequence[Any], number: int, seed: int) -> Shots:
    """Draw `number` cells of each class; all cells of a class that has fewer.

    Parameters
    ----------
    classes
        Class of each training cell, None for cells that cannot be drawn.
    """
    if number < 1:
        raise ValueError(f"{number} cells of each class: few-shot learning needs at least one")
    random, given = np.random.default_rng(seed), np.array(classes, dtype=object)
    keep, drawn = np.zeros(len(given), dtype=bool), {}
    for name in sorted({c for c in classes if c is not None}):
        rows = random.permutation(np.flatnonzero(given == name))[:number]
        keep[rows], drawn[name] = True, len(rows)
    return Shots(keep, drawn)


def few_shot_task(
    corpus: Corpus, column: str, number: int, settings: FewShotSettings, seed: int
) -> tuple[Task, list[str]]:
    """Draw the cells of each class; return them with the text of each class.

    Labels that mean the same cell type are one class. A label that the ontology does not know is its own text.
    """
    division = dataclasses.replace(divide(corpus, "corpus", [], seed), test=None)
    labels = {id(part): labels_of(corpus, part.splits[0], column) for part in division.parts()}
    counts = Counter(label for label in labels[id(division.train)] if label is not None)
    if not counts:
        raise ValueError(f"no training cell of {corpus.folder} has a label in {column!r}")
    candidates = make_candidates(sorted(counts), open_ontology(settings.ontology), template=settings.template)
    if len(candidates) < 2:
        raise ValueError(
            f"{column!r} has 1 class among the training cells ({candidates.names[0]}): few-shot learning needs two"
        )
    class_of = candidates.class_of(label for part in division.parts() for label in labels[id(part)])
    given = {id(part): _classes(labels[id(part)], class_of) for part in division.parts()}
    of_train = np.where(division.train.chosen, given[id(division.train)], -1)
    shots = draw_cells([None if c < 0 else c for c in of_train.tolist()], number, seed)

    def labels_to_use(part: Part) -> tuple[np.ndarray, np.ndarray]:
        classes = given[id(part)]
        return classes, shots.keep if part is division.train else classes >= 0

    train, held_out, _ = labelled_cells(corpus, division, labels_to_use)
    if train is None:
        raise ValueError(f"no labelled training cell of {corpus.folder} expresses a gene of the vocabulary")
    without_class = (
        of_train < 0 if division.held_out is None else np.append(of_train, given[id(division.held_out)]) < 0
    )
    drawn, short = ({candidates.names[c]: n for c, n in cells.items()} for cells in (shots.drawn, shots.short(number)))
    texts = [of_class[0] for of_class in candidates.texts]
    task = Task(
        fields={},
        train=train,
        held_out=held_out,
        test=None,
        collator=lambda cells, training: CellClassCollator(cells, len(texts)),
        metrics=ClassificationMetrics(),
        metric_names=("accuracy", "macro_f1"),
        facts={
            "cells_of_each_class": number,
            "cells_drawn": drawn,
            "classes_with_fewer": short,
            "texts": texts,
            "label_column": column,
            "training_cells": len(train),
            "held_out_cells": n_cells(held_out),
            "cells_without_class": int(without_class.sum()),
        },
        summary=f"{len(train):,} cells of {len(texts):,} classes, {number:,} of each; {len(short):,} classes have "
        f"fewer: {short or 'none'}; {n_cells(held_out):,} held-out cells\n"
        f"{candidates.report.summary()}",
    )
    return task, texts


def _classes(labels: Sequence[str | None], class_of: dict[str, int]) -> np.ndarray:
    return np.array([-1 if label is None else class_of.get(label, -1) for label in labels], dtype=np.int64)


__all__ = ["FewShotSettings", "Shots", "draw_cells", "few_shot_task"]
