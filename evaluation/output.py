"""Writes columns and matrices beside the cells of a file, without reading its counts into memory."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.io import sparse_dataset, write_elem

from cellglot.outputs import atomic, check_file, remove_leftovers
from cellglot.tokenization.reading.cells import Cells
from cellglot.tokenization.reading.formats import compound_frame
from cellglot.tokenization.reading.obs import as_text
from cellglot.tokenization.reading.storable_table import storable_column, storable_frame, write_column


KEY = "cellglot"  # which the names of columns and matrices begin with
TABLES = (".csv", ".tsv", ".parquet")


def write_annotated(
    cells: Cells | None,
    source: Path,
    output: Path,
    *,
    obs: Mapping[str, Any],
    obsm: Mapping[str, np.ndarray] | None = None,
    uns: Mapping[str, Any] | None = None,
) -> None:
    """Write the cells of a file with what was found about them.

    An ``.h5ad`` is copied whole, with all that it holds. Of other formats raw counts, genes and metadata are written,
    counts chunk by chunk.

    Parameters
    ----------
    cells
        The file, opened; None for an ``.h5ad`` of embeddings.
    output
        ``.h5ad``; it is written beside and moved there when it is complete.
    obs
        Column -> one value a cell; columns of these names are replaced.
    obsm
        Matrices, one row a cell.

    Raises
    ------
    ValueError
        If `output` is not an ``.h5ad``, or is the file itself.
    """
    check_ending(output)
    check_file(output, [source], overwrite=True)
    remove_leftovers(output)
    with atomic(os.path.realpath(output)) as temporary:
        if cells is None or cells.format == "h5ad":
            shutil.copyfile(source, temporary)
        else:
            write_counts(cells, temporary)
        with h5py.File(temporary, "r+") as file:
            _add(file, obs, obsm or {}, uns or {})


def add_results(
    adata: AnnData,
    *,
    obs: Mapping[str, Any],
    obsm: Mapping[str, np.ndarray] | None = None,
    uns: Mapping[str, Any] | None = None,
) -> None:
    """Write to an AnnData what `write_annotated` writes to a file.

    Parameters
    ----------
    adata
        The cells, in the order of the results.
    obs, obsm, uns
        As for `write_annotated`.
    """
    for name, values in obs.items():
        adata.obs[name] = values
    adata.obsm.update(obsm or {})
    adata.uns.update(uns or {})


def add_matrices(output: Path, obsm: Mapping[str, np.ndarray]) -> None:
    """Put further matrices, one row a cell, into a file that `write_annotated` wrote; whole or not at all."""
    with atomic(os.path.realpath(output)) as temporary:
        shutil.copyfile(output, temporary)
        with h5py.File(temporary, "r+") as file:
            for name, matrix in obsm.items():
                write_elem(file["obsm"], name, matrix)


def check_ending(output: Path) -> None:
    """Refuse a name that is not that of an ``.h5ad``."""
    if output.suffix != ".h5ad":
        raise ValueError(f"{output}: annotated cells are written as .h5ad")


def check_cells(cells: Cells) -> None:
    """Read what `write_annotated` will write beside the counts of cells, so that long work does not end with an error.

    Raises
    ------
    CellFileError
        If the table of cells is damaged.
    """
    if cells.format != "h5ad":  # whose table is not written anew
        cells.table(every=True)


def write_counts(cells: Cells, path: Path) -> None:
    """Write raw counts, genes and metadata of cells as ``.h5ad``, counts chunk by chunk."""
    with h5py.File(path, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        for number, chunk in enumerate(cells.chunks()):
            if number == 0:
                write_elem(file, "X", chunk)
            else:
                sparse_dataset(file["X"]).append(chunk)
        write_elem(file, "obs", cells.table(every=True))
        write_elem(file, "var", storable_frame(cells.var)[0])


def _add(file: h5py.File, obs: Mapping[str, Any], obsm: Mapping[str, Any], uns: Mapping[str, Any]) -> None:
    if isinstance(file["obs"], h5py.Dataset):  # of AnnData before 0.7: one array of records
        _rewrite_records(file)
    _add_columns(file["obs"], obs)
    for group, added in (("obsm", obsm), ("uns", uns)):
        if group not in file:
            write_elem(file, group, {})
        for name, value in added.items():
            write_elem(file[group], name, value)


def _rewrite_records(file: h5py.File) -> None:
    """Write a table of cells that is an array of records as AnnData does today."""
    beside = file["uns"] if isinstance(file.get("uns"), h5py.Group) else {}
    frame, _ = storable_frame(compound_frame(file["obs"], beside))
    del file["obs"]
    write_elem(file, "obs", frame)


def _add_columns(table: h5py.Group, columns: Mapping[str, Any]) -> None:
    """Write columns beside those of a stored table, whose bytes stay as they are."""
    names = [as_text(name) for name in table.attrs.get("column-order", ())]
    for name, values in columns.items():
        if name in table:
            del table[name]
        write_column(table, name, storable_column(pd.Series(values))[0])
        names += [] if name in names else [name]
    table.attrs.create("column-order", np.array(names, dtype=object), dtype=h5py.string_dtype())


def check_table(path: str | Path) -> None:
    """Refuse a name for a table whose ending is unknown, before any work."""
    if Path(path).suffix not in TABLES:
        raise ValueError(f"{path}: tables are written as {', '.join(TABLES)}")


def write_table(frame: pd.DataFrame, path: str | Path) -> None:
    """Write a table, whole or not at all; the ending chooses: ``.csv``, ``.tsv`` or ``.parquet``.

    Raises
    ------
    ValueError
        If the ending is none of these.
    """
    check_table(path)
    ending = Path(path).suffix
    with atomic(path) as temporary:
        if ending == ".parquet":
            storable_frame(frame)[0].to_parquet(temporary)
        else:
            frame.to_csv(temporary, sep="\t" if ending == ".tsv" else ",")


__all__ = [
    "KEY",
    "add_matrices",
    "add_results",
    "check_cells",
    "check_ending",
    "check_table",
    "write_annotated",
    "write_table",
]
