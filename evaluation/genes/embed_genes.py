"""Genes of a model: static embeddings; with cells also contextual ones and attention, streamed in bounded memory."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from cellglot.evaluation.chosen_counts import ChosenCounts
from cellglot.evaluation.embedding import stream_batches
from cellglot.evaluation.genes.attention import Add, GeneEdges, sum_attention
from cellglot.evaluation.genes.gene_sets import LEAST, MOST, expression_bins, match_sets, score_sets
from cellglot.evaluation.genes.neighbours import neighbour_table
from cellglot.evaluation.genes.result import GeneEmbeddings
from cellglot.evaluation.genes.state_sums import StateSums
from cellglot.evaluation.genes.vectors import Embedded
from cellglot.evaluation.perturbation.states import choose_cells
from cellglot.evaluation.perturbation.tokens import CellTokens, Expression, measure_expression
from cellglot.modeling.gene_states import (
    attention_is_symmetric,
    gene_attention,
    gene_states,
    states_come_from,
    static_embeddings,
)
from cellglot.modeling.loaded_model import LoadedModel, weights_checksum
from cellglot.tokenization.count_matrix import CountMatrix
from cellglot.tokenization.gene_report import GeneReport
from cellglot.tokenization.reading.cells import read_cells


MIN_CELLS, EDGES = 10, 100_000


@dataclass(frozen=True)
class Request:
    """What to find out about genes.

    Parameters
    ----------
    column, cell_type, max_cells, seed
        Which cells, as for `cellglot.evaluation.perturbation.states.choose_cells`.
    min_cells
        Least number of cells in which the model reads a gene, for its neighbours, gene sets and attention.
    neighbours
        Nearest genes of each; 0 for none.
    gene_sets
        Name -> genes; None for none.
    set_genes
        Least and most scored genes of a set.
    permutations
        Random sets for each set.
    attention
        Whether to sum attention between genes.
    edges
        Pairs of genes to keep.
    """

    column: str | None = None
    cell_type: str | None = None
    max_cells: int | None = None
    seed: int = 0
    min_cells: int = MIN_CELLS
    neighbours: int = 0
    gene_sets: Mapping[str, Sequence[str]] | None = None
    set_genes: tuple[int, int] = (LEAST, MOST)
    permutations: int = 1000
    attention: bool = False
    edges: int = EDGES

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        for name, least in (("min_cells", 1), ("neighbours", 0), ("permutations", 0), ("edges", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} {getattr(self, name)}: it is {least} or more")
        low, high = self.set_genes
        if not 2 <= low <= high:
            raise ValueError(f"set_genes {low}, {high}: a set has at least 2 genes, and at most as many as the second")


def embed_genes(
    model: LoadedModel,
    cells: Any,
    request: Request,
    *,
    write: Callable[[GeneEmbeddings], None] | None = None,
    unfinished: Path | None = None,
    layer: str | None = None,
    species: str | None = None,
    gene_column: str | None = None,
    min_coverage: float | None = None,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    progress: bool = True,
    overwrite: bool = False,
) -> GeneEmbeddings:
    """Embed the genes of a model.

    Parameters
    ----------
    cells
        File of cells, or an AnnData; None for static embeddings alone.
    write
        Writes the result, before the sums of a finished run are deleted.
    unfinished
        Folder in which sums over cells are kept until the result is written: the same call resumes a stopped run.
    layer, species
        As for `read_cells`.
    gene_column, min_coverage
        As for the tokenizers.
    overwrite
        Delete the sums of another run.

    Returns
    -------
    GeneEmbeddings
        Embeddings, and what else was asked for.

    Raises
    ------
    ValueError
        If no cell expresses a gene of the model, no gene set is left, or a state of cells does not exist.
    """
    vocabulary = model.tokenizer.vocabulary
    ids = vocabulary.gene_token_ids
    genes = pd.DataFrame(
        {"symbol": [vocabulary.symbol(gene) for gene in vocabulary.genes]},
        index=pd.Index(vocabulary.genes, name="gene"),
    )
    static = static_embeddings(model.network, torch.from_numpy(ids)).numpy()
    found = GeneEmbeddings(model.name, genes, static)
    if cells is None:
        _look_at(found, model, np.arange(len(ids)), _corpus_statistic(found, model), request)
        if write is not None:
            write(found)
        return found
    with read_cells(cells, layer=layer, species=species) as opened:
        chosen = choose_cells(
            opened,
            column=request.column,
            cell_type=request.cell_type,
            max_cells=request.max_cells,
            seed=request.seed,
        )
        of = "" if chosen.of == "all cells" else f" ({chosen.of})"
        found.cells = f"{len(chosen.start):,} cells of {opened.name}{of}"
        if chosen.left_out:
            found.notes.append(f"{chosen.left_out:,} further cells were not drawn (max_cells {len(chosen.start):,})")
        expression = measure_expression(CellTokens.open(model.tokenizer, opened.counts, gene_column), chosen.start)
        counts = opened.counts if len(chosen.start) == len(opened) else ChosenCounts(opened.counts, chosen.start)
        options = {
            "batch_size": batch_size,
            "device": device,
            "progress": progress,
            "gene_column": gene_column,
            "min_coverage": min_coverage,
        }
        sums = StateSums(
            _run(model, expression, chosen.start, batch_size), len(expression.means), unfinished, overwrite
        )
        with sums:
            found.report = _sum_states(model, counts, sums, options)
            if sums.resumed:
                found.notes.append(f"{sums.resumed:,} batches of cells were finished by an earlier run")
            if sums.sums is None:
                raise ValueError(f"none of {found.cells} expresses a gene of {model.name}")
            found.contextual, found.states_from = sums.means()[ids], states_come_from(model.network)
            genes["cells"], genes["mean_expression"] = sums.cells[ids], expression.means[ids]
            scored = np.flatnonzero(sums.cells[ids] >= request.min_cells)
            if (request.neighbours or request.gene_sets or request.attention) and len(scored) < 2:
                raise ValueError(
                    f"the model reads {len(scored):,} genes in {request.min_cells:,} or more of {found.cells}: give "
                    "more cells, or lower min_cells (--min-cells)"
                )
            _look_at(found, model, scored, expression.means[ids], request)
            if request.attention:
                found.attention = _attention(model, counts, ids[scored], request, options)
            if write is not None:
                write(found)
            sums.remove()
        sums.remove_folder()
    return found


def _run(model: LoadedModel, expression: Expression, numbers: np.ndarray, batch_size: int) -> dict[str, Any]:
    """Return what the sums depend on, as plain types."""
    cells = hashlib.blake2b(digest_size=16)
    for array in (expression.means, expression.cells, numbers.astype(np.int64)):
        cells.update(np.ascontiguousarray(array).data)
    return {
        "format_version": 1,
        "model": weights_checksum(model.network),
        "cells": cells.hexdigest(),
        "batch_size": batch_size,
    }


def _sum_states(model: LoadedModel, counts: CountMatrix, sums: StateSums, options: dict[str, Any]) -> GeneReport:
    report, number = GeneReport(), 0

    def compute(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        nonlocal number
        number += 1
        if number > sums.resumed:
            sums.add(*gene_states(model.network, batch))
        return {}

    for _ in stream_batches(
        model.network, model.tokenizer, counts, compute, report=report, word="embedding", **options
    ):
        pass
    return report


def _attention(
    model: LoadedModel, counts: CountMatrix, tokens: np.ndarray, request: Request, options: dict[str, Any]
) -> GeneEdges:
    vocabulary = model.tokenizer.vocabulary
    ids = np.array([vocabulary.tokens.get(token, "") for token in range(vocabulary.vocab_size)], dtype=object)
    symbols = np.array([vocabulary.symbol(gene) for gene in ids], dtype=object)

    def read(add: Add) -> None:
        def compute(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            for genes, weights in gene_attention(model.network, batch):
                add(genes.cpu().numpy(), weights.float().cpu().numpy())
            return {}

        for _ in stream_batches(model.network, model.tokenizer, counts, compute, word="attention", **options):
            pass

    return sum_attention(
        read,
        tokens,
        edges=request.edges,
        min_cells=request.min_cells,
        symmetric=attention_is_symmetric(model.network),
        ids=ids,
        symbols=symbols,
    )


# -------------------------------------------------------------------- neighbours and gene sets


def _corpus_statistic(found: GeneEmbeddings, model: LoadedModel) -> np.ndarray | None:
    """Return the statistic of the model's corpus that says how strongly genes are expressed, shape (genes,)."""
    vocabulary = model.tokenizer.vocabulary
    return vocabulary.means if vocabulary.means is not None else vocabulary.medians


