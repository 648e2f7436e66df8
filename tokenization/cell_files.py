"""Files of cells: which format is it, and where in it are matrices, genes and metadata."""

import gzip
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import pandas as pd
import zarr

from cellglot.tokenization.cell_metadata import CellTable, FrameTable, StoredTable, as_text
from cellglot.tokenization.compound_table import compound_frame
from cellglot.tokenization.count_matrix import COUNT_LAYERS
from cellglot.tokenization.deflated_array import fast_array
from cellglot.tokenization.gene_vocabulary import ID_COLUMNS, NAME_COLUMNS
from cellglot.tokenization.hdf5_filters import prepare_filters
from cellglot.tokenization.stored_matrix import (
    READ_ERRORS,
    CellFileError,
    StoredDense,
    StoredRows,
    columns_to_rows,
    market_to_rows,
)
from cellglot.tokenization.unread_files import (
    why_missing,
    why_no_anndata,
    why_no_cells,
    why_no_matrix,
    why_unread,
)
from cellglot.tokenization.zarr_sparse import absent_chunks, checked_arrays


# Attributes of loom that name cells and genes, in lower case, the most believed first.
NAMES_OF_CELLS = ("cellid", "obs_names", "cell_id", "barcode", "cell_names", "barcodes")
NAMES_OF_GENES = ("gene", "var_names", "gene_symbols", "accession", *NAME_COLUMNS, *ID_COLUMNS)

Place = tuple[Any, list[str], Mapping[str, Any]]


@dataclass
class CellFile:
    """An opened file.

    Parameters
    ----------
    format
        Name of the format.
    places
        Name of each matrix -> (matrix of cells x genes, names of the genes, columns of the gene table).
    obs
        Metadata of the cells.
    notes
        What was left out or will be converted, in sentences.
    close
        Closes the file.
    """

    format: str
    places: dict[str, Place]
    obs: CellTable
    notes: list[str] = field(default_factory=list)
    close: Callable[[], None] = lambda: None


def open_cell_file(path: Path, folder: Path | None = None) -> CellFile:
    """Open a file or folder of cells of any known format.

    Parameters
    ----------
    path
        ``.h5ad``, ``.zarr``, 10x ``.h5``, a 10x folder with ``matrix.mtx`` (plain or gzipped), or ``.loom``.
    folder
        Where to keep what has to be converted; a temporary folder by default.

    Raises
    ------
    CellFileError
        Says what is wrong with the file.
    """
    if not path.exists():
        raise CellFileError(why_missing(path))
    if path.is_dir():
        return _open_folder(path, folder)
    if path.name.endswith((".mtx", ".mtx.gz")):
        return _open_market(path, folder)
    if not h5py.is_hdf5(path):
        raise CellFileError(why_unread(path))
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise CellFileError(f"{path} is a damaged HDF5 file, perhaps cut short: {error}") from error
    try:
        return _open_hdf5(path, file, folder)
    except CellFileError as error:
        file.close()
        raise CellFileError(f"{path}: {error}") from error
    except READ_ERRORS as error:
        file.close()
        raise CellFileError(f"{path} cannot be read, it may be damaged: {error}") from error


def _open_hdf5(path: Path, file: h5py.File, folder: Path | None) -> CellFile:
    if (unreadable := prepare_filters(file)) is not None:
        raise CellFileError(unreadable)
    if "row_attrs" in file and "matrix" in file:
        opened = _open_loom(file)
    elif isinstance(file.get("matrix"), h5py.Group) and "barcodes" in file["matrix"]:
        opened = _open_10x(file["matrix"])
    elif _genomes(file):
        opened = _open_10x_by_genome(file)
    else:
        opened = _open_anndata(file, folder, "h5ad")
    opened.close = file.close
    return opened


