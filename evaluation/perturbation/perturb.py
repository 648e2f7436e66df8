"""In-silico perturbation of the cells of a file or an AnnData: from names of genes to one line for each."""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cellglot.evaluation.embedding import evaluated_on
from cellglot.evaluation.output import write_table
from cellglot.evaluation.perturbation.effects import PART_CELLS, PART_COPIES, FinishedParts, Measuring, in_parts
from cellglot.evaluation.perturbation.genes import all_genes, find_genes, matched_controls
from cellglot.evaluation.perturbation.result import PerturbedGenes, summarise
from cellglot.evaluation.perturbation.states import ChosenCells, Direction, choose_cells
from cellglot.evaluation.perturbation.tokens import (
    DELETE,
    CellTokens,
    Expression,
    Reading,
    high_values,
    measure_expression,
    read_once,
)
from cellglot.modeling.loaded_model import LoadedModel, weights_checksum
from cellglot.modeling.masked_genes import cell_encoder, tokens_read
from cellglot.modeling.perturbed_genes import Change, Copies, embed_tokens
from cellglot.progress import progress_bars
from cellglot.tokenization.reading.cells import read_cells


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """What to perturb, and what to compare it with.

    Parameters
    ----------
    kind
        ``"delete"`` or ``"overexpress"``.
    genes
        Ensembl ids, symbols or aliases; None for all genes that the cells express.
    towards, column, cell_type, max_cells
        As for `cellglot.evaluation.perturbation.states.choose_cells`.
    controls
        Control genes for each gene; 0 for none.
    permutations
        Permutations for each gene.
    seed
        Of everything that is drawn.
    """

    kind: str = DELETE
    genes: Sequence[str] | None = None
    towards: str | None = None
    column: str | None = None
    cell_type: str | None = None
    controls: int = 50
    permutations: int = 1000
    max_cells: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        for name in ("controls", "permutations"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} {getattr(self, name)}: it is 0 or more")
        if self.genes is not None and not self.genes:
            raise ValueError("no genes to perturb: name genes, or take all by all_genes (--all-genes)")


@dataclass
class Embedded:
    """Embeddings before the perturbation.

    Parameters
    ----------
    before
        Of the perturbed cells that express a gene of the model, in their order.
    places
        Of these cells among all chosen cells, shape (cells,).
    direction
        The way to the target state; None without one.
    """

    before: Copies
    places: np.ndarray
    direction: Direction | None = None


def perturb_cells(
    model: LoadedModel,
    cells: Any,
    request: Request,
    *,
    output: Path | None = None,
    layer: str | None = None,
    species: str | None = None,
    gene_column: str | None = None,
    min_coverage: float | None = None,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    progress: bool = True,
    overwrite: bool = False,
) -> PerturbedGenes:
    """Perturb genes of cells, one at a time, and measure what the model makes of it.

    Parameters
    ----------
    cells
        File of cells, or an AnnData.
    output
        Table to write, ``.csv``, ``.tsv`` or ``.parquet``. Finished cells are kept in a folder beside it,
        ``OUTPUT.unfinished``, until it is written: the same call resumes a stopped run.
    layer, species
        As for `read_cells`.
    gene_column, min_coverage
        As for the tokenizers.
    overwrite
        Replace the table, and the parts of another run.

    Returns
    -------
    PerturbedGenes
        One line for each gene.

    Raises
    ------
    ValueError
        If a gene or a state is not there, or too few genes match.
    """
    with read_cells(cells, layer=layer, species=species) as opened:
        chosen = choose_cells(
            opened,
            column=request.column,
            cell_type=request.cell_type,
            towards=request.towards,
            max_cells=request.max_cells,
            seed=request.seed,
        )
        read = tokens_read(cell_encoder(model.network))
        tokens = CellTokens.open(model.tokenizer, opened.counts, gene_column, read)
        expression = measure_expression(tokens, chosen.start)
        where = opened.name if chosen.of == "all cells" else f"{opened.name}, {chosen.of}"
        genes, controls = _genes(model, expression, request, where)
        tested = np.unique(np.concatenate([genes, *controls]))
        reading = read_once(tokens, chosen.start, tested, request.kind, min_coverage)
        tested, controls, change = _change(tokens, model, chosen, tested, genes, controls, request)
        with evaluated_on(model.network, device) as place:
            embedded = _embed(model, tokens, chosen, reading, change, batch_size, place, progress)
            run = _run(model, chosen, reading, tested, embedded, request)
            directions = [] if embedded.direction is None else [embedded.direction]
            measuring = Measuring(model.network, tested, change, directions, batch_size)
            folder = None if output is None else output.with_name(f"{output.name}.unfinished")
            parts = FinishedParts(run, folder, overwrite)
            with parts:
                resumed = _measure(parts, measuring, tokens, chosen, reading, embedded, place, progress)
                found = summarise(
                    model, opened, chosen, expression, reading, parts.together(), tested, genes, controls, request
                )
                found.resumed_cells = resumed
                if output is not None:
                    write_table(found.table(), output)
                    found.written = str(output)
                parts.remove()
            parts.remove_folder()
    return found


