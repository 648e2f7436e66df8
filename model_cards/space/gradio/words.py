"""What is said of a visitor's cells, in plain words."""

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cellglot.inputs.errors import message_of
from cellglot.model_cards.space.gradio.annotator import Annotated
from cellglot.modeling.annotation_calibration import ASSIGNED, REASONS, UNASSIGNED
from cellglot.tokenization.gene_report import GeneReport


_log = logging.getLogger(__name__)

FINE, NOTE, WARNING = "fine", "note", "warning"
FEW_COUNTS = 0.6  # share of counts on known genes below which the page warns
LONGEST = 900
UNKNOWN_ERROR = (
    "Something in cellglot failed with these cells. That is a mistake of ours, not of yours: please report it with "
    "the file's format, at best with a few of its cells"
)


@dataclass(frozen=True)
class Remark:
    """A sentence about the cells.

    Parameters
    ----------
    kind
        `FINE`, `NOTE` or `WARNING`.
    """

    kind: str
    text: str


def refusal(error: BaseException, files: Iterable[str | os.PathLike] = ()) -> str:
    """Return why cells were refused, in a sentence with the visitor's names of files.

    Parameters
    ----------
    files
        Paths on this machine, which are shortened to the names of the files.
    """
    said = message_of(error)
    if said is None:
        _log.error("a visitor's cells failed", exc_info=error)
        return UNKNOWN_ERROR
    for file in sorted(map(str, files), key=len, reverse=True):
        said = said.replace(file, Path(file).name).replace(f"{Path(file).parent}{os.sep}", "")
    said = said.replace("the AnnData: ", "").replace("the AnnData", "the table")
    return said if len(said) <= LONGEST else f"{said[:LONGEST]} ..."


def audit(result: Annotated) -> list[Remark]:
    """Return what was found in the cells: where counts are, genes matched and lost, cells refused and why."""
    cells, report = result.cells, result.found.genes
    adata = cells.adata
    told = [
        Remark(
            FINE,
            f"{cells.name}: {cells.n_cells:,} cells x {adata.n_vars:,} genes. Raw counts are in {cells.counts_in}.",
        )
    ]
    told += [Remark(NOTE, note if note.endswith(".") else f"{note}.") for note in cells.notes]
    if result.species == "mouse":
        told.append(Remark(NOTE, "Genes of mouse were read as their human one-to-one orthologs."))
    if cells.left_out:
        kinds = ", ".join(f"{n:,} of type {kind}" for kind, n in cells.left_out.items())
        told.append(Remark(NOTE, f"Features that are not genes were left out: {kinds}."))
    told += _genes(report)
    told += _cells(result)
    return told


def _genes(report: GeneReport) -> list[Remark]:
    ways = {"ensembl_id": "Ensembl id", "versioned_id": "Ensembl id with a version", "cleaned_name": "cleaned name"}
    by = ", ".join(f"{n:,} by {ways.get(rule, rule)}" for rule, n in report.matched_by_rule.items() if n)
    kind = WARNING if report.coverage < FEW_COUNTS else FINE
    told = [
        Remark(
            kind,
            f"The model knows {report.matched:,} of {report.genes:,} genes ({by}). They have {report.coverage:.1%} of "
            "the counts.",
        )
    ]
    if report.largest_losses:
        largest = ", ".join(name for name, _ in report.largest_losses[:5])
        told.append(Remark(NOTE, f"Genes that the model does not know, with the most counts: {largest}."))
    if report.cleaned_names:
        names = ", ".join(f"{name} for {gene}" for name, gene in report.cleaned_names[:3])
        told.append(Remark(NOTE, f"Names of genes were cleaned, such as {names}."))
    if report.summed:
        told.append(Remark(NOTE, f"{report.summed:,} columns were added to another column of the same gene."))
    told += [Remark(NOTE, text if text.endswith(".") else f"{text}.") for text in (report.note, report.hint) if text]
    return told