def _open_folder(path: Path, folder: Path | None) -> CellFile:
    if any((path / name).exists() for name in (".zgroup", ".zattrs", "zarr.json")):
        try:
            return _open_anndata(zarr.open_group(path, mode="r"), folder, "zarr")
        except CellFileError as error:
            raise CellFileError(f"{path}: {error}") from error
        except READ_ERRORS as error:
            raise CellFileError(f"{path} cannot be read, it may be damaged: {error}") from error
    matrices = sorted(p for p in path.iterdir() if p.name.endswith(("matrix.mtx", "matrix.mtx.gz")))
    if len(matrices) != 1:
        raise CellFileError(why_no_cells(path))
    return _open_market(matrices[0], folder)


# -------------------------------------------------------------------- AnnData (h5ad, zarr)


def _open_anndata(group: Any, folder: Path | None, format_name: str) -> CellFile:
    missing = [name for name in ("obs", "var") if name not in group]
    if missing:
        raise CellFileError(why_no_anndata(group, missing))
    beside = group["uns"] if _holds(group, "uns") and hasattr(group["uns"], "keys") else {}
    var = _gene_table(group["var"], beside)
    notes: list[str] = []
    places: dict[str, Place] = {}

    def add(name: str, element: Any, genes: pd.DataFrame) -> None:
        matrix = _anndata_matrix(element, None if folder is None else folder / name.replace("/", "-"))
        if matrix.shape[1] != len(genes):
            raise CellFileError(f"{name} has {matrix.shape[1]:,} columns, but {len(genes):,} genes are named")
        if not isinstance(matrix, StoredRows | StoredDense):
            notes.append(f"{name} is stored by columns (CSC): it is converted to rows on disk before it is read")
        if isinstance(element, zarr.Array) and (absent := absent_chunks(element)):
            notes.append(
                f"{name} lacks {absent:,} of its {element.nchunks:,} chunks, which are read as zeros: their writer "
                "left out chunks of nothing but zeros, or the copy is incomplete"
            )
        columns = {str(c): genes[c].astype(object).to_numpy() for c in genes.columns}
        places[name] = (matrix, [str(g) for g in genes.index], columns)

    if _holds(group, "X"):
        add("X", group["X"], var)
    if _holds(group, "raw") and _holds(group["raw"], "X"):
        add("raw.X", group["raw"]["X"], _gene_table(group["raw"]["var"], beside))
    elif _holds(group, "raw.X"):  # before version 0.7
        add("raw.X", group["raw.X"], _gene_table(group["raw.var"], beside))
    layers = group["layers"] if _holds(group, "layers") else {}
    for name in [*(n for n in COUNT_LAYERS if n in layers), *(n for n in layers if n not in COUNT_LAYERS)]:
        add(f"layers[{name!r}]", layers[name], var)
    if not places:
        raise CellFileError(why_no_matrix(group.get("mod", ())))
    n_cells = next(iter(places.values()))[0].shape[0]
    return CellFile(format_name, places, cell_table(group["obs"], n_cells, beside), notes)


def _holds(group: Any, name: str) -> bool:
    """Tell whether a group holds something by that name; AnnData writes "null" in place of an X or raw of None."""
    encoding = group[name].attrs.get("encoding-type", "") if name in group else "null"
    return (encoding.decode() if isinstance(encoding, bytes) else encoding) != "null"


def _anndata_matrix(element: Any, folder: Path | None) -> Any:
    if hasattr(element, "dtype") and hasattr(element, "shape"):
        if len(element.shape) != 2:
            raise CellFileError(f"a matrix of shape {element.shape}")
        return StoredDense(element)
    attributes = dict(element.attrs)
    shape = attributes.get("shape", attributes.get("h5sparse_shape"))
    encoding = attributes.get("encoding-type", attributes.get("h5sparse_format", "csr"))
    encoding = encoding.decode() if isinstance(encoding, bytes) else str(encoding)
    missing = [name for name in ("data", "indices", "indptr") if name not in element]
    if missing or shape is None:
        raise CellFileError(f"the sparse matrix {element.name} lacks {', '.join(missing) or 'its shape'}")
    n_cells, n_genes = int(shape[0]), int(shape[1])
    by_columns = encoding.startswith("csc")
    if isinstance(element, zarr.Group):
        arrays = checked_arrays(element, n_cells if by_columns else n_genes)
    else:
        arrays = fast_array(element["data"]), fast_array(element["indices"]), element["indptr"]
    if by_columns:
        return columns_to_rows(*arrays, shape=(n_cells, n_genes), folder=folder)
    return StoredRows(*arrays, shape=(n_cells, n_genes))


