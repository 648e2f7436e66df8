"""Mapping of a file (written to a file and tables) and of an AnnData (in place) to a reference."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData

from cellglot.evaluation.embedding import run_batches
from cellglot.evaluation.endings import check_annotated, check_table
from cellglot.evaluation.mapping.coordinates import EMBEDDING, joined, parts_of
from cellglot.evaluation.mapping.index import identify
from cellglot.evaluation.mapping.mapped import MappedCells, carry_column, choose_columns, novelty_of
from cellglot.evaluation.mapping.reference import Reference
from cellglot.evaluation.output import KEY, add_results, check_cells, write_annotated, write_table
from cellglot.modeling.loaded_model import LoadedModel
from cellglot.outputs import check_files
from cellglot.tokenization.gene_report import GeneReport
from cellglot.tokenization.reading.cells import Cells, read_cells


def map_cells(
    reference: Reference,
    model: LoadedModel,
    cells: Any,
    *,
    columns: Sequence[str] | None = None,
    k: int = 30,
    **options: Any,
) -> MappedCells:
    """Find the nearest cells of a reference by cosine, and carry over columns of obs.

    Parameters
    ----------
    model
        The model that made the reference.
    cells
        Cells opened by `read_cells`, or what the tokenizer accepts.
    columns
        Columns of the reference; by default the cell type and its ontology id.
    k
        Number of neighbours; all cells of the reference if it has fewer.
    **options
        As for `cellglot.evaluation.embedding.embed_cells`.

    Raises
    ------
    ValueError
        If the model is another one, a column does not exist, too few genes match, or no cell can be mapped.
    """
    if k < 1:
        raise ValueError(f"k {k}: it is 1 or more")
    chosen = choose_columns(reference, columns)
    weight = reference.score_weight
    reference.check_model(identify(model, weight if model.purpose == "classes of cells" else 0.0))
    report = GeneReport()
    network, compute = parts_of(model, weight)
    parts = run_batches(network, model.tokenizer, cells, compute, report=report, **options)
    embedding = parts[EMBEDDING]
    known = np.flatnonzero(~np.isnan(embedding[:, 0]))
    if not len(known):
        raise ValueError(f"none of {len(embedding):,} cells expresses a gene of {model.name}: nothing can be mapped")
    k = min(k, len(reference))
    numbers = np.full((len(embedding), k), -1, dtype=np.int64)
    distances = np.full((len(embedding), k), np.nan, dtype=np.float32)
    numbers[known], distances[known] = reference.search(joined(parts, weight)[known], k)
    names = cells.names() if isinstance(cells, Cells) else np.arange(len(embedding)).astype(str)
    carried = [carry_column(reference, name, numbers, distances) for name in chosen]
    novelty = novelty_of(distances, reference.own_distances)
    return MappedCells(reference, names, embedding, numbers, distances, novelty, carried, report)


def map_file(
    reference: Reference,
    model: LoadedModel,
    cells: Path,
    output: Path,
    *,
    table: Path | None = None,
    similar: Path | None = None,
    layer: str | None = None,
    species: str | None = None,
    overwrite: bool = False,
    **options: Any,
) -> str:
    """Map the cells of a file to a reference.

    Parameters
    ----------
    output
        ``.h5ad``: the cells with the columns of `MappedCells`, under names that begin with ``cellglot_mapping_``.
    table
        ``.csv``, ``.tsv`` or ``.parquet`` with one row per cell.
    similar
        The same with one row for each cell and similar cell of the reference.
    layer, species
        Where the counts are, and of which species, as for `read_cells`.
    overwrite
        Replace outputs that exist; never an input.
    **options
        As for `map_cells`.

    Returns
    -------
    str
        Summary of the cells, what was carried over, and the written files.

    Raises
    ------
    OutputError
        If an output is an input, or exists without `overwrite`.
    """
    check_table(table)
    check_table(similar)
    check_annotated(output)
    check_files([output, table, similar], [cells, reference.folder, model.name], overwrite=overwrite)
    with read_cells(cells, layer=layer, species=species) as opened:
        check_cells(opened)
        found = map_cells(reference, model, opened, **options)
        uns = {f"{KEY}_mapping": found.facts()}
        write_annotated(opened, cells, output, obs=_columns(found), obsm=found.matrices(), uns=uns)
        if table is not None:
            write_table(found.table(), table)
        if similar is not None:
            write_table(found.similar().set_index("cell_id"), similar)
        first, *rest = found.summary().split("\n")
        written = [str(path) for path in (output, table, similar) if path is not None]
        return "\n".join([first, opened.summary(), *rest, *written])


def map_anndata(
    reference: Reference,
    model: LoadedModel,
    adata: AnnData,
    *,
    layer: str | None = None,
    species: str | None = None,
    **options: Any,
) -> None:
    """Map the cells of an AnnData in place, with the columns that `map_file` writes to a file.

    Parameters
    ----------
    adata
        The cells, in memory or backed.
    layer, species, **options
        As for `map_file`.
    """
    with read_cells(adata, layer=layer, species=species) as opened:
        found = map_cells(reference, model, opened, **options)
    add_results(adata, obs=_columns(found), obsm=found.matrices(), uns={f"{KEY}_mapping": found.facts()})


def _columns(found: MappedCells) -> dict[str, Any]:
    return {f"{KEY}_mapping_{name}": values for name, values in found.columns().items()}


__all__ = ["map_anndata", "map_cells", "map_file"]
