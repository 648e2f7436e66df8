"""Writes columns and matrices beside the cells of a file, without reading its counts into memory."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from anndata.io import read_elem, sparse_dataset, write_elem

from cellglot.tokenization.cells import Cells


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
    source
        The file.
    output
        ``.h5ad``; it is written beside and moved there when it is complete.
    obs
        Column -> one value a cell; columns of these names are replaced.
    obsm
        Matrices, one row a cell.
    uns
        What else.

    Raises
    ------
    ValueError
        If `output` is no ``.h5ad``, or the file itself.
    """
    check_output(source, output)
    temporary = output.with_name(f".{output.stem}.part{output.suffix}")
    try:
        if cells is None or cells.format == "h5ad":
            shutil.copyfile(source, temporary)
        else:
            _write_cells(cells, temporary)
        with h5py.File(temporary, "r+") as file:
            _add(file, obs, obsm or {}, uns or {})
        temporary.replace(output)
    finally:
        temporary.unlink(missing_ok=True)


def check_output(source: Path, output: Path) -> None:
    """Refuse what `write_annotated` cannot write.

    Raises
    ------
    ValueError
        If `output` is no ``.h5ad``, or the file itself.
    """
    if output.suffix != ".h5ad":
        raise ValueError(f"{output}: annotated cells are written as .h5ad")
    if output.exists() and source.exists() and output.samefile(source):
        raise ValueError(f"{output} is the file of cells itself: write to another one")
    if not output.parent.exists():
        raise ValueError(f"there is no folder {output.parent} to write {output.name} to")


def _write_cells(cells: Cells, path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        for number, chunk in enumerate(cells.chunks()):
            if number == 0:
                write_elem(file, "X", chunk)
            else:
                sparse_dataset(file["X"]).append(chunk)
        write_elem(file, "obs", cells.metadata())
        write_elem(file, "var", cells.var)


def _add(file: h5py.File, obs: Mapping[str, Any], obsm: Mapping[str, Any], uns: Mapping[str, Any]) -> None:
    frame = read_elem(file["obs"])
    for name, values in obs.items():
        frame[name] = values
    write_elem(file, "obs", frame)
    for group, added in (("obsm", obsm), ("uns", uns)):
        if group not in file:
            write_elem(file, group, {})
        for name, value in added.items():
            write_elem(file[group], name, value)


__all__ = ["check_output", "write_annotated"]
