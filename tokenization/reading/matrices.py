"""Read matrices on disk by ranges of cells: by rows, by columns (converted to rows first), dense, loom."""

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
    """Check that an array has one dimension and one of the kinds of numbers (NumPy's letters); return its length."""
    shape, dtype = getattr(array, "shape", None), getattr(array, "dtype", None)
    if shape is None or dtype is None:
        raise CellFileError(f"{name} is a group, not an array")
    if len(shape) != 1:
        raise CellFileError(f"{name} has shape {tuple(shape)}, not one dimension")
    if np.dtype(dtype).kind not in kinds:
        raise CellFileError(f"{name} contains {dtype}, not {'integers' if kinds == 'iu' else 'numbers'}")
    return int(shape[0])


class Offsets:
    """Where the cells (or genes) of a sparse matrix begin among its values; every range that is read is checked."""

    source = ""

    def __init__(self, array: Any, n_values: int):
        self.array, self.n_values = array, n_values
        n = check_vector(array, "indptr", "iu")
        self.shape = (n,)
        if n == 0:
            raise CellFileError("indptr is empty: it must have one entry more than there are cells")
        first, last = int(array[0]), int(array[n - 1])
        if first != 0:
            raise CellFileError(f"indptr begins at {first:,}, not at 0: the matrix is damaged")
        if last != n_values:
            raise CellFileError(f"indptr ends at {last:,}, but there are {n_values:,} values: the matrix is damaged")

    def __len__(self) -> int:
        return self.shape[0]

    @names_the_file
    def __getitem__(self, place: int | slice) -> Any:
        """Read an offset, or a range of them as int64."""
        if not isinstance(place, slice):
            return int(self.array[place])
        bounds = np.asarray(self.array[place]).astype(np.int64)
        if (bounds[1:] < bounds[:-1]).any():
            raise CellFileError(
                f"indptr decreases between entries {place.start or 0:,} and {place.stop or len(self):,}: it is damaged"
            )
        if len(bounds) and not (bounds[0] >= 0 and bounds[-1] <= self.n_values):
            raise CellFileError(f"indptr has entries outside of the {self.n_values:,} values: it is damaged")
        return bounds


class StoredRows:
    """Compressed sparse rows in HDF5, zarr or memory-mapped arrays, or others that can be sliced."""

    def __init__(self, data: Any, indices: Any, indptr: Any, shape: tuple[int, int]):
        self.data, self.indices = data, indices
        self.shape = (int(shape[0]), int(shape[1]))
        n_values, n_indices = check_vector(data, "data", "biuf"), check_vector(indices, "indices", "iu")
        n_offsets = check_vector(indptr, "indptr", "iu")
        if n_offsets != self.shape[0] + 1:
            raise CellFileError(f"indptr has {n_offsets:,} entries, not one more than the {self.shape[0]:,} cells")
        if n_values != n_indices:
            raise CellFileError(f"there are {n_values:,} values, but {n_indices:,} indices: the matrix is damaged")
        self.indptr = Offsets(indptr, n_values)

    @property
    def source(self) -> str:
        """The file, for messages."""
        return self.indptr.source

    @source.setter
    def source(self, path: str) -> None:
        self.indptr.source = path

    def offsets(self, start: int, stop: int) -> tuple[int, int, np.ndarray]:
        """Read where the values of some cells begin and end, and where among them each cell begins."""
        bounds = self.indptr[start : stop + 1]
        return int(bounds[0]), int(bounds[-1]), bounds - bounds[0]

    @names_the_file
    def read_rows(self, start: int, stop: int) -> CountRows:
        """Read some cells."""
        low, high, indptr = self.offsets(start, stop)
        data, indices = np.asarray(self.data[low:high]), np.asarray(self.indices[low:high])
        if not len(data) == len(indices) == high - low:
            raise CellFileError(
                f"cells {start:,} to {stop:,} have {len(data):,} of {high - low:,} values: the file is cut short"
            )
        if len(indices) and not (int(indices.min()) >= 0 and int(indices.max()) < self.shape[1]):
            raise CellFileError(
                f"cells {start:,} to {stop:,} have gene indices from {int(indices.min()):,} to "
                f"{int(indices.max()):,}, but the matrix has {self.shape[1]:,} columns: it is damaged"
            )
        return canonical(CountRows(data, indices, indptr))


def canonical(rows: CountRows) -> CountRows:
    """Sum values that are stored for the same cell and gene; where columns ascend, there are none."""
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
    """A dense matrix in HDF5 or zarr; its cells are rows, or columns if it is transposed (loom)."""

    source = ""

    def __init__(self, dataset: Any, transposed: bool = False):
        self.dataset, self.transposed = dataset, transposed
        shape, dtype = getattr(dataset, "shape", None), getattr(dataset, "dtype", None)
        if shape is None or len(shape) != 2:
            found = "a group" if shape is None and hasattr(dataset, "keys") else f"an array of shape {shape}"
            raise CellFileError(f"{dataset.name} is {found}, not a matrix")
        if np.dtype(dtype).kind not in "biuf":
            raise CellFileError(f"{dataset.name} contains {dtype}, not numbers")
        self.shape = tuple(int(n) for n in (shape[::-1] if transposed else shape))

    @names_the_file
    def __getitem__(self, cells: slice) -> np.ndarray:
        """Read some cells, dense."""
        if self.transposed:
            return np.ascontiguousarray(self.dataset[:, cells].T)
        return np.asarray(self.dataset[cells])


class ConvertedRows:
    """A matrix that is stored by columns or as a list of entries; it is converted to rows on disk when first read.

    The conversion reads the entries twice, `CONVERTED_VALUES` of them at a time.

    Parameters
    ----------
    entries
        Yields arrays (cell, gene, value) of bounded length, with ascending genes within each cell; called twice.
    sample
        Returns some values; of flagged genes only, if an array of flags is passed.
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

    @names_the_file
    def sample_values(self, genes: np.ndarray | None = None) -> np.ndarray:
        """Read some values; of flagged genes only, if an array of flags is passed."""
        return self.sample(genes)

    @property
    @names_the_file
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
        # Written last: where this file exists, the conversion is complete.
        with atomic(folder / "indptr.npy") as temporary:
            np.save(temporary, indptr)


def columns_to_rows(
    data: Any, indices: Any, indptr: Any, shape: tuple[int, int], folder: Path | None = None
) -> ConvertedRows:
    """Convert compressed sparse columns (cells x genes) to rows."""
    n_values, n_indices = check_vector(data, "data", "biuf"), check_vector(indices, "indices", "iu")
    n_offsets = check_vector(indptr, "indptr", "iu")
    if n_offsets != shape[1] + 1 or n_values != n_indices:
        raise CellFileError(
            f"a matrix by columns of shape {tuple(shape)} has {n_values:,} values, {n_indices:,} indices and "
            f"{n_offsets:,} offsets: it is damaged"
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
                    f"cell indices go from {cells.min():,} to {cells.max():,}, but the matrix has {shape[0]:,} cells: "
                    "it is damaged"
                )
            genes = np.repeat(np.arange(gene, stop), np.diff(bounds[gene : stop + 1]))
            values = np.asarray(data[low:high])
            if not len(cells) == len(genes) == len(values):
                raise CellFileError(
                    f"genes {gene:,} to {stop:,} have {len(values):,} of {high - low:,} values: the file is cut short"
                )
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
