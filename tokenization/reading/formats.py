"""Find out the format of a file of cells, and where its matrices, genes and metadata are."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from cellglot.inputs.addresses import is_census
from cellglot.tokenization.count_matrix import COUNT_LAYERS
from cellglot.tokenization.gene_vocabulary import ID_COLUMNS, NAME_COLUMNS
from cellglot.tokenization.reading.bounded_text import read_names
from cellglot.tokenization.reading.chunk_counts import absent_chunks, expected_chunks
from cellglot.tokenization.reading.errors import CellFileError, reading
from cellglot.tokenization.reading.groups import Hdf5Group, open_zarr
from cellglot.tokenization.reading.hdf5_arrays import fast_array
from cellglot.tokenization.reading.market_matrix import market_to_rows, read_market_head
from cellglot.tokenization.reading.matrices import StoredDense, StoredRows, check_vector, columns_to_rows
from cellglot.tokenization.reading.obs import CellTable, FrameTable, StoredTable, as_text, plain_values
from cellglot.tokenization.reading.refusals import (
    why_missing,
    why_no_anndata,
    why_no_cells,
    why_no_matrix,
    why_not_opened,
    why_unread,
)
from cellglot.tokenization.reading.soma import open_soma
from cellglot.tokenization.reading.soma_experiment import is_soma, may_be_soma
from cellglot.tokenization.reading.table_checks import MOST_COLUMNS, check_length, check_table
from cellglot.tokenization.reading.zarr_arrays import checked_arrays


# Attributes of loom that name cells and genes, in lower case; the first that is found is taken.
NAMES_OF_CELLS = ("cellid", "obs_names", "cell_id", "barcode", "cell_names", "barcodes")
NAMES_OF_GENES = ("gene", "var_names", "gene_symbols", "accession", *NAME_COLUMNS, *ID_COLUMNS)
MOST_LAYERS = 1_000

Place = tuple[Any, list[str], Mapping[str, Any]]


@dataclass
class CellFile:
    """An opened file.

    Parameters
    ----------
    places
        Name of each matrix -> (matrix of cells x genes, names of the genes, columns of the gene table).
    notes
        Sentences about what was left out or will be converted.
    """

    format: str
    places: dict[str, Place]
    obs: CellTable
    notes: list[str] = field(default_factory=list)
    close: Callable[[], None] = lambda: None


def open_cell_file(path: Path | str, folder: Path | None = None) -> CellFile:
    """Open ``.h5ad``, ``.zarr``, 10x ``.h5``, a 10x folder (``matrix.mtx``, plain or gzipped), ``.loom``, or SOMA.

    A text is the address of a SOMA experiment, or names one of CELLxGENE Census.

    Matrices that have to be converted are kept in `folder`, by default in a temporary one.
    """
    if not path.exists() if isinstance(path, Path) else not may_be_soma(path):
        raise CellFileError(why_missing(path))
    with reading(path):
        opened = _open_soma(path) if isinstance(path, str) or is_soma(path) else _open(path, folder)
    for matrix, *_ in opened.places.values():
        matrix.source = str(path)
    opened.obs.source = str(path)
    return opened


def _open(path: Path, folder: Path | None) -> CellFile:
    if path.is_dir():
        return _open_folder(path, folder)
    if not path.is_file():
        raise CellFileError(f"{path} is neither a file nor a folder")
    if path.name.endswith((".mtx", ".mtx.gz")):
        return _open_market(path, folder)
    if not h5py.is_hdf5(path):
        raise CellFileError(why_unread(path))
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise CellFileError(why_not_opened(path, error)) from error
    try:
        return _open_hdf5(file, folder)
    except BaseException:
        file.close()
        raise


def _open_hdf5(file: h5py.File, folder: Path | None) -> CellFile:
    group = Hdf5Group(file)
    if "row_attrs" in group and "matrix" in group:
        opened = _open_loom(group)
    elif hasattr(group.get("matrix"), "keys") and "barcodes" in group["matrix"]:
        opened = _open_10x(group["matrix"])
    elif genomes := _genomes(group):
        opened = _open_10x_by_genome(group, genomes)
    else:
        opened = _open_anndata(group, folder, "h5ad")
    opened.close = file.close
    return opened


def _open_folder(path: Path, folder: Path | None) -> CellFile:
    if any((path / name).exists() for name in (".zgroup", ".zattrs", "zarr.json")):
        return _open_anndata(open_zarr(path), folder, "zarr")
    matrices = sorted(p for p in path.iterdir() if p.name.endswith(("matrix.mtx", "matrix.mtx.gz")))
    if len(matrices) != 1:
        raise CellFileError(why_no_cells(path))
    return _open_market(matrices[0], folder)


# -------------------------------------------------------------------- AnnData (h5ad, zarr)


def _open_anndata(group: Any, folder: Path | None, format_name: str) -> CellFile:
    missing = [name for name in ("obs", "var") if name not in group]
    if missing:
        raise CellFileError(why_no_anndata(group, missing))
    uns = group["uns"] if _has(group, "uns") and hasattr(group["uns"], "keys") else {}
    notes: list[str] = []
    var = _gene_table(group["var"], uns, "var", notes)
    places: dict[str, Place] = {}

    def add(name: str, element: Any, genes: pd.DataFrame) -> None:
        matrix = _anndata_matrix(element, None if folder is None else folder / name.replace("/", "-"))
        if matrix.shape[1] != len(genes):
            raise CellFileError(f"{name} has {matrix.shape[1]:,} columns, but there are {len(genes):,} genes")
        if not isinstance(matrix, StoredRows | StoredDense):
            notes.append(f"{name} is stored by columns (CSC): it is converted to rows on disk before it is read")
        if not hasattr(element, "keys") and (absent := absent_chunks(element)):
            notes.append(
                f"{name} lacks {absent:,} of its {expected_chunks(element):,} chunks, which are read as zeros: the "
                "writer left out chunks that contain only zeros, or the copy is incomplete"
            )
        columns = {str(c): genes[c].astype(object).to_numpy() for c in genes.columns}
        places[name] = (matrix, [str(g) for g in genes.index], columns)

    if _has(group, "X"):
        add("X", group["X"], var)
    if _has(group, "raw") and _has(group["raw"], "X"):
        add("raw.X", group["raw"]["X"], _gene_table(group["raw"]["var"], uns, "raw.var", notes))
    elif _has(group, "raw.X"):  # before version 0.7
        add("raw.X", group["raw.X"], _gene_table(group["raw.var"], uns, "raw.var", notes))
    layers = _layers(group)
    for name in [*(n for n in COUNT_LAYERS if n in layers), *(n for n in layers if n not in COUNT_LAYERS)]:
        add(f"layers[{name!r}]", layers[name], var)
    if not places:
        raise CellFileError(why_no_matrix(group.get("mod", ())))
    n_cells = next(iter(places.values()))[0].shape[0]
    obs = cell_table(group["obs"], n_cells, uns, notes)
    for name, (matrix, *_) in places.items():  # or counts would take names and labels of other cells
        if matrix.shape[0] != n_cells:
            raise CellFileError(f"{name} has {matrix.shape[0]:,} cells, but obs has {n_cells:,}")
    return CellFile(format_name, places, obs, notes)


def _layers(group: Any) -> Mapping[str, Any]:
    layers = group["layers"] if _has(group, "layers") else {}
    if not hasattr(layers, "keys"):
        raise CellFileError("layers is an array, not a group of layers")
    if len(layers) > MOST_LAYERS:
        raise CellFileError(f"there are {len(layers):,} layers, more than {MOST_LAYERS:,}: the file is damaged")
    return layers


def _has(group: Any, name: str) -> bool:
    """Tell whether a group has such a member; AnnData writes an X or raw of None as "null"."""
    return name in group and as_text(group[name].attrs.get("encoding-type", "")) != "null"


def _anndata_matrix(element: Any, folder: Path | None) -> Any:
    if not hasattr(element, "keys"):
        return StoredDense(element)
    missing = [name for name in ("data", "indices", "indptr") if name not in element]
    if missing:
        raise CellFileError(f"the sparse matrix {element.name} lacks {', '.join(missing)}")
    shape = np.asarray(element.attrs.get("shape", element.attrs.get("h5sparse_shape")))
    n_cells, n_genes = _two_sizes(shape, f"the sparse matrix {element.name}")
    encoding = as_text(element.attrs.get("encoding-type", element.attrs.get("h5sparse_format", "csr")))
    if not encoding.startswith(("csr", "csc")):
        raise CellFileError(f"the matrix {element.name} is stored as {encoding!r}, not as csr_matrix or csc_matrix")
    arrays = element["data"], element["indices"], element["indptr"]
    for name, array in zip(("data", "indices", "indptr"), arrays, strict=True):
        check_vector(array, f"{element.name}/{name}", "biuf" if name == "data" else "iu")
    by_columns = encoding.startswith("csc")
    if isinstance(arrays[0], h5py.Dataset):
        arrays = fast_array(arrays[0]), fast_array(arrays[1]), arrays[2]
    else:
        arrays = checked_arrays(element, n_cells if by_columns else n_genes)
    if by_columns:
        return columns_to_rows(*arrays, shape=(n_cells, n_genes), folder=folder)
    return StoredRows(*arrays, shape=(n_cells, n_genes))


def _two_sizes(shape: np.ndarray, name: str) -> tuple[int, int]:
    if shape.shape != (2,) or shape.dtype.kind not in "iu" or (shape < 0).any():
        raise CellFileError(f"{name} lacks its shape: found {str(shape)[:60]}, not two sizes")
    return int(shape[0]), int(shape[1])


def _gene_table(element: Any, uns: Any, name: str, notes: list[str]) -> pd.DataFrame:
    if not hasattr(element, "keys"):
        return compound_frame(element, uns)
    notes += check_table(element, name, rows="genes")
    index = as_text(element.attrs.get("_index", "_index"))
    if (names := element.get(index)) is None:
        raise CellFileError(f"{name} has no names of genes: {index!r} is not there")
    if not hasattr(names, "keys") and np.dtype(names.dtype).kind in "biufcmM":
        raise CellFileError(f"the index of {name} contains {names.dtype}, not names of genes")
    table = StoredTable(element, None)
    columns = {column: table.column(column, 0, len(table)) for column in table.names if table.is_read(column)}
    return pd.DataFrame(columns, index=pd.Index(table.index(0, len(table)), dtype=object))


def cell_table(element: Any, n_cells: int, uns: Any, notes: list[str] | None = None) -> CellTable:
    """Open the table of cells of AnnData.

    Parameters
    ----------
    element
        ``obs`` in HDF5 or zarr.
    uns
        ``uns``, where AnnData before 0.7 keeps categories.
    notes
        Notes about missing chunks are appended to it.

    Raises
    ------
    CellFileError
        If it is not a table, or a column has another length.
    """
    if not hasattr(element, "keys"):
        frame = compound_frame(element, uns)
        check_length("obs", len(frame), n_cells)
        return FrameTable(frame)
    found = check_table(element, "obs", n_cells)
    if notes is not None:
        notes += found
    return StoredTable(element, n_cells)


def compound_frame(table: Any, uns: Mapping[str, Any]) -> pd.DataFrame:
    """Read a table stored as one array of records, whose first field contains the names.

    `uns` is the group of that name: its member ``{column}_categories`` lists the categories of a column of codes.
    """
    records = table[...]
    if records.dtype.names is None or records.ndim != 1:
        raise CellFileError(f"{table.name} is not a table but an array of {records.dtype}, shape {records.shape}")
    index, *names = (name for name in records.dtype.names if records[name].ndim == 1)
    columns = {name: plain_values(records[name]) for name in names}
    for name, codes in columns.items():
        categories = uns.get(f"{name}_categories")
        if categories is None or codes.dtype.kind not in "iu":
            continue
        values = plain_values(np.atleast_1d(categories[...]))
        if codes.min(initial=0) >= -1 and codes.max(initial=-1) < len(values):
            columns[name] = np.append(values.astype(object), [None])[codes]
    return pd.DataFrame(columns, index=pd.Index(plain_values(records[index]).astype(str), dtype=object))


# -------------------------------------------------------------------- 10x


def _genomes(file: Hdf5Group) -> list[str]:
    groups = ((name, file.get(name)) for name in file)
    return [
        name for name, group in groups if isinstance(group, Hdf5Group) and "barcodes" in group and "genes" in group
    ]


def _open_10x(group: Hdf5Group) -> CellFile:
    features = group["features"]
    if not hasattr(features, "keys"):
        raise CellFileError(f"{features.name} is an array, not a group of ids and names")
    table = {"gene_ids": _strings(features["id"]), "gene_symbols": _strings(features["name"])}
    if "feature_type" in features:
        table["feature_types"] = _strings(features["feature_type"])
    return _from_10x(group, table, "10x h5")


def _open_10x_by_genome(file: Hdf5Group, genomes: list[str]) -> CellFile:
    if len(genomes) > 1:
        raise CellFileError(f"several genomes: {', '.join(genomes)}; write the cells of one to a separate file")
    group = file[genomes[0]]
    table = {"gene_ids": _strings(group["genes"]), "gene_symbols": _strings(group["gene_names"])}
    return _from_10x(group, table, "10x h5 (version 2)")


def _from_10x(group: Hdf5Group, table: dict[str, list[str]], format_name: str) -> CellFile:
    n_genes, n_cells = _two_sizes(np.asarray(group["shape"][...]), group.name)
    for name, values in table.items():
        check_length(name, len(values), n_genes, "genes")
    barcodes = _strings(group["barcodes"])
    check_length("barcodes", len(barcodes), n_cells)
    data, indices = fast_array(group["data"]), fast_array(group["indices"])
    matrix = StoredRows(data, indices, group["indptr"], (n_cells, n_genes))
    obs = FrameTable(pd.DataFrame(index=barcodes))
    return CellFile(format_name, {"X": (matrix, table["gene_symbols"], table)}, obs)


def _open_market(path: Path, folder: Path | None) -> CellFile:
    plain = path.name.removesuffix(".gz")
    stem = plain.removesuffix("matrix.mtx") if plain.endswith("matrix.mtx") else ""  # e.g. UniqueAndMult-EM.mtx
    features = _beside(path, [f"{stem}{name}{end}" for name in ("features", "genes") for end in (".tsv", ".tsv.gz")])
    barcodes = _beside(path, [f"{stem}barcodes{end}" for end in (".tsv", ".tsv.gz")])
    most = max(read_market_head(path).shape)
    with reading(features):
        rows = [line.split("\t") for line in read_names(features, most)]
    with reading(barcodes):
        cells = [line.split("\t")[0] for line in read_names(barcodes, most)]
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
    raise CellFileError(f"none of {', '.join(names)} is in the folder of {path}")


# -------------------------------------------------------------------- SOMA


def _open_soma(source: Path | str) -> CellFile:
    places, obs, experiment = open_soma(source)
    return CellFile("Census" if is_census(source) else "SOMA", places, obs, close=experiment.close)


# -------------------------------------------------------------------- loom


def _open_loom(file: Hdf5Group) -> CellFile:
    genes = {name: _strings(values) for name, values in _vectors(file, "row_attrs").items()}
    cells = _vectors(file, "col_attrs")
    matrix = StoredDense(file["matrix"], transposed=True)
    for name, values in cells.items():
        check_length(f"col_attrs/{name}", len(values), matrix.shape[0])
    for name, values_of_genes in genes.items():
        check_length(f"row_attrs/{name}", len(values_of_genes), matrix.shape[1], "genes")
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
            f"found no names of genes among the row attributes {', '.join(genes) or '(none)'}: write symbols to Gene, "
            "or Ensembl ids to Accession"
        )
    index = genes[names_of_genes]
    places: dict[str, Place] = {"X": (matrix, index, columns)}
    for name, layer in _layers(file).items():
        places[f"layers[{name!r}]"] = (StoredDense(layer, transposed=True), index, columns)
        if places[f"layers[{name!r}]"][0].shape != matrix.shape:
            raise CellFileError(f"layers[{name!r}] has shape {layer.shape}, but the matrix has {file['matrix'].shape}")
    return CellFile("loom", places, FrameTable(frame))


def _first_of(usual: Iterable[str], names: Iterable[str]) -> str | None:
    by_lower = {name.lower(): name for name in names}
    return next((by_lower[name] for name in usual if name in by_lower), None)


def _vectors(file: Hdf5Group, name: str) -> dict[str, h5py.Dataset]:
    group = file.get(name, {})
    if not hasattr(group, "keys"):
        raise CellFileError(f"{name} is an array, not a group of attributes")
    if len(group) > MOST_COLUMNS:
        raise CellFileError(f"{name} has {len(group):,} attributes, more than {MOST_COLUMNS:,}: the file is damaged")
    found = list(group.items())
    for key, item in found:
        if key.lower() in (*NAMES_OF_CELLS, *NAMES_OF_GENES) and len(getattr(item, "shape", None) or ()) != 1:
            raise CellFileError(f"{name}/{key} is not a list of names")
    return {key: item for key, item in found if isinstance(item, h5py.Dataset) and len(item.shape) == 1}


def _strings(values: Any) -> list[str]:
    if hasattr(values, "keys") or values.shape is None or len(values.shape) != 1:
        raise CellFileError(f"{values.name} is {'a group' if hasattr(values, 'keys') else 'not a list of values'}")
    return [v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in values[:]]


__all__ = ["CellFile", "cell_table", "compound_frame", "open_cell_file"]
