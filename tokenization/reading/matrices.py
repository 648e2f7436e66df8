"""Matrices on disk, read by ranges of cells: rows, columns (converted to rows first), dense, loom."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cellglot.outputs import atomic
from cellglot.outputs.environment import check_room, reserve
from cellglot.tokenization.count_matrix import CountRows
from cellglot.tokenization.reading.errors import READ_ERRORS, CellFileError, names_the_file


CONVERTED_VALUES = 1 << 23  # values converted at once


def check_vector(array: Any, name: str, kinds: str) -> int:
    """Check that a stored array has one dimension and numbers of some kinds; return its length.

    Parameters
    ----------
    array
        Anything with shape and dtype.
    kinds
        NumPy's letters, e.g. ``"iu"``.
    """
    shape, dtype = getattr(array, "shape", None), getattr(array, "dtype", None)
    if shape is None or dtype is None:
        raise CellFileError(f"{name} is a group, not an array")
    if len(shape) != 1:
        raise CellFileError(f"{name} has shape {tuple(shape)}, not one dimension")
    if np.dtype(dtype).kind not in kinds:
        raise CellFileError(f"{name} holds {dtype}, not {'integers' if kinds == 'iu' else 'numbers'}")
    return int(shape[0])


class Offsets:
    """Where the cells (or genes) of a sparse matrix begin among its values; every range is checked as it is read.

    Raises
    ------
    CellFileError
        If it is not a vector of integers from 0 to `n_values`.
    """

    source = ""

    def __init__(self, array: Any, n_values: int):
        self.array, self.n_values = array, n_values
        n = check_vector(array, "indptr", "iu")
        self.shape = (n,)
        if n == 0:
            raise CellFileError("indptr is empty: it has one entry more than there are cells")
        first, last = int(array[0]), int(array[n - 1])
        if first != 0:
            raise CellFileError(f"indptr begins at {first:,}, not at 0: the matrix is damaged")
        if last != n_values:
            raise CellFileError(
                f"indptr ends at {last:,}, but there are {n_values:,} values: they do not belong together"
            )

    def __len__(self) -> int:
        """Return the number of offsets."""
        return self.shape[0]

    @names_the_file
    def __getitem__(self, place: int | slice) -> Any:
        """Read an offset, or a range of them as int64."""
        if not isinstance(place, slice):
            return int(self.array[place])
        bounds = np.asarray(self.array[place]).astype(np.int64)
        if (bounds[1:] < bounds[:-1]).any():
            raise CellFileError(
                f"indptr falls between entries {place.start or 0:,} and {place.stop or len(self):,}: it is damaged"
            )
        if len(bounds) and not (bounds[0] >= 0 and bounds[-1] <= self.n_values):
            raise CellFileError(f"indptr leads outside of the {self.n_values:,} values: it is damaged")
        return bounds


class StoredRows:
    """Compressed sparse rows in HDF5, zarr or memory-mapped arrays.

    Parameters
    ----------
    data, indices, indptr
        The three arrays; anything that can be sliced.
    """

    def __init__(self, data: Any, indices: Any, indptr: Any, shape: tuple[int, int]):
        self.data, self.indices = data, indices
        self.shape = (int(shape[0]), int(shape[1]))
        n_values, n_indices = check_vector(data, "data", "biuf"), check_vector(indices, "indices", "iu")
        n_offsets = check_vector(indptr, "indptr", "iu")
        if n_offsets != self.shape[0] + 1:
            raise CellFileError(f"indptr has {n_offsets:,} entries, not one more than the {self.shape[0]:,} cells")
        if n_values != n_indices:
            raise CellFileError(f"{n_values:,} values and {n_indices:,} indices do not belong together")
        self.indptr = Offsets(indptr, n_values)

    @property
    def source(self) -> str:
        """The file, for messages."""
        return self.indptr.source

    @source.setter
    def source(self, path: str) -> None:
        self.indptr.source = path

    def offsets(self, start: int, stop: int) -> tuple[int, int, np.ndarray]:
        """Read where the values of some cells begin and end, and where among them each cell begins.

        Raises
        ------
        CellFileError
            If offsets fall or lie outside of the values.
        """
        bounds = self.indptr[start : stop + 1]
        return int(bounds[0]), int(bounds[-1]), bounds - bounds[0]

    @names_the_file
    def read_rows(self, start: int, stop: int) -> CountRows:
        """Read some cells."""
        low, high, indptr = self.offsets(start, stop)
        data, indices = np.asarray(self.data[low:high]), np.asarray(self.indices[low:high])
        if not len(data) == len(indices) == high - low:
            raise CellFileError(
                f"cells {start:,} to {stop:,} have {len(data):,} of {high - low:,} values: it is cut short"
            )
        if len(indices) and not (int(indices.min()) >= 0 and int(indices.max()) < self.shape[1]):
            raise CellFileError(
                f"cells {start:,} to {stop:,} have gene indices up to {int(indices.max()):,} (the least "
                f"is {int(indices.min()):,}), but the matrix has {self.shape[1]:,} columns"
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
    """

    source = ""

    def __init__(self, dataset: Any, transposed: bool = False):
        self.dataset, self.transposed = dataset, transposed
        shape, dtype = getattr(dataset, "shape", None), getattr(dataset, "dtype", None)
        if shape is None or len(shape) != 2:
            found = "a group" if shape is None and hasattr(dataset, "keys") else f"an array of shape {shape}"
            raise CellFileError(f"{dataset.name} is {found}, not a matrix")
        if np.dtype(dtype).kind not in "biuf":
            raise CellFileError(f"{dataset.name} holds {dtype}, not numbers")
        self.shape = tuple(int(n) for n in (shape[::-1] if transposed else shape))

    @names_the_file
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
        self.entries, self.sample = entries, sample
        self.folder, self.source = folder, ""
        self._temporary: tempfile.TemporaryDirectory | None = None
        self._rows: StoredRows | None = None

    @property
    def rows(self) -> StoredRows:
        """The converted matrix."""
        return self._converted()

    @names_the_file
    def sample_values(self, genes: np.ndarray | None = None) -> np.ndarray:
        """Read some values, of the genes flagged if an array of flags is passed."""
        return self.sample() if genes is None else self.sample(genes)

    @names_the_file
    def _converted(self) -> StoredRows:
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
            self._rows.source = self.source
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
    """Return compressed sparse columns (cells x genes) as rows."""
    n_values, n_indices = check_vector(data, "data", "biuf"), check_vector(indices, "indices", "iu")
    n_offsets = check_vector(indptr, "indptr", "iu")
    if n_offsets != shape[1] + 1 or n_values != n_indices:
        raise CellFileError(
            f"a matrix by columns of shape {tuple(shape)} with {n_values:,} values, {n_indices:,} indices and "
            f"{n_offsets:,} offsets does not hold together"
        )
    bounds = Offsets(indptr, n_values)[:]

    def entries() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        gene = 0
        while gene < shape[1]:
            stop = int(np.searchsorted(bounds, bounds[gene] + CONVERTED_VALUES, side="right")) - 1
            stop = max(stop, gene + 1)
            low, high = int(bounds[gene]), int(bounds[stop])
            cells = np.asarray(indices[low:high]).astype(np.int64)
            if len(cells) and not (cells.min() >= 0 and cells.max() < shape[0]):
                raise CellFileError(
                    f"cell indices from {cells.min():,} up to {cells.max():,} in a matrix of {shape[0]:,} cells: it "
                    "is damaged"
                )
            genes = np.repeat(np.arange(gene, stop), np.diff(bounds[gene : stop + 1]))
            values = np.asarray(data[low:high])
            if not len(cells) == len(genes) == len(values):
                raise CellFileError(f"genes {gene:,} to {stop:,} have {len(values):,} of {high - low:,} values")
            yield cells, genes, values
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


__all__ = [
    "READ_ERRORS",
    "CellFileError",
    "ConvertedRows",
    "Offsets",
    "StoredDense",
    "StoredRows",
    "canonical",
    "check_vector",
    "columns_to_rows",
]