def _gene_table(element: Any, beside: Any) -> pd.DataFrame:
    if not hasattr(element, "keys"):
        return compound_frame(element, beside)
    kind = as_text(element.attrs.get("encoding-type", "dataframe"))
    if kind != "dataframe":
        raise CellFileError(f"{element.name} is not a table but a {kind}")
    table = StoredTable(element, None)
    for name, length in table.lengths().items():
        _check_length(f"{element.name}[{name!r}]", length, len(table), "genes")
    columns = {name: table.column(name, 0, len(table)) for name in table.names if table.is_read(name)}
    return pd.DataFrame(columns, index=pd.Index(table.index(0, len(table)), dtype=object))


def cell_table(element: Any, n_cells: int, beside: Any) -> CellTable:
    """Open the table of cells of AnnData.

    Parameters
    ----------
    element
        ``obs`` in HDF5 or zarr.
    n_cells
        Cells of the matrix.
    beside
        ``uns``, where AnnData before 0.7 keeps categories.

    Raises
    ------
    CellFileError
        If a column is not of this length, or it is no table.
    """
    if not hasattr(element, "keys"):
        frame = compound_frame(element, beside)
        _check_length("obs", len(frame), n_cells)
        return FrameTable(frame)
    table = StoredTable(element, n_cells)
    for name, length in table.lengths().items():
        _check_length(f"obs[{name!r}]", length, n_cells)
    return table


def _check_length(name: str, length: int, n: int, kind: str = "cells") -> None:
    if length != n:
        raise CellFileError(f"{name} has {length:,} values, but the matrix has {n:,} {kind}")


# -------------------------------------------------------------------- 10x


def _genomes(file: h5py.File) -> list[str]:
    return [name for name in file if isinstance(file[name], h5py.Group) and {"barcodes", "genes"} <= set(file[name])]


def _open_10x(group: h5py.Group) -> CellFile:
    features = group["features"]
    table = {"gene_ids": _strings(features["id"]), "gene_symbols": _strings(features["name"])}
    if "feature_type" in features:
        table["feature_types"] = _strings(features["feature_type"])
    return _from_10x(group, table, "10x h5")


def _open_10x_by_genome(file: h5py.File) -> CellFile:
    genomes = _genomes(file)
    if len(genomes) > 1:
        raise CellFileError(f"several genomes: {', '.join(genomes)}; write the cells of one to a file of its own")
    group = file[genomes[0]]
    table = {"gene_ids": _strings(group["genes"]), "gene_symbols": _strings(group["gene_names"])}
    return _from_10x(group, table, "10x h5 (version 2)")


def _from_10x(group: h5py.Group, table: dict[str, list[str]], format_name: str) -> CellFile:
    n_genes, n_cells = (int(n) for n in group["shape"][:])
    for name, values in table.items():
        _check_length(name, len(values), n_genes, "genes")
    _check_length("barcodes", len(group["barcodes"]), n_cells)
    data, indices = fast_array(group["data"]), fast_array(group["indices"])
    matrix = StoredRows(data, indices, group["indptr"], (n_cells, n_genes))
    obs = FrameTable(pd.DataFrame(index=_strings(group["barcodes"])))
    return CellFile(format_name, {"X": (matrix, table["gene_symbols"], table)}, obs)


