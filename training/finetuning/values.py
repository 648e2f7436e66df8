"""Fine-tuning for a value of each cell."""

import numpy as np

from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.training.data.label_collators import CellValueCollator
from cellglot.training.data.labels import values_of
from cellglot.training.data.splits import Part, divide
from cellglot.training.finetuning.settings import FinetuneSettings
from cellglot.training.finetuning.tasks import BOTH, Task, common_facts, head_fields, labelled_cells, n_cells
from cellglot.training.metrics import ValueMetrics


def value_task(corpus: Corpus, column: str, settings: FinetuneSettings, seed: int) -> Task:
    """Prepare the regression of a value.

    The head predicts values standardised by mean and standard deviation of the training cells. Both are in the model's
    configuration, and predictions have the unit of the value. Cells without a value are left out; the facts have their
    number.
    """
    division = divide(corpus, settings.split, _deciles(values_of(corpus, BOTH, column)), seed)

    def labels(part: Part) -> tuple[np.ndarray, np.ndarray]:
        given = values_of(corpus, part.splits, column)
        return given, ~np.isnan(given)

    given = {id(part): labels(part)[0][part.chosen] for part in division.parts()}
    of_train = given[id(division.train)]
    known = of_train[~np.isnan(of_train)]
    if len(known) < 2 or known.std() == 0:
        what = f"the same value {known[0]:g}" if len(known) else "no value"
        raise ValueError(f"{corpus.folder}: all training cells have {what} in {column!r}: there is nothing to learn")
    train, held_out, test = labelled_cells(corpus, division, labels)
    mean, deviation = float(known.mean()), float(known.std())
    without = int(sum(np.isnan(values).sum() for values in given.values()))
    return Task(
        fields=head_fields([column], "regression", target_mean=mean, target_std=deviation),
        train=train,
        held_out=held_out,
        test=test,
        collator=lambda cells, training: CellValueCollator(cells),
        metrics=ValueMetrics(),
        metric_names=("mse", "r2", "pearson"),
        facts={
            "label_column": column,
            "target_mean": mean,
            "target_std": deviation,
            **common_facts(division, train, held_out, test),
            "cells_without_label": without,
        },
        summary=f"{column}: mean {mean:.4g}, standard deviation {deviation:.4g}; {len(train):,} cells for training, "
        f"{n_cells(held_out):,} held out by {division.by}; left out: {without:,} without value",
    )


def _deciles(values: np.ndarray) -> list[int | None]:
    """Return the decile of each value, None for a missing one."""
    known = values[~np.isnan(values)]
    bounds = np.quantile(known, np.linspace(0.1, 0.9, 9)) if len(known) else np.zeros(9)
    return [None if np.isnan(v) else int(np.searchsorted(bounds, v)) for v in values]


__all__ = ["value_task"]