def _genes(
    model: LoadedModel, expression: Expression, request: Request, where: str
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the genes to perturb and the controls of each."""
    if request.genes is None:
        genes = all_genes(expression, where)
    else:
        genes = find_genes(request.genes, model.tokenizer.vocabulary, expression, request.kind, where)
    candidates = np.flatnonzero(expression.cells > 0 if request.kind == DELETE else expression.measured)
    if request.genes is not None:
        candidates = np.setdiff1d(candidates, genes)
    return genes, matched_controls(genes, expression, candidates, request.controls, request.seed)


def _change(
    tokens: CellTokens,
    model: LoadedModel,
    chosen: ChosenCells,
    tested: np.ndarray,
    genes: np.ndarray,
    controls: list[np.ndarray],
    request: Request,
) -> tuple[np.ndarray, list[np.ndarray], Change]:
    """Return what is done to genes. In Exceiver, cells that express a gene give the value to overexpress it with."""
    if request.kind == DELETE or tokens.ranked:
        return tested, controls, tokens.change(request.kind)
    every = chosen.start if chosen.target is None else np.union1d(chosen.start, chosen.target)
    values = high_values(tokens, every, tested)
    vocabulary = model.tokenizer.vocabulary
    lost = [vocabulary.symbol(vocabulary.tokens[gene]) for gene in genes.tolist() if gene not in values]
    if lost:
        raise ValueError(
            f"{', '.join(lost)}: expressed in none of the chosen cells, so that there is no value to overexpress "
            "with; this model reads values. Choose cells of which some express the gene, or a model of rank tokens"
        )
    controls = [np.array([gene for gene in own.tolist() if gene in values], dtype=np.int64) for own in controls]
    tested = tested[np.isin(tested, list(values))]
    return tested, controls, tokens.change(request.kind, values)


# -------------------------------------------------------------------- before the perturbation


def _embed(
    model: LoadedModel,
    tokens: CellTokens,
    chosen: ChosenCells,
    reading: Reading,
    change: Change,
    batch_size: int,
    place: torch.device,
    progress: bool,
) -> Embedded:
    """Embed the cells to perturb and those of the target state."""
    places = np.setdiff1d(np.arange(len(chosen.start)), reading.cells_without_genes)
    if not len(places):
        raise ValueError(f"none of {len(chosen.start):,} cells to perturb expresses a gene of {model.name}")
    number = len(chosen.start) + (0 if chosen.target is None else len(chosen.target))
    bars = progress_bars(shown=progress)
    with bars:
        task = bars.add_task("embedding", total=number)

        def advance(number: int) -> None:
            bars.advance(task, number)

        parts = list(embedded_parts(model.network, tokens, chosen.start, change, batch_size, place, advance))
        before = Copies(
            parts[0].genes,
            torch.cat([part.embeddings for part in parts]),
            None if parts[0].scores is None else torch.cat([part.scores for part in parts if part.scores is not None]),
        )
        if chosen.target is None:
            return Embedded(before, places)
        total, n_target = np.zeros(before.embeddings.shape[1]), 0
        for part in embedded_parts(model.network, tokens, chosen.target, change, batch_size, place, advance):
            total += part.embeddings.double().sum(dim=0).numpy()
            n_target += len(part.embeddings)
    if not n_target:
        raise ValueError(f"none of {len(chosen.target):,} cells of the target state expresses a gene of {model.name}")
    start = before.embeddings.double().mean(dim=0).numpy()
    return Embedded(before, places, Direction(start, total / n_target))


def embedded_parts(
    network: Any,
    tokens: CellTokens,
    numbers: np.ndarray,
    change: Change,
    batch_size: int,
    place: torch.device,
    advance: Any = lambda number: None,
) -> Iterator[Copies]:
    """Embed some cells, unchanged, in parts; those that express no gene of the model are left out.

    Parameters
    ----------
    network
        The model, in evaluation.
    numbers
        Of the cells, ascending.
    change
        Its `limit` cuts the cells.
    place
        The device.
    advance
        Called with the number of cells of each part.
    """
    waiting: list[dict[str, torch.Tensor]] = []
    seen = 0

    def embed() -> Copies:
        with torch.inference_mode():
            found = embed_tokens(network, waiting, change, batch_size)
        scores = None if found.scores is None else found.scores.float().cpu()
        return Copies(found.genes, found.embeddings.float().cpu(), scores)

    for cell in tokens.cells(numbers):
        seen += 1
        if len(cell["input_ids"]) > tokens.first:
            waiting.append({name: values.to(place) for name, values in cell.items()})
        if len(waiting) >= 4 * batch_size:
            yield embed()
            advance(seen)
            waiting, seen = [], 0
    if waiting:
        yield embed()
    advance(seen)


# -------------------------------------------------------------------- the perturbation


def _run(
    model: LoadedModel,
    chosen: ChosenCells,
    reading: Reading,
    tested: np.ndarray,
    embedded: Embedded,
    request: Request,
) -> dict[str, Any]:
    """Return what the effects depend on, as plain types."""
    way = embedded.direction
    return {
        "format_version": 1,
        "model": weights_checksum(model.network),
        "cells": reading.digest,
        "genes": hashlib.blake2b(np.ascontiguousarray(tested).data, digest_size=16).hexdigest(),
        "kind": request.kind,
        "cells_perturbed": len(chosen.start),
        "parts": [PART_CELLS, PART_COPIES],
        "towards": None
        if way is None or chosen.target is None
        else [request.towards, len(chosen.target), round(way.length, 4)],
    }


def _measure(
    parts: FinishedParts,
    measuring: Measuring,
    tokens: CellTokens,
    chosen: ChosenCells,
    reading: Reading,
    embedded: Embedded,
    place: torch.device,
    progress: bool,
) -> int:
    """Compute the parts that are not finished; return the number of cells that were."""
    row = np.zeros(len(chosen.start), dtype=np.int64)
    row[embedded.places] = np.arange(len(embedded.places))
    before, finished, resumed = embedded.before, len(parts.finished), 0
    bars = progress_bars("perturbed cells", shown=progress)
    with bars:
        task = bars.add_task("perturbing", total=reading.copies)
        cells = tokens.cells(chosen.start)
        for number, (places, part) in enumerate(
            in_parts(cells, measuring.tested, measuring.change, reading.cells_without_genes)
        ):
            if number < finished:
                resumed += len(places)
                continue
            if resumed and number == finished:
                bars.update(task, total=None)
            at = torch.from_numpy(row[places])
            own = Copies(before.genes, before.embeddings[at], None if before.scores is None else before.scores[at])
            effects = measuring.effects(places, part, own, place)
            parts.add(effects)
            bars.advance(task, len(effects.cells))
    return resumed


__all__ = ["Embedded", "Request", "embedded_parts", "perturb_cells"]
