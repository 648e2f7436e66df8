"""The result of a perturbation: one line for each gene, and a summary in words."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from cellglot.evaluation.perturbation.effects import Effects
from cellglot.evaluation.perturbation.states import ChosenCells
from cellglot.evaluation.perturbation.statistics import (
    GeneEffects,
    false_discovery_rate,
    permutation_p,
    rank_among,
)
from cellglot.evaluation.perturbation.tokens import DELETE, Expression, Reading
from cellglot.modeling.loaded_model import LoadedModel, without_adapter
from cellglot.tokenization.gene_report import GeneReport
from cellglot.tokenization.reading.cells import Cells


SHOWN = 10  # genes of the summary


@dataclass
class PerturbedGenes:
    """What perturbing genes did, the genes with the largest effect first.

    Parameters
    ----------
    rows
        One row for each gene, as `table` describes.
    kind
        ``"delete"`` or ``"overexpress"``.
    towards
        The target state; None without one.
    cells
        The cells, in words.
    genes
        Report of the matched and lost genes of the file.
    notes
        What has to be known: fewer control genes than asked, genes beyond the context, cells that were left out.
    resumed_cells
        Number of cells that an earlier run had finished.
    written
        File of the table; None if none was written.
    """

    rows: pd.DataFrame
    kind: str
    towards: str | None
    cells: str
    genes: GeneReport
    notes: list[str] = field(default_factory=list)
    resumed_cells: int = 0
    written: str | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def statistic(self) -> str:
        """The column that is ranked and tested: ``progress`` with a target state, else ``shift_cosine``."""
        return "shift_cosine" if self.towards is None else "progress"

    def table(self) -> pd.DataFrame:
        """Return one row for each gene, indexed by its id.

        Returns
        -------
        pandas.DataFrame
            ``symbol``; ``perturbation``; ``cells``, in which the gene was changed; ``mean_expression``, of counts
            scaled to 10,000 in each cell; ``shift_cosine`` and ``shift_euclidean``, how far the embedding moves, mean
            over these cells; with a target state ``progress``, the share of the way to it, and ``approach``, the
            increase of the cosine similarity to it; the same of the control genes, ``control_...``; ``controls``,
            their number; ``rank_among_controls``; ``p_value`` and ``fdr``; ``change CLASS`` for each class, the mean
            change of its probability.
        """
        return self.rows

    def summary(self) -> str:
        """Summarise the result; the first lines are the genes with the largest effect."""
        what = {"shift_cosine": "shift (1 - cosine)", "progress": f"share of the way towards {self.towards}"}
        verb = "deleted" if self.kind == DELETE else "overexpressed"
        lines = [f"{len(self):,} genes {verb} one at a time in {self.cells}, by {what[self.statistic]}:"]
        columns = [
            "symbol",
            "cells",
            self.statistic,
            f"control_{self.statistic}",
            "rank_among_controls",
            "p_value",
            "fdr",
        ]
        names = ["gene", "cells", "mean", "controls", "rank", "p", "fdr"]
        shown = self.rows[columns].head(SHOWN).set_axis(names, axis=1)
        lines.append(shown.to_string(index=False, float_format=lambda value: f"{value:.3g}"))
        lines += [f"... and {len(self) - SHOWN:,} more"] if len(self) > SHOWN else []
        lines += self.notes
        lines.append(self.genes.summary())
        lines += [f"{self.resumed_cells:,} cells were finished by an earlier run"] if self.resumed_cells else []
        lines += [self.written] if self.written else []
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.summary()


def summarise(
    model: LoadedModel,
    opened: Cells,
    chosen: ChosenCells,
    expression: Expression,
    reading: Reading,
    effects: Effects,
    tested: np.ndarray,
    genes: np.ndarray,
    controls: list[np.ndarray],
    request: Any,
) -> PerturbedGenes:
    """Make one row for each gene of the effects on cells.

    Parameters
    ----------
    effects
        Of all tested genes.
    tested
        Token ids of the genes and of all controls.
    genes
        Token ids of the genes.
    controls
        Token ids of each gene's controls.
    request
        The `Request`.
    """
    place_of = {gene: place for place, gene in enumerate(tested.tolist())}
    at = np.array([place_of[gene] for gene in genes.tolist()])
    of_controls = [np.array([place_of[gene] for gene in own.tolist()], dtype=np.int64) for own in controls]
    vocabulary = model.tokenizer.vocabulary
    ids = [vocabulary.tokens[gene] for gene in genes.tolist()]
    columns: dict[str, Any] = {
        "symbol": [vocabulary.symbol(gene) for gene in ids],
        "perturbation": request.kind,
        "cells": np.bincount(effects.genes, minlength=len(tested))[at],
        "mean_expression": expression.means[genes],
    }
    measured = {"shift_cosine": effects.values["cosine"], "shift_euclidean": effects.values["euclidean"]}
    if request.towards is not None:
        measured |= {name: effects.values[name][:, 0] for name in ("progress", "approach")}
    statistic = "shift_cosine" if request.towards is None else "progress"
    numbers = np.bincount(effects.genes, minlength=len(tested))
    for name, values in measured.items():
        sums = np.bincount(effects.genes, weights=values, minlength=len(tested))
        means = np.where(numbers > 0, sums / np.maximum(numbers, 1), np.nan)
        columns[name] = means[at]
        columns[f"control_{name}"] = [_mean(means[own]) for own in of_controls]
        if name == statistic:
            ranks = [rank_among(means[place], means[own]) for place, own in zip(at, of_controls, strict=True)]
    by_gene = GeneEffects.sort(effects.cells, effects.genes, measured[statistic], len(tested))
    columns["controls"] = [len(own) for own in controls]
    columns["rank_among_controls"] = ranks
    columns["p_value"] = [
        permutation_p(by_gene, place, own, request.permutations, request.seed)
        for place, own in zip(at.tolist(), of_controls, strict=True)
    ]
    columns["fdr"] = false_discovery_rate(np.array(columns["p_value"]))
    rows = pd.DataFrame(columns, index=pd.Index(ids, name="gene"))
    if effects.changes is not None:
        rows = pd.concat([rows, _changes(model, effects.changes[at], columns["cells"], rows.index)], axis=1)
    order = np.argsort(-rows[statistic].to_numpy(), kind="stable")  # NaN last
    words = f"{len(chosen.start):,} cells of {opened.name}" + ("" if chosen.of == "all cells" else f" ({chosen.of})")
    notes = _notes(chosen, expression, reading, rows, genes, request)
    return PerturbedGenes(rows.iloc[order], request.kind, request.towards, words, reading.report, notes)


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def _changes(model: LoadedModel, sums: np.ndarray, cells: np.ndarray, index: pd.Index) -> pd.DataFrame:
    config = without_adapter(model.network).config
    names = model.classes if model.classes else [config.id2label[i] for i in range(sums.shape[1])]
    means = np.where(cells[:, None] > 0, sums / np.maximum(cells[:, None], 1), np.nan)
    return pd.DataFrame(means, index=index, columns=[f"change {name}" for name in names])


def _notes(
    chosen: ChosenCells, expression: Expression, reading: Reading, rows: pd.DataFrame, genes: np.ndarray, request: Any
) -> list[str]:
    notes = []
    if chosen.left_out:
        notes.append(f"{chosen.left_out:,} further cells were not drawn (max_cells {len(chosen.start):,})")
    if len(reading.cells_without_genes):
        notes.append(f"{len(reading.cells_without_genes):,} cells express no gene of the model and were left out")
    few = rows["controls"] < request.controls
    if few.any():
        least = rows["controls"][few]
        notes.append(
            f"{int(few.sum()):,} of {len(rows):,} genes have fewer than {request.controls} control genes of half to "
            f"twice their mean expression: {_named(rows['symbol'][few], least)}"
        )
    beyond = (rows["cells"].to_numpy() == 0) & (expression.cells[genes] > 0)
    if request.kind == DELETE and beyond.any():
        named = _named(rows["symbol"][beyond], expression.cells[genes][beyond], " cells")
        notes.append(
            f"{int(beyond.sum()):,} genes are expressed, but beyond the tokens that the model reads, or alone in "
            f"their cells, and have no effect: {named}"
        )
    return notes


def _named(symbols: pd.Series, numbers: Any, unit: str = "") -> str:
    pairs = [f"{symbol} {number:,}{unit}" for symbol, number in zip(symbols[:5], numbers[:5], strict=True)]
    return ", ".join(pairs) + (", ..." if len(symbols) > 5 else "")


__all__ = ["PerturbedGenes", "summarise"]