def _open_market(path: Path, folder: Path | None) -> CellFile:
    plain = path.name.removesuffix(".gz")
    stem = plain.removesuffix("matrix.mtx") if plain.endswith("matrix.mtx") else ""  # as of UniqueAndMult-EM.mtx
    features = _beside(path, [f"{stem}{name}{end}" for name in ("features", "genes") for end in (".tsv", ".tsv.gz")])
    barcodes = _beside(path, [f"{stem}barcodes{end}" for end in (".tsv", ".tsv.gz")])
    rows = [line.split("\t") for line in _lines(features)]
    cells = [line.split("\t")[0] for line in _lines(barcodes)]
    if not rows or not cells:
        raise CellFileError(f"{features if not rows else barcodes} is empty")
    table = {"gene_ids": [r[0] for r in rows], "gene_symbols": [r[1] if len(r) > 1 else r[0] for r in rows]}
    if any(len(r) > 2 for r in rows):
        table["feature_types"] = [r[2] if len(r) > 2 else "" for r in rows]
    matrix = market_to_rows(path, (len(cells), len(rows)), None if folder is None else folder / "matrix")
    places: dict[str, Place] = {"X": (matrix, table["gene_symbols"], table)}
    notes = ["a Matrix Market file is text: it is converted to rows on disk before it is read"]
    return CellFile("10x matrix folder", places, FrameTable(pd.DataFrame(index=cells)), notes)


def _beside(path: Path, names: list[str]) -> Path:
    for name in names:
        if (path.parent / name).exists():
            return path.parent / name
    raise CellFileError(f"{path} has none of {', '.join(names)} beside it")


def _lines(path: Path) -> list[str]:
    opener = gzip.open if path.name.endswith(".gz") else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            return [line.rstrip("\r\n") for line in file if line.strip()]
    except READ_ERRORS as error:
        raise CellFileError(f"{path} cannot be read: {error}") from error


# -------------------------------------------------------------------- loom


def _open_loom(file: h5py.File) -> CellFile:
    genes = {name: _strings(values) for name, values in _vectors(file, "row_attrs").items()}
    cells = _vectors(file, "col_attrs")
    matrix = StoredDense(file["matrix"], transposed=True)
    for name, values in cells.items():
        _check_length(f"col_attrs/{name}", len(values), matrix.shape[0])
    for name, values_of_genes in genes.items():
        _check_length(f"row_attrs/{name}", len(values_of_genes), matrix.shape[1], "genes")
    frame = pd.DataFrame({n: _strings(v) if v.dtype.kind in "OS" else v[:] for n, v in cells.items()})
    frame = frame if len(frame.columns) else pd.DataFrame(index=range(matrix.shape[0]))
    if (names := _first_of(NAMES_OF_CELLS, cells)) is not None:
        frame = frame.set_index(names)
    columns = dict(genes)
    for usual, name in (("gene_symbols", "Gene"), ("gene_ids", "Accession")):
        if name in genes:
            columns.setdefault(usual, genes[name])
    names_of_genes = _first_of(NAMES_OF_GENES, genes)
    if names_of_genes is None:
        raise CellFileError(
            f"no names of genes among the row attributes {', '.join(genes) or '(none)'}: symbols belong in Gene, "
            "Ensembl ids in Accession"
        )
    index = genes[names_of_genes]
    places: dict[str, Place] = {"X": (matrix, index, columns)}
    for name in file.get("layers", {}):
        places[f"layers[{name!r}]"] = (StoredDense(file["layers"][name], transposed=True), index, columns)
    return CellFile("loom", places, FrameTable(frame))


def _first_of(usual: Iterable[str], names: Iterable[str]) -> str | None:
    by_lower = {name.lower(): name for name in names}
    return next((by_lower[name] for name in usual if name in by_lower), None)


def _vectors(file: h5py.File, name: str) -> dict[str, h5py.Dataset]:
    found = file.get(name, {}).items()
    return {key: item for key, item in found if isinstance(item, h5py.Dataset) and len(item.shape) == 1}


def _strings(values: Any) -> list[str]:
    return [v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in values[:]]


__all__ = ["CellFile", "cell_table", "open_cell_file"]
