"""The parts of the page as HTML. Every text of a visitor is escaped; markup comes from the template alone."""

import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import jinja2
import numpy as np

from cellglot.evaluation.cell_plot.plot import CellPlot, pack
from cellglot.model_cards.space.gradio.annotator import Annotated, Annotator
from cellglot.model_cards.space.gradio.genes import as_bytes
from cellglot.model_cards.space.gradio.limits import MEGABYTE
from cellglot.model_cards.space.gradio.reasons import Reasons
from cellglot.model_cards.space.gradio.words import Remark, audit, cell_facts, headline, type_rows
from cellglot.modeling.annotation_calibration import UNASSIGNED
from cellglot.modeling.collection import CollectionModel


STEPS = ("Read the file", "Annotate the cells", "Draw the map", "Write the files")


@cache
def asset(name: str) -> str:
    """Return a file of the page."""
    return files("cellglot.model_cards.space.gradio").joinpath(name).read_text(encoding="utf-8")


@cache
def _parts() -> Any:
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(asset("parts.html.jinja")).module


def hero(annotator: Annotator, facts: CollectionModel | None) -> str:
    """Return the head of the page: what it does, by which model."""
    return str(_parts().hero(annotator.name, annotator.loaded.classes, annotator.by_texts, facts))


def about(annotator: Annotator, facts: CollectionModel | None) -> str:
    """Return what the model knows, how well, and the limits of the page."""
    limits = annotator.limits
    return str(
        _parts().about(
            annotator.name, annotator.loaded.classes, facts, limits, limits.file_bytes // MEGABYTE, annotator.by_texts
        )
    )


def waiting() -> str:
    """Return what is shown before there are results."""
    return str(_parts().waiting())


def progress(step: int, done: int = 0, total: int = 0) -> str:
    """Return the list of steps; those before `step` are done.

    Parameters
    ----------
    step
        Number in `STEPS` of the one at work; their number when all are done.
    done, total
        Cells that are annotated, and all.
    """
    share = round(100 * done / total) if total else None
    return str(_parts().progress(STEPS, step, done, total, share))


def formats() -> str:
    """Return which files can be dropped."""
    return str(_parts().formats())


def refused(sentence: str) -> str:
    """Return why cells were refused."""
    return str(_parts().refused(sentence))


def summary(result: Annotated) -> str:
    """Return the numbers to be seen first, and the audit."""
    report = result.found.genes
    rows = type_rows(result)
    typed = sum(row["cells"] for row in rows if row["typed"])
    numbers = [
        (f"{len(result.found):,}", "cell" if len(result.found) == 1 else "cells"),
        (f"{sum(row['typed'] for row in rows):,}", "types found"),
        (_share(typed / max(len(result.found), 1)), "cells with a type"),
        (_share(report.coverage), "of counts on known genes"),
    ]
    return str(_parts().summary(headline(result), numbers, audit(result)))


def _share(value: float) -> str:
    """Return a share in percent; 100% only where it is all."""
    return f"{value:.0%}" if value in (0, 1) or 0.005 <= value < 0.995 else f"{min(max(value, 0.001), 0.999):.1%}"


def types(result: Annotated) -> str:
    """Return the table of types."""
    rows = type_rows(result)
    most = max((row["share"] for row in rows), default=1)
    with_broader = any(row["broader"] is not None for row in rows)
    return str(_parts().types(rows, most, with_broader))


def cell(result: Annotated, number: int, reasons: Reasons | None, refusal: str = "") -> str:
    """Return what is said of one cell, and the genes that its type rests on."""
    name = str(result.cells.adata.obs_names[number])
    label = result.found.predicted[number] or UNASSIGNED
    genes = []
    if reasons is not None:
        shares = reasons.moved if reasons.lost is None else [max(value, 0.0) for value in reasons.lost]
        top = max([*shares, 1e-9])
        genes = [
            (gene, round(100 * share / top), value)
            for gene, share, value in zip(reasons.genes, shares, reasons.lost or reasons.moved, strict=True)
        ]
    return str(_parts().cell(name, label, cell_facts(result, number), reasons, genes, refusal))


def no_cell() -> str:
    """Return what is shown before a cell is chosen."""
    return str(_parts().no_cell())


def no_map(result: Annotated) -> str:
    """Return why there is no map."""
    number = len(result.found)
    said = "1 cell is" if number == 1 else f"{number:,} cells are"
    return json.dumps(
        {"says": f"{said} too few for a map: it needs at least four. The table and the files have their types."}
    )


def cell_map(result: Annotated, visit: str) -> str:
    """Return the data of the map as JSON: coordinates, types, confidence and novelty; genes are asked for by name.

    Parameters
    ----------
    visit
        Key of the visit, with which the page asks for genes.
    """
    assert result.coordinates is not None
    plot = CellPlot(result.coordinates, result.cells.adata.obs_names, "")
    predicted = [None if name is None or name == UNASSIGNED else str(name) for name in result.found.predicted]
    plot.add_classes("cell type", predicted, UNASSIGNED)
    plot.add_numbers("confidence", result.confidence)
    if result.novelty is not None:
        plot.add_numbers("novelty", result.novelty)
    given = result.cells.adata.obs.get("cell_type")
    if given is not None and 1 < given.nunique() <= 60:
        plot.add_classes("cell type in the file", given.to_numpy(dtype=object))
    data = plot.data() | {"wheel": False}
    shown = pack(np.asarray(plot.shown, dtype="<u4"))
    return json.dumps({"visit": visit, "plot": data, "shown": shown, "genes": len(result.genes.symbols)})


def gene_colouring(result: Annotated, name: str) -> dict[str, Any] | None:
    """Return a gene as a colouring of the map; None if the file has no such gene."""
    number = result.genes.find(name)
    if number is None or result.coordinates is None:
        return None
    shown = np.flatnonzero(np.isfinite(result.coordinates).all(axis=1))
    codes, high = as_bytes(result.gene_values(number)[shown])
    return {
        "name": result.genes.symbols[number], "kind": "numbers", "gene": True, "values": pack(codes), "low": 0.0,
        "high": high, "says": "log1p of counts per 10,000",
    }  # fmt: skip


def remarks(given: Sequence[Remark]) -> str:
    """Return sentences as a list."""
    return str(_parts().remarks(given))


__all__ = [
    "about",
    "asset",
    "cell",
    "cell_map",
    "formats",
    "gene_colouring",
    "hero",
    "no_cell",
    "no_map",
    "progress",
    "refused",
    "remarks",
    "summary",
    "types",
    "waiting",
]
