"""Published folders of the demo's models."""

from pathlib import Path

from cellglot.model_cards.card.details import CardDetails
from cellglot.model_cards.publishing import Published, publish


def publish_demo_model(
    folder: Path, output: Path, cells: Path, evaluation: Path, source: str | None = None
) -> Published:
    """Stage a model of the demo with its card, and check it in a process without cellglot.

    Parameters
    ----------
    cells
        File of cells for the card's examples.
    evaluation
        JSON of the demo's evaluation.
    source
        Name of the caller's file of cells; None for those that ship with scanpy.
    """
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


__all__ = ["publish_demo_model"]