def _look_at(
    found: GeneEmbeddings, model: LoadedModel, scored: np.ndarray, expression: np.ndarray | None, request: Request
) -> None:
    """Add neighbours and scores of gene sets of the genes to be scored (places in the vocabulary's order)."""
    ids = np.array(found.genes.index, dtype=object)[scored]
    symbols = found.genes["symbol"].to_numpy(dtype=object)[scored]
    if request.neighbours:
        tables = {
            name: neighbour_table(values[scored], request.neighbours, ids, symbols)
            for name, values in found.embeddings().items()
        }
        found.neighbours = _together(tables)
    if request.gene_sets is None:
        return
    vocabulary = model.tokenizer.vocabulary
    place = np.full(vocabulary.vocab_size, -1, dtype=np.int64)
    place[vocabulary.gene_token_ids[scored]] = np.arange(len(scored))
    sets = match_sets(request.gene_sets, vocabulary, place, *request.set_genes)
    if sets.left_out:
        low, high = request.set_genes
        found.notes.append(f"{sets.left_out:,} gene sets with fewer than {low:,} or more than {high:,} genes left out")
    if found.contextual is None:
        by = "not matched in expression: the vocabulary has no statistics"
        if expression is not None:
            kind = "mean log count" if vocabulary.means is not None else "median of non-zero counts"
            by = f"matched by the {kind} in the corpus of the model"
        found.notes.append(f"no cells were given: random genes are {by}")
    bins = expression_bins(None if expression is None else expression[scored][sets.genes], len(sets.genes))
    tables = {
        name: score_sets(Embedded.centred(values[scored][sets.genes]), sets, bins, request.permutations, request.seed)
        for name, values in found.embeddings().items()
    }
    found.gene_sets = _together(tables)


def _together(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    parts = []
    for name, table in tables.items():
        table.insert(0, "embedding", name)
        parts.append(table)
    return pd.concat(parts, ignore_index=True)


__all__ = ["EDGES", "MIN_CELLS", "Request", "embed_genes"]
