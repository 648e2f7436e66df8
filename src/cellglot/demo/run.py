"""The demo as the command line runs it."""

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellglot.verbs.cells import existing


if TYPE_CHECKING:
    from cellglot.model_cards import Published

SEEN = (
    " Its base, {base}, was trained on the same 700 cells: the example cells and those of the scores here are not "
    "new to it. The card of {base} has scores on laboratories that were left out of training."
)


def run_demo(
    cells: Path | None, labels: str | None, output: Path, quick: bool = False, full: bool = False, seed: int = 0
) -> None:
    """Run the demo on cells, by default on blood cells that ship with scanpy.

    Parameters
    ----------
    cells, labels
        File of cells, and the column of obs with the classes.
    output
        Folder for the result.
    quick
        Train a tenth of the steps.
    full
        Pretrain all three models from the start, instead of a model that ships.
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
    if full:
        from cellglot.demo.full import FullDemo as Chosen
    else:
        from cellglot.demo.short import ShortDemo as Chosen  # type: ignore[assignment]

    publisher = functools.partial(_publish, source=None if cells is None else cells.name)
    Chosen(cells, labels or "bulk_labels", output, quick, seed, publisher).run()


def _publish(folder: Path, output: Path, cells: Path, evaluation: Path, source: str | None) -> "Published":
    """Write a model of the demo with its card, and check it in a process without cellglot."""
    from cellglot.model_cards.card.details import CardDetails
    from cellglot.model_cards.publishing import publish
    from cellglot.modeling.collection import read_collection

    if source is None:
        data, terms = "700 blood cells of a healthy donor (10x Genomics' 68k PBMC), which scanpy ships.", "CC BY 4.0"
    else:
        data, terms = f"Cells of {source}.", "not stated: say it before you share the model"
    base, summary = None, "Made by the demo of cellglot in minutes. It is too small for other use."
    if (folder / "adapter_config.json").exists():
        settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        base = next(m for m in read_collection() if m.name == Path(settings["base_model_name_or_path"]).name)
        summary += "" if source is not None else SEEN.format(base=base.name)
    details = CardDetails(
        license="apache-2.0" if base is None else base.license,  # an adapter has the terms of its base
        base_model=None if base is None else base.name,
        training_data=data,
        training_data_license=terms,
        summary=summary,
    )
    files: dict[str, Any] = {"cells": cells, "evaluation": evaluation, "base": None if base is None else base.path}
    return publish(folder, output=output, details=details, overwrite=True, **files)


__all__ = ["run_demo"]