def _cells(result: Annotated) -> list[Remark]:
    told = []
    decisions = getattr(result.found, "decisions", None)
    if decisions is None:
        nothing = sum(name is None for name in result.found.predicted)
        if nothing:
            told.append(Remark(WARNING, f"{_cells_have(nothing)} no type: no gene of the model is expressed."))
        return told
    counts = np.bincount(decisions.reason, minlength=len(REASONS))
    for code, (reason, count) in enumerate(zip(REASONS, counts, strict=True)):
        if count and code != ASSIGNED:
            told.append(Remark(WARNING, f"{_cells_have(int(count))} no type: {reason}."))
    return told


def _cells_have(count: int) -> str:
    return "1 cell has" if count == 1 else f"{count:,} cells have"


def headline(result: Annotated) -> Remark:
    """Return the sentence to be read first."""
    said = result.found.headline if hasattr(result.found, "headline") else ""
    if said.startswith("WARNING: "):
        text = said.removeprefix("WARNING: ")
        return Remark(WARNING, text[0].upper() + text[1:])
    predicted = [name for name in result.found.predicted if name is not None and name != UNASSIGNED]
    cells = "1 cell has" if len(result.found) == 1 else f"{len(predicted):,} of {len(result.found):,} cells have"
    types = len(set(predicted))
    return Remark(FINE, f"{cells} a type. Found: {types:,} {'type' if types == 1 else 'types'}.")


def type_rows(result: Annotated) -> list[dict[str, Any]]:
    """Return the types of the table, the most frequent first; cells without a type come last.

    Each has ``name``, ``id`` (of the Cell Ontology, or ""), ``cells``, ``share``, ``confidence`` (median), ``broader``
    (share of cells for which a broader type is given, or None) and ``typed``.
    """
    predicted = np.array([name or UNASSIGNED for name in result.found.predicted], dtype=object)
    ids = {name: str(given) for name, given in zip(predicted, _ids(result), strict=True) if given}
    decisions = getattr(result.found, "decisions", None)
    rows = []
    for name, count in zip(*np.unique(predicted.astype(str), return_counts=True), strict=True):
        mine = predicted == name
        known = result.confidence[mine][np.isfinite(result.confidence[mine])]
        rows.append(
            {
                "name": str(name),
                "id": ids.get(str(name), "") if name != UNASSIGNED else "",
                "cells": int(count),
                "share": count / len(predicted),
                "confidence": float(np.median(known)) if len(known) else None,
                "broader": None if decisions is None else float((decisions.broader[mine] >= 0).mean()),
                "typed": name != UNASSIGNED,
            }
        )
    return sorted(rows, key=lambda row: (not row["typed"], -row["cells"], row["name"]))


def _ids(result: Annotated) -> Sequence[Any]:
    return [None if value != value else value for value in result.columns["cell_type_ontology_term_id"]]


def cell_facts(result: Annotated, cell: int) -> list[tuple[str, str]]:
    """Return what is known of one cell, as (what, value)."""
    columns = result.columns

    def said(name: str) -> Any:
        if name not in columns:
            return None
        value = list(columns[name])[cell] if not hasattr(columns[name], "__getitem__") else columns[name][cell]
        return None if value is None or value != value else value

    shown = [
        ("confidence", None if np.isnan(result.confidence[cell]) else f"{result.confidence[cell]:.2f}"),
        ("may also be", said("prediction_set")),
        ("broader type", said("broader_type")),
        ("novelty", None if said("novelty") is None else f"{said('novelty'):.2f}"),
        ("why it has no type", said("reason")),
        ("Cell Ontology", said("cell_type_ontology_term_id")),
    ]
    return [(what, str(value)) for what, value in shown if value is not None]


__all__ = ["FINE", "NOTE", "WARNING", "Remark", "audit", "cell_facts", "headline", "refusal", "type_rows"]
