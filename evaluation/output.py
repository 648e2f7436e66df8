"""Writing of cells with added columns and matrices, without loading the counts into memory."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd

from cellglot.evaluation.endings import check_annotated, check_table
from cellglot.outputs import atomic, check_file, remove_leftovers
from cellglot.tokenization.reading.cells import Cells
from cellglot.tokenization.reading.elements import write_element
from cellglot.tokenization.reading.formats import compound_frame
from cellglot.tokenization.reading.obs import as_text
from cellglot.tokenization.reading.storable_table import storable_column, storable_frame, write_column


if TYPE_CHECKING:
    from anndata import AnnData


KEY = "cellglot"  # prefix of the names of columns and matrices


def write_annotated(
    cells: Cells | None,
    source: Path,
    output: Path,
    *,
    obs: Mapping[str, Any],
    obsm: Mapping[str, np.ndarray] | None = None,
    uns: Mapping[str, Any] | None = None,
) -> None:
    """Write the cells of a file with results about them; the output replaces an earlier one only when complete.

    An ``.h5ad`` is copied with all its contents. From other formats, raw counts, genes and metadata are written,
    counts chunk by chunk.

    Parameters
    ----------
    cells
        The opened file; None for an ``.h5ad`` of embeddings.
    obs
        Column -> one value per cell; columns of these names are replaced.
    obsm
        Matrices with one row per cell.

    Raises
    ------
    ValueError
        If `output` is not an ``.h5ad``, or is the file itself.
    """
    check_annotated(output)
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
    adata: "AnnData",
    *,
    obs: Mapping[str, Any],
    obsm: Mapping[str, np.ndarray] | None = None,
    uns: Mapping[str, Any] | None = None,
) -> None:
    """Add to an AnnData, in the order of the results, what `write_annotated` adds to a file."""
    for name, values in obs.items():
        adata.obs[name] = values
    adata.obsm.update(obsm or {})
    adata.uns.update(uns or {})


def add_matrices(output: Path, obsm: Mapping[str, np.ndarray]) -> None:
    """Add matrices with one row per cell to a file of `write_annotated`, atomically."""
    with atomic(os.path.realpath(output)) as temporary:
        shutil.copyfile(output, temporary)
        with h5py.File(temporary, "r+") as file:
            for name, matrix in obsm.items():
                write_element(file["obsm"], name, matrix)


def check_cells(cells: Cells) -> None:
    """Read the table of cells that `write_annotated` will write, to find damage before long work.

    Raises
    ------
    CellFileError
        If the table of cells is damaged.
    """
    if cells.format != "h5ad":  # an h5ad is copied, its table is not written again
        cells.table(every=True)


def write_counts(cells: Cells, path: Path) -> None:
    """Write raw counts, genes and metadata of cells as ``.h5ad``, counts chunk by chunk."""
    from anndata.io import sparse_dataset, write_elem

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
    if isinstance(file["obs"], h5py.Dataset):  # AnnData before 0.7 stored one array of records
        beside = file["uns"] if isinstance(file.get("uns"), h5py.Group) else {}
        frame, _ = storable_frame(compound_frame(file["obs"], beside))
        del file["obs"]
        _write_frame(file, frame)
    if isinstance(stored := file.get("obsm"), h5py.Dataset):
        records = stored[()]
        matrices = {name: np.asarray(records[name]) for name in records.dtype.names or ()}
        del file["obsm"]
        write_element(file, "obsm", {name: m.reshape(len(m), -1) for name, m in matrices.items()})
    _add_columns(file["obs"], obs)
    for group, added in (("obsm", obsm), ("uns", uns)):
        if group not in file:
            write_element(file, group, {})
        for name, value in added.items():
            write_element(file[group], name, value)


def _write_frame(file: h5py.File, frame: pd.DataFrame) -> None:
    from anndata.io import write_elem

    write_elem(file, "obs", frame)


def _add_columns(table: h5py.Group, columns: Mapping[str, Any]) -> None:
    """Add columns to a stored table without changing the bytes of the others."""
    names = [as_text(name) for name in table.attrs.get("column-order", ())]
    for name, values in columns.items():
        if name in table:
            del table[name]
        write_column(table, name, storable_column(pd.Series(values))[0])
        names += [] if name in names else [name]
    table.attrs.create("column-order", np.array(names, dtype=object), dtype=h5py.string_dtype())


def write_table(frame: pd.DataFrame, path: str | Path) -> None:
    """Write a table atomically as ``.csv``, ``.tsv`` or ``.parquet``, by the ending of the file name."""
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
    "write_annotated",
    "write_table",
]
