"""Matrices on disk, read by ranges of cells: rows, columns (converted to rows first), dense, loom, Matrix Market."""

import gzip
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cellglot.outputs import atomic
from cellglot.outputs.environment import check_room, reserve
from cellglot.tokenization.count_matrix import CountRows


CONVERTED_VALUES = 1 << 23  # values converted at once


# What reading a damaged file raises: HDF5, the codecs of zarr, gzip and pandas each in their own way.
READ_ERRORS = (ValueError, OSError, EOFError, RuntimeError, KeyError, zlib.error)


class CellFileError(ValueError):
    """A file of cells is missing, damaged, cut short or of no known format."""


class StoredRows:
    """Compressed sparse rows in HDF5, zarr or memory-mapped arrays.

    Parameters
    ----------
    data, indices, indptr
        The three arrays; anything that can be sliced.
    shape
        (cells, genes).
    """

    def __init__(self, data: Any, indices: Any, indptr: Any, shape: tuple[int, int]):
        self.data, self.indices, self.indptr = data, indices, indptr
        self.shape = (int(shape[0]), int(shape[1]))
        n_values, n_indices, n_offsets = (int(array.shape[0]) for array in (data, indices, indptr))
        if n_offsets != self.shape[0] + 1:
            raise CellFileError(f"indptr has {n_offsets:,} entries, not one more than the {self.shape[0]:,} cells")
        if not (n_values == n_indices == int(indptr[n_offsets - 1])):
            raise CellFileError(
                f"{n_values:,} values, {n_indices:,} indices and an indptr that ends at "
                f"{int(indptr[n_offsets - 1]):,} do not belong together"
            )

    def offsets(self, start: int, stop: int) -> tuple[int, int, np.ndarray]:
        """Read where the values of some cells begin and end, and where among them each cell begins.

        Raises
        ------
        CellFileError
            If offsets fall.
        """
        bounds = np.asarray(self.indptr[start : stop + 1]).astype(np.int64)
        if (np.diff(bounds) < 0).any():
            raise CellFileError(f"indptr falls between cells {start:,} and {stop:,}: the matrix is damaged")
        return int(bounds[0]), int(bounds[-1]), bounds - bounds[0]

    def read_rows(self, start: int, stop: int) -> CountRows:
        """Read some cells.

        Raises
        ------
        CellFileError
            If offsets fall or an index lies beyond the columns.
        """
        low, high, indptr = self.offsets(start, stop)
        data, indices = np.asarray(self.data[low:high]), np.asarray(self.indices[low:high])
        if len(indices) and not (int(indices.min()) >= 0 and int(indices.max()) < self.shape[1]):
            raise CellFileError(
                f"cells {start:,} to {stop:,} have gene indices up to {int(indices.max()):,}, but the matrix has "
                f"{self.shape[1]:,} columns"
            )
        return canonical(CountRows(data, indices, indptr))


def canonical(rows: CountRows) -> CountRows:
    """Sum values that stand twice for the same cell and gene; columns in ascending order are known to be fine."""
    rising = rows.indices[1:] > rows.indices[:-1]
    starts = rows.indptr[1:-1]
    rising[starts[(starts > 0) & (starts < len(rows.indices))] - 1] = True
    if rising.all():
        return rows
    from scipy.sparse import csr_matrix

    width = int(rows.indices.max()) + 1
    matrix = csr_matrix((rows.data, rows.indices, rows.indptr), shape=(len(rows), width), copy=True)
    matrix.sum_duplicates()
    return CountRows(matrix.data, matrix.indices, matrix.indptr.astype(np.int64))


class StoredDense:
    """A dense matrix on disk, cells in rows or (loom) in columns.

    Parameters
    ----------
    dataset
        Two-dimensional HDF5 or zarr array.
    transposed
        Genes are in rows.
    """

    def __init__(self, dataset: Any, transposed: bool = False):
        self.dataset, self.transposed = dataset, transposed
        shape = dataset.shape[::-1] if transposed else dataset.shape
        self.shape = tuple(int(n) for n in shape)

    def __getitem__(self, cells: slice) -> np.ndarray:
        """Read some cells, dense."""
        if self.transposed:
            return np.ascontiguousarray(self.dataset[:, cells].T)
        return np.asarray(self.dataset[cells])


