"""The demo as the command line runs it."""

import functools
from pathlib import Path

from cellglot.verbs.cells import existing


def run_demo(cells: Path | None, labels: str | None, output: Path, quick: bool, seed: int) -> None:
    """Run the demo on cells, by default on blood cells that ship with scanpy.

    Parameters
    ----------
    cells, labels
        File of cells, and the column of obs that holds the classes.
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
        raise ValueError("name the column of obs that holds the classes: --labels COLUMN")
    if cells is not None:
        existing(cells)
    from cellglot.demo.cards import publish_demo_model
    from cellglot.demo.demo import Demo

    publisher = functools.partial(publish_demo_model, source=None if cells is None else cells.name)
    Demo(cells, labels or "bulk_labels", output, quick, seed, publisher).run()


__all__ = ["run_demo"]
