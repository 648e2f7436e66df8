"""``index``, ``map`` and ``similar``: cells of a reference, and what others have in common with them."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cellglot.evaluation.endings import check_annotated, check_table
from cellglot.modeling.loaded_model import LoadedModel
from cellglot.modeling.model_names import resolve_model
from cellglot.outputs import check_files, check_folder
from cellglot.verbs.cells import as_path, existing, is_anndata, or_none, output_of, to_write
from cellglot.verbs.models import load_model


if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from cellglot.evaluation.mapping.reference import Reference


def index(
    cells: "str | os.PathLike | AnnData",
    model: str | os.PathLike | LoadedModel,
    output: str | os.PathLike,
    *,
    columns: Sequence[str] | None = None,
    batch_size: int = 64,
    layer: str | None = None,
    gene_column: str | None = None,
    species: str | None = None,
    min_coverage: float | None = None,
    device: str | None = None,
    overwrite: bool = False,
) -> str:
    """Make a reference of cells, to which `cellglot.map` maps others.

    The folder has the cells' embeddings (``embeddings.npy``), their columns of obs (``cells.parquet``) and what they
    were made by (``reference.json``). `cellglot.publish` makes a data set of the Hub of it.

    Parameters
    ----------
    cells
        AnnData with raw counts, in memory or backed; or a file of cells, as for `cellglot.read_cells`.
    model
        Name, folder or repository of a model, a classifier or an adapter; or a loaded model.
    output
        Folder for the reference.
    columns
        Columns of obs to keep; by default all.
    batch_size
        Number of cells that are computed at once.
    layer, gene_column, species, min_coverage, device
        As for `cellglot.embed`.
    overwrite
        Replace a reference that is there.

    Returns
    -------
    str
        What was read and written.

    Raises
    ------
    ValueError
        If the folder must not be written to, a column does not exist, there is no such model, too few genes match, or
        values are not counts.
    TypeError
        If `cells` are neither a path nor an AnnData.

    Examples
    --------
    >>> import cellglot
    >>> report = cellglot.index("cells.h5ad", "model", "reference")
    """
    source = cells if is_anndata(cells) else existing(cells)
    target = as_path(output)
    name = model.name if isinstance(model, LoadedModel) else resolve_model(model)
    check_folder(target, [source if isinstance(source, str | os.PathLike) else source.filename, name])
    from cellglot.evaluation.mapping.index import index_cells

    return index_cells(
        model if isinstance(model, LoadedModel) else load_model(name),
        source,
        target,
        columns=columns,
        batch_size=batch_size,
        layer=layer,
        gene_column=gene_column,
        species=species,
        min_coverage=min_coverage,
        device=device,
        overwrite=overwrite,
    )


def map(
    cells: "str | os.PathLike | AnnData",
    reference: str | os.PathLike,
    *,
    columns: Sequence[str] | None = None,
    k: int = 30,
    model: str | os.PathLike | LoadedModel | None = None,
    output: str | os.PathLike | None = None,
    copy: bool = False,
    table: str | os.PathLike | None = None,
    similar: str | os.PathLike | None = None,
    batch_size: int = 64,
    layer: str | None = None,
    gene_column: str | None = None,
    species: str | None = None,
    min_coverage: float | None = None,
    device: str | None = None,
    overwrite: bool = False,
) -> Any:
    """Map cells to a reference: their nearest cells there carry over columns of obs.

    Results of an AnnData are written to it; those of a file have the same names:

    - ``obs["cellglot_mapping_COLUMN"]``: of labels the one that the `k` nearest cells vote for, nearer cells and rarer
      labels count more; of numbers the mean,
    - ``obs["cellglot_mapping_share_COLUMN"]``: share of the nearest cells that have the label,
    - ``obs["cellglot_mapping_distance"]``: mean distance (1 - cosine) to them,
    - ``obs["cellglot_mapping_novelty"]``: share of the reference's cells that are nearer to their neighbours than the
      cell is to its own; near 1 for a cell unlike the reference,
    - ``obsm["cellglot_mapping_neighbours"]``, ``["cellglot_mapping_distances"]``: numbers of the nearest cells in the
      reference, -1 for none, and their distances; ``obsm["X_cellglot_mapping"]``: embeddings,
    - ``uns["cellglot_mapping"]``: reference, model, metric, number of neighbours, columns.

    Parameters
    ----------
    cells
        AnnData with raw counts, in memory or backed; or a file of cells, as for `cellglot.read_cells`.
    reference
        Folder of `cellglot.index`, or a data set of the Hub, ``owner/name``.
    columns
        Columns of the reference to carry over; by default the cell type and its ontology id.
    k
        Number of nearest cells; all cells of the reference if it has fewer.
    model
        The model that made the reference, if it is not where the reference says; or that model, loaded.
    output
        For a file of cells: ``.h5ad``.
    copy
        Return a copy of the AnnData with the results, and leave the given one as it is.
    table
        For a file of cells: also a table with one row per cell, ``.csv``, ``.tsv`` or ``.parquet``.
    similar
        The same with one row for each cell and similar cell of the reference.
    batch_size
        Number of cells that are computed at once.
    layer, gene_column, species, min_coverage, device
        As for `cellglot.embed`.
    overwrite
        Replace results that exist. An input is never replaced.

    Returns
    -------
    AnnData or str or None
        None for an AnnData, or the copy; for a file what was read, carried over and written.

    Raises
    ------
    ValueError
        If the reference is damaged, lacks a column or was made by another model, too few genes match, or values are
        not counts.
    TypeError
        If `cells` are neither a path nor an AnnData.

    Examples
    --------
    >>> import cellglot
    >>> cellglot.map(adata, "reference")
    >>> types = adata.obs["cellglot_mapping_cell_type"]
    """
    options: dict[str, Any] = {
        "columns": columns, "k": k, "batch_size": batch_size, "layer": layer, "gene_column": gene_column,
        "species": species, "min_coverage": min_coverage, "device": device,
    }  # fmt: skip
    if k < 1:
        raise ValueError(f"k {k}: it is 1 or more")
    files = {"table": or_none(table), "similar": or_none(similar)}
    in_memory = is_anndata(cells)
    target = to_write(cells, copy, {"output": output, **files}) if in_memory else None
    if not in_memory:
        path, written = existing(cells), output_of(cells, output, copy)
        check_annotated(written)
        for file in files.values():
            check_table(file)
        check_files([written, *files.values()], [path, reference], overwrite=overwrite)
    from cellglot.evaluation.mapping.reference import Reference

    opened = Reference.open(reference)
    if columns:
        opened.check_columns(columns)
    loaded = model if isinstance(model, LoadedModel) else _model_of(opened, model)
    from cellglot.evaluation.mapping.map import map_anndata, map_file

    if in_memory:
        map_anndata(opened, loaded, target, **options)
        return target if copy else None
    return map_file(
        opened, loaded, path, written, table=files["table"], similar=files["similar"], overwrite=overwrite, **options
    )


def similar(
    reference: str | os.PathLike,
    cells: str | Sequence[str],
    *,
    k: int = 15,
    columns: Sequence[str] | None = None,
    output: str | os.PathLike | None = None,
    overwrite: bool = False,
) -> "pd.DataFrame":
    """Find the cells of a reference that are most similar to cells of it.

    The model of the reference is not needed. To find the similar cells of other cells, see `similar` of
    `cellglot.map`.

    Parameters
    ----------
    reference
        Folder of `cellglot.index`, or a data set of the Hub, ``owner/name``.
    cells
        Ids of cells of the reference (their names in obs), or a single one. Cells that share an id are all looked up.
    k
        Number of similar cells for each; all other cells of the reference if it has fewer.
    columns
        Columns of the reference to show; by default the cell type and its ontology id, where it has them.
    output
        Also write the table: ``.csv``, ``.tsv`` or ``.parquet``.
    overwrite
        Replace a table that exists.

    Returns
    -------
    DataFrame
        A row for each cell and similar cell, the nearest first: ``cell_id``, ``cell_number`` (in the reference, from
        0), ``rank``, ``similar_cell``, ``similar_cell_number``, ``distance`` (1 - cosine), and each column of the
        cell and, as ``similar_COLUMN``, of the similar one.

    Raises
    ------
    ValueError
        If an id is unknown (the message has ids that are spelled alike), the reference is damaged, lacks a column or
        has no other cells.

    Examples
    --------
    >>> import cellglot
    >>> table = cellglot.similar("reference", adata.obs_names[0], k=5)
    """
    target = or_none(output)
    check_table(target)
    check_files([target], [reference], overwrite=overwrite)
    from cellglot.evaluation.mapping.reference import Reference
    from cellglot.evaluation.mapping.similar import similar_cells
    from cellglot.evaluation.output import write_table

    asked = [cells] if isinstance(cells, str) else list(cells)
    found = similar_cells(Reference.open(reference), asked, k=k, columns=columns)
    if target is not None:
        write_table(found.set_index("cell_id"), target)
    return found


def _model_of(reference: "Reference", given: str | os.PathLike | None) -> LoadedModel:
    """Load the model that is given, or the one that made the reference."""
    if given is not None:
        return load_model(given)
    try:
        return load_model(reference.model.name)
    except ValueError as error:
        raise ValueError(
            f"{reference.name} was made by the model {reference.model.name}, which cannot be loaded ({error}): name "
            "it by model (--model)"
        ) from error


__all__ = ["index", "map", "similar"]