class ConvertedRows:
    """A matrix that is stored by columns or as a list of entries; converted to rows on disk when first read.

    The conversion reads the entries twice and holds `CONVERTED_VALUES` of them at a time.

    Parameters
    ----------
    shape
        (cells, genes).
    entries
        Called twice; gives (cell, gene, value) arrays of bounded length, genes in ascending order within each cell.
    sample
        Gives some values, of the genes flagged if an array of flags is passed.
    folder
        Where to keep the converted matrix; a temporary folder by default.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        entries: Callable[[], Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]],
        sample: Callable[..., np.ndarray],
        folder: Path | None = None,
    ):
        self.shape = (int(shape[0]), int(shape[1]))
        self.entries, self.sample_values = entries, sample
        self.folder = folder
        self._temporary: tempfile.TemporaryDirectory | None = None
        self._rows: StoredRows | None = None

    @property
    def rows(self) -> StoredRows:
        """The converted matrix."""
        if self._rows is None:
            folder = self.folder
            if folder is None:
                self._temporary = tempfile.TemporaryDirectory(prefix="cellglot-")
                folder = Path(self._temporary.name)
            if not (folder / "indptr.npy").exists():
                self._convert(folder)
            data, indices, indptr = (
                np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("data", "indices", "indptr")
            )
            self._rows = StoredRows(data, indices, indptr, shape=self.shape)
        return self._rows

    @property
    def indptr(self) -> Any:
        """Where each cell begins, shape (cells + 1,)."""
        return self.rows.indptr

    def read_rows(self, start: int, stop: int) -> CountRows:
        """Read some cells."""
        return self.rows.read_rows(start, stop)

    def _convert(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        lengths = np.zeros(self.shape[0], dtype=np.int64)
        dtype: np.dtype = np.dtype(np.int8)
        for cells, _, values in self.entries():
            lengths += np.bincount(cells, minlength=len(lengths))
            dtype = np.promote_types(dtype, values.dtype)
        indptr = np.concatenate([[0], np.cumsum(lengths)])
        needed = int(indptr[-1]) * (dtype.itemsize + 4)
        where = "choose an output on another disk" if self.folder else "set TMPDIR to a folder with room"
        check_room(folder, needed, "converting the matrix to rows", where)
        data = np.lib.format.open_memmap(folder / "data.npy", "w+", dtype=dtype, shape=(int(indptr[-1]),))
        indices = np.lib.format.open_memmap(folder / "indices.npy", "w+", dtype=np.int32, shape=(int(indptr[-1]),))
        for name in ("data", "indices"):
            reserve(folder / f"{name}.npy", (folder / f"{name}.npy").stat().st_size)
        filled = indptr[:-1].copy()
        for cells, genes, values in self.entries():
            order = np.argsort(cells, kind="stable")
            sorted_cells = cells[order]
            first = np.flatnonzero(np.diff(sorted_cells, prepend=-1))
            counts = np.diff(first, append=len(order))
            within = np.arange(len(order)) - np.repeat(first, counts)
            places = filled[sorted_cells] + within
            data[places], indices[places] = values[order], genes[order]
            filled[sorted_cells[first]] += counts
        data.flush()
        indices.flush()
        # Written last, under its own name only when whole: the mark of a finished conversion.
        with atomic(folder / "indptr.npy") as temporary:
            np.save(temporary, indptr)


def columns_to_rows(
    data: Any, indices: Any, indptr: Any, shape: tuple[int, int], folder: Path | None = None
) -> ConvertedRows:
    """Give compressed sparse columns (cells x genes) as rows.

    Raises
    ------
    CellFileError
        If values, indices and offsets do not fit together; while reading, if an index lies outside the matrix.
    """
    bounds = np.asarray(indptr[:]).astype(np.int64)
    n_values, n_indices = int(data.shape[0]), int(indices.shape[0])
    if len(bounds) != shape[1] + 1 or bounds[-1] != n_values or n_values != n_indices:
        raise CellFileError(
            f"a matrix by columns of shape {tuple(shape)} with {n_values:,} values, {n_indices:,} indices and "
            f"{len(bounds):,} offsets does not hold together"
        )

    def entries() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        gene = 0
        while gene < shape[1]:
            stop = int(np.searchsorted(bounds, bounds[gene] + CONVERTED_VALUES, side="right")) - 1
            stop = max(stop, gene + 1)
            low, high = int(bounds[gene]), int(bounds[stop])
            cells = np.asarray(indices[low:high]).astype(np.int64)
            if len(cells) and not (cells.min() >= 0 and cells.max() < shape[0]):
                raise CellFileError(f"cell index {cells.max():,} in a matrix of {shape[0]:,} cells: it is damaged")
            genes = np.repeat(np.arange(gene, stop), np.diff(bounds[gene : stop + 1]))
            yield cells, genes, np.asarray(data[low:high])
            gene = stop

    def sample(genes: np.ndarray | None = None) -> np.ndarray:
        starts = sorted({0, n_values // 2, max(n_values - 10_000, 0)})
        if genes is None:
            return np.concatenate([np.asarray(data[s : s + 10_000]) for s in starts])
        of_genes = np.cumsum(np.where(genes, np.diff(bounds), 0))  # values of the flagged genes up to each
        parts = [np.asarray(data[:0])]
        for nth in (0, of_genes[-1] // 2, max(of_genes[-1] - 10_000, 0)):
            first = int(np.searchsorted(of_genes, nth, side="right"))
            low = int(bounds[min(first, shape[1])])
            flags = genes[np.searchsorted(bounds, np.arange(low, min(low + 10_000, n_values)), side="right") - 1]
            parts.append(np.asarray(data[low : low + 10_000])[flags])
        return np.concatenate(parts)

    return ConvertedRows(shape, entries, sample, folder)


def market_to_rows(path: Path, shape: tuple[int, int], folder: Path | None = None) -> ConvertedRows:
    """Give a Matrix Market file of genes x cells, plain or gzipped, as rows of cells.

    Parameters
    ----------
    path
        The file.
    shape
        (cells, genes) by the barcodes and features beside it.
    folder
        As in `ConvertedRows`.

    Raises
    ------
    CellFileError
        If the file's shape is not that of the barcodes and features; while reading, if an entry lies outside the
        matrix or the file is cut short.
    """
    header = read_market_header(path)
    if header["shape"] not in (shape[::-1], shape):
        raise CellFileError(
            f"{path} is {header['shape'][0]:,} x {header['shape'][1]:,}, but there are {shape[1]:,} features and "
            f"{shape[0]:,} barcodes"
        )
    genes_first = header["shape"] == shape[::-1]

    def chunks(length: int) -> Iterator[pd.DataFrame]:
        """Read entries, so many at once; what goes wrong is laid to the file."""
        names, types = ["row", "column", "value"], {"row": np.int64, "column": np.int64}
        options: dict[str, Any] = {"sep": r"\s+", "header": None, "names": names, "dtype": types}
        seen = 0
        try:
            with pd.read_csv(path, skiprows=header["lines"], chunksize=length, **options) as reader:
                for chunk in reader:
                    if chunk.empty:
                        return
                    if chunk["value"].dtype.kind not in "iuf":
                        raise CellFileError(f"{path} has values that are no numbers after {seen:,} entries")
                    seen += len(chunk)
                    yield chunk
        except pd.errors.EmptyDataError:
            return
        except CellFileError:
            raise
        except READ_ERRORS as error:
            raise CellFileError(f"{path} cannot be read after {seen:,} entries: {error}") from error

    def entries() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        seen = 0
        for chunk in chunks(CONVERTED_VALUES // 8):
            seen += len(chunk)
            row, column = chunk["row"].to_numpy() - 1, chunk["column"].to_numpy() - 1
            cells, genes = (column, row) if genes_first else (row, column)
            if not (cells.min() >= 0 and cells.max() < shape[0] and genes.min() >= 0 and genes.max() < shape[1]):
                raise CellFileError(f"{path} has an entry outside its {shape[1]:,} genes x {shape[0]:,} cells")
            yield cells, genes, chunk["value"].to_numpy()
        if seen != header["entries"]:
            raise CellFileError(f"{path} has {seen:,} entries where its head says {header['entries']:,}: cut short?")

    def sample(genes: np.ndarray | None = None) -> np.ndarray:
        for chunk in chunks(10_000):
            values = chunk["value"].to_numpy()
            if genes is not None:
                gene = chunk["row" if genes_first else "column"].to_numpy() - 1
                values = values[genes.take(gene, mode="clip")]
            if len(values):
                return values
        return np.zeros(0, dtype=np.int64)

    return ConvertedRows(shape, entries, sample, folder)


def read_market_header(path: Path) -> dict[str, Any]:
    """Read shape, number of entries and number of lines of a Matrix Market file's head.

    Raises
    ------
    CellFileError
        If the file does not begin as a general coordinate matrix does.
    """
    opener = gzip.open if path.name.endswith(".gz") else open
    try:
        with opener(path, "rt", encoding="latin-1") as file:
            first = file.readline()
            lines = 1
            if not first.startswith("%%MatrixMarket matrix coordinate") or "general" not in first:
                raise CellFileError(f"{path} is no general coordinate Matrix Market file: it begins {first[:60]!r}")
            line = file.readline()
            lines += 1
            while line.startswith("%"):
                line = file.readline()
                lines += 1
        rows, columns, entries = (int(n) for n in line.split())
    except CellFileError:
        raise
    except READ_ERRORS as error:
        raise CellFileError(f"{path} has no readable Matrix Market head: {error}") from error
    return {"shape": (rows, columns), "entries": entries, "lines": lines}


__all__ = [
    "READ_ERRORS",
    "CellFileError",
    "ConvertedRows",
    "StoredDense",
    "StoredRows",
    "canonical",
    "columns_to_rows",
    "market_to_rows",
    "read_market_header",
]
