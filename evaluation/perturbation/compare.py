"""Deletions in control cells by a model, beside real knock-outs."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.progress import Progress

from cellglot.evaluation.embedding import evaluated_on
from cellglot.evaluation.perturbation.effects import Effects, Measuring, in_parts
from cellglot.evaluation.perturbation.genes import matched_controls
from cellglot.evaluation.perturbation.knock_outs import CONTROLS, LACKING, PERMUTATIONS, KnockOutCells, Row, verdicts
from cellglot.evaluation.perturbation.perturb import embedded_parts
from cellglot.evaluation.perturbation.states import Direction
from cellglot.evaluation.perturbation.statistics import GeneEffects
from cellglot.evaluation.perturbation.tokens import DELETE, CellTokens, measure_expression, read_once
from cellglot.modeling.masked_genes import cell_encoder, tokens_read
from cellglot.modeling.perturbed_genes import Copies, perturb_tokens
from cellglot.progress import progress_bars
from cellglot.tokenization.reading.cells import Cells


Tokens = dict[str, torch.Tensor]


def compare_model(
    model: Any,
    cells: Cells,
    chosen: KnockOutCells,
    *,
    all_genes: bool = False,
    controls: int = CONTROLS,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
    gene_column: str | None = None,
    min_coverage: float | None = None,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> list[Row]:
    """Delete genes in control cells by a model, and compare where the cells move with real knock-outs.

    The direction of a knock-out goes from the mean embedding of the control cells to that of its cells; once with
    all genes, and once with the counts of the knocked-out gene set to zero in both, so that it does not count itself.
    Controls of a gene have between half and twice its mean expression.

    Parameters
    ----------
    model
        With its ``network`` and ``tokenizer``: a `LoadedModel` or an `EvaluatedModel`.
    cells
        The opened file.
    chosen
        Control cells and knock-outs.
    all_genes
        Delete every gene that the control cells express; by default those of the knock-outs and their controls.
    controls, permutations
        For each gene.
    seed
        Of controls and permutations.
    gene_column, min_coverage, batch_size, device
        As for `cellglot.embed`.

    Returns
    -------
    list of dict
        For each knock-out ``state``, ``gene``, ``verdict``; ``cells`` in which the gene was deleted, ``target_cells``,
        ``controls``, and what `verdicts` returns. Where nothing can be compared, ``verdict`` says why and the others
        are missing.

    Raises
    ------
    GeneCoverageError
        If too few counts of the control cells are on genes of the model.
    """
    read = tokens_read(cell_encoder(model.network))
    tokens = CellTokens.open(model.tokenizer, cells.counts, gene_column, read)
    expression = measure_expression(tokens, chosen.start)
    expressed = np.flatnonzero(expression.cells > 0)
    read_once(tokens, chosen.start, expressed, DELETE, min_coverage)
    ids = model.tokenizer.vocabulary.resolve(list(chosen.genes.values())).token_ids.tolist()
    gene_of = {state: gene for state, gene in zip(chosen.genes, ids, strict=True) if gene in expressed}
    lost = {state: LACKING for state in chosen.targets if state not in gene_of}
    rows: list[Row] = []
    with evaluated_on(model.network, device) as place, progress_bars("cells", shown=progress) as bars:
        work = _Work(model.network, tokens, batch_size, place, bars)
        ways: dict[str, list[Direction]] = {}
        before = np.zeros((0, 0))
        if gene_of:
            ways, before = work.directions(chosen, gene_of, lost)
        if ways:
            wanted = np.array([gene_of[state] for state in ways], dtype=np.int64)
            matched = matched_controls(wanted, expression, expressed, controls, seed)
            tested = expressed if all_genes else np.unique(np.concatenate([wanted, *matched]))
            effects = work.delete(chosen.start, before, tested, [way for pair in ways.values() for way in pair])
    for number, state in enumerate(ways):
        gene, own = int(np.searchsorted(tested, gene_of[state])), np.searchsorted(tested, matched[number])
        changed = int((effects.genes == gene).sum())
        if not changed:
            lost[state] = "in no control cell among the genes that the model reads"
            continue
        moved = effects.values["progress"][:, 2 * number : 2 * number + 2].T
        both = [GeneEffects.sort(effects.cells, effects.genes, values, len(tested)) for values in moved]
        row = {"state": state, "gene": chosen.genes[state], "cells": changed}
        row |= {"target_cells": len(chosen.targets[state]), "controls": len(own)}
        rows.append(row | verdicts(both, gene, own, permutations, seed))
    said = [{"state": state, "gene": chosen.genes[state], "verdict": why} for state, why in lost.items()]
    return said + rows


@dataclass
class _Work:
    """Embeds cells with and without genes."""

    network: Any
    tokens: CellTokens
    batch_size: int
    place: torch.device
    bars: Progress

    def __post_init__(self) -> None:
        self.change = self.tokens.change(DELETE)

    def directions(
        self, chosen: KnockOutCells, gene_of: dict[str, int], lost: dict[str, str]
    ) -> tuple[dict[str, list[Direction]], np.ndarray]:
        """Return both directions of each knock-out, and the embeddings of the control cells.

        Knock-outs without a direction are added to `lost`, with the reason.
        """
        total = len(chosen.start) + sum(len(chosen.targets[state]) for state in gene_of)
        task = self.bars.add_task("embedding", total=total)
        start = self._read(chosen.start)
        before = self._embed(chosen.start, task)
        ways: dict[str, list[Direction]] = {}
        for state, gene in gene_of.items():
            cells, whole = self._read(chosen.targets[state]), self._embed(chosen.targets[state], task)
            if not len(cells) or not len(start):
                lost[state] = "no cell of it, or no control cell, expresses a gene of the model"
                continue
            without = [self._without(*given, gene) for given in ((start, before), (cells, whole))]
            try:
                ways[state] = [Direction(a.mean(axis=0), b.mean(axis=0)) for a, b in ((before, whole), without)]
            except ValueError:
                lost[state] = "its cells have the mean embedding of the control cells"
        return ways, before

    def delete(self, numbers: np.ndarray, before: np.ndarray, tested: np.ndarray, ways: list[Direction]) -> Effects:
        """Delete genes in cells, one at a time; keep the progress only."""
        measuring = Measuring(self.network, tested, self.change, ways, self.batch_size)
        cells = self._read(numbers)
        task, parts = self.bars.add_task("deleting", total=len(cells)), []
        for places, part in in_parts(iter(cells), tested, self.change, np.empty(0, dtype=np.int64)):
            own = Copies(torch.empty(0), torch.from_numpy(before[places]))
            effects = measuring.effects(places, part, own, self.place)
            effects.values = {"progress": effects.values["progress"]}
            parts.append(effects)
            self.bars.advance(task, len(places))
        return Effects.together(parts)

    def _read(self, numbers: np.ndarray) -> list[Tokens]:
        """Tokenize those of some cells that express a gene of the model."""
        return [cell for cell in self.tokens.cells(numbers) if len(cell["input_ids"]) > self.tokens.first]

    def _embed(self, numbers: np.ndarray, task: Any) -> np.ndarray:
        """Embed the same cells, float64, shape (cells, size)."""
        given = (self.network, self.tokens, numbers, self.change, self.batch_size, self.place)
        parts = [p.embeddings for p in embedded_parts(*given, lambda number: self.bars.advance(task, number))]
        return torch.cat(parts).double().numpy() if parts else np.zeros((0, 0))

    def _without(self, cells: list[Tokens], whole: np.ndarray, gene: int) -> np.ndarray:
        """Embed cells in which one gene has no counts; `whole` are their embeddings with it."""
        found = whole.copy()
        moved = [{name: values.to(self.place) for name, values in cell.items()} for cell in cells]
        wanted = torch.tensor([gene], device=self.place)
        for row, copy in enumerate(perturb_tokens(self.network, moved, wanted, self.change, self.batch_size)):
            if len(copy.genes):
                found[row] = copy.embeddings[0].double().cpu().numpy()
        return found


__all__ = ["compare_model"]
