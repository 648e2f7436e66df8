"""The demo as the command line runs it."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from cellglot.verbs.cells import existing


if TYPE_CHECKING:
    from cellglot.model_cards import Published


def run_demo(cells: Path | None, labels: str | None, output: Path, quick: bool, seed: int) -> None:
    """Run the demo on cells, by default on blood cells that ship with scanpy.

    Parameters
    ----------
    cells, labels
        File of cells, and the column of obs with the classes.
    output
        Folder for the result.
    quick
        Train a tenth of the steps.
    seed
        Seed of everything that is drawn.

    Raises
    ------
    ValueError
        If there are cells without a column of classes.
    """
    if cells is not None and labels is None:
        raise ValueError("name the column of obs with the classes: --labels COLUMN")
    if cells is not None:
        existing(cells)
    from cellglot.demo.demo import Demo

    publisher = functools.partial(_publish, source=None if cells is None else cells.name)
    Demo(cells, labels or "bulk_labels", output, quick, seed, publisher).run()


def _publish(folder: Path, output: Path, cells: Path, evaluation: Path, source: str | None) -> "Published":
    """Write a model of the demo with its card, and check it in a process without cellglot."""
    from cellglot.model_cards.card.details import CardDetails
    from cellglot.model_cards.publishing import publish

    if source is None:
        data, terms = "700 blood cells of a healthy donor (10x Genomics' 68k PBMC), which scanpy ships.", "CC BY 4.0"
    else:
        data, terms = f"Cells of {source}.", "not stated: say it before you share the model"
    details = CardDetails(
        license="apache-2.0",
        training_data=data,
        training_data_license=terms,
        summary="Made by the demo of cellglot in minutes. It is too small for other use.",
    )
    return publish(folder, output=output, details=details, cells=cells, evaluation=evaluation, overwrite=True)


__all__ = ["run_demo"]
