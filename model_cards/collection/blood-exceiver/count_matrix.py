"""Read rows of raw counts from AnnData, dense and sparse matrices, backed data or single cells.

AnnData and SciPy are recognised by their attributes, so that this file does not import them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from .count_audit import NotCountsError, audit, recover_counts
from .feature_types import Features, features_of, only_genes, with_types


COUNT_LAYERS = ("counts", "raw_counts", "count", "raw", "umi", "umis", "UMIs")
SAMPLE_CELLS = 64
CHECKED_VALUES = 1 << 16  # at once, so that temporary arrays stay in the processor's cache


@dataclass
class CountRows:
    """Counts of some cells in compressed sparse rows.

    Parameters
    ----------
    data
        Counts, maybe with zeros, shape (values,).
    indices
        Column (gene of the file) of each count, shape (values,).
    indptr
        Where each cell begins, starting at 0, shape (cells + 1,).
    """

    data: np.ndarray
    indices: np.ndarray
    indptr: np.ndarray

    def __len__(self) -> int:
        return len(self.indptr) - 1


class CountMatrix:
    """Cells x genes of raw counts that are read by rows, checked and, if necessary, recovered.

    Parameters
    ----------
    matrix
        Cells x genes: NumPy, SciPy sparse of any format, h5py or backed AnnData, or another matrix with such rows.
    index
        Names of the genes.
    columns
        Columns of the gene table.
    location
        Where the counts were found, for messages.
    cell_names
        Names of the cells, for messages.
    features
        Which columns are genes; the others are left out. By default all are genes.
    source
        What the matrix belongs to, for messages: the path of a file.

    Attributes
    ----------
    recover : bool
        Whether counts are computed back from log1p of scaled counts.
    rounded : bool
        Whether values were rounded that differ from whole numbers by the rounding error of single precision.
    empty_places : tuple of str
        Places with only zeros in the checked cells, for reports.
    own_genes : tuple or None
        Names and columns of the genes in the file, if they are read as those of another species.
    left_out : dict
        Type of features that are not genes -> number of features.
    note : str
        A sentence about types of features that have no meaning.
    names_all_measured : bool
        Whether a gene without a name was not measured. False for cells as gene -> count, which leave out zeros.
    """

    def __init__(
        self,
        matrix: Any,
        index: Sequence[str],
        columns: Mapping[str, Any] | None = None,
        *,
        location: str = "X",
        cell_names: Sequence[str] | None = None,
        features: Features | None = None,
        source: str = "",
    ):
        self.matrix = _row_readable(matrix, location)
        self.index = index
        self.columns = columns
        self.source = source
        self.location = location
        self.recover = False
        self.cell_names = cell_names
        self.empty_places: tuple[str, ...] = ()
        if len(self.matrix.shape) != 2:
            raise ValueError(f"{location} has shape {self.matrix.shape}, not (cells, genes)")
        if self.matrix.shape[1] != len(index):
            raise ValueError(f"{location} has {self.matrix.shape[1]:,} columns, but there are {len(index):,} genes")
        self.rounded = False
        self.own_genes: tuple[Sequence[str], Mapping[str, Any] | None] | None = None
        self.left_out: dict[str, int] = {}
        self.names_all_measured = True
        self.note = "" if features is None else features.note
        if features is not None and features.genes is not None:
            self.left_out = dict(features.left_out)
            self.matrix = GenesOnly(self.matrix, features.genes)
            self.index = only_genes(index, features.genes)
            self.columns = {name: only_genes(values, features.genes) for name, values in (columns or {}).items()}

    @property
    def _where(self) -> str:
        """The place, after its file if there is one, for messages."""
        return f"{self.source}: {self.location}" if self.source else self.location

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return int(self.matrix.shape[0])

    @property
    def n_genes(self) -> int:
        """Number of genes (columns)."""
        return int(self.matrix.shape[1])

    @property
    def n_stored(self) -> int | None:
        """Number of stored counts; None for a dense matrix."""
        offsets = _offsets_of(self.matrix)
        return None if offsets is None else int(offsets[self.n_cells])

    @property
    def described_location(self) -> str:
        """Where the counts come from, for reports."""
        remarks = ["recovered from log1p values"] if self.recover else []
        if self.rounded:
            remarks.append("rounded to whole numbers, within the error of single precision")
        if self.empty_places:
            remarks.append(f"{', '.join(self.empty_places)}: only zeros in the checked cells")
        return f"{self.location} ({'; '.join(remarks)})" if remarks else self.location

    def rows(self, start: int, stop: int) -> CountRows:
        """Read the counts of cells `start` to `stop`.

        Raises
        ------
        NotCountsError
            If a value is negative, missing, infinite or not a whole number; names the cell.
        """
        raw = read_rows(self.matrix, start, stop)
        if self.recover:
            return self._recovered(raw, start)
        parts = (raw.data[i : i + CHECKED_VALUES] for i in range(0, len(raw.data), CHECKED_VALUES))
        checked = [audit(part) for part in parts]
        if any(reason is not None for reason, _ in checked):
            self._refuse(raw, start)
        if not all(whole for _, whole in checked):
            self.rounded = True
            return CountRows(np.rint(raw.data), raw.indices, raw.indptr)
        return raw

    def _recovered(self, raw: CountRows, start: int) -> CountRows:
        stored = np.flatnonzero(raw.data)
        indptr = np.searchsorted(stored, raw.indptr)
        data = raw.data[stored]
        try:
            return CountRows(recover_counts(data, indptr), raw.indices[stored], indptr)
        except NotCountsError as error:
            raise NotCountsError(
                f"{self._where} is log-normalised, but its counts cannot be computed back in the cells from "
                f"{self._cell(start)} on: {error}. Pass raw counts."
            ) from error

    def _refuse(self, raw: CountRows, start: int) -> None:
        for cell in range(len(raw)):
            reason, _ = audit(raw.data[raw.indptr[cell] : raw.indptr[cell + 1]])
            if reason is not None:
                raise NotCountsError(
                    f"{self._where} is not raw counts: cell {self._cell(start + cell)} has {reason}. "
                    "Pass raw counts, e.g. their layer."
                )

    def _cell(self, number: int) -> str:
        return f"{number}" if self.cell_names is None else f"{self.cell_names[number]!r} (number {number:,})"

    def chunks(self, max_values: int = 1 << 22, max_cells: int = 1 << 14) -> Iterator[tuple[int, CountRows]]:
        """Yield (first cell, rows) of all cells in order, in chunks bounded in cells and in stored values."""
        yield from ((start, self.rows(start, stop)) for start, stop in self.ranges(max_values, max_cells))

    def ranges(
        self, max_values: int = 1 << 22, max_cells: int = 1 << 14, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[int, int]]:
        """Yield ranges of cells from `start` to `stop`, bounded in cells and in stored values."""
        stop = self.n_cells if stop is None else stop
        offsets = _offsets_of(self.matrix)
        while start < stop:
            end = min(start + max_cells, stop)
            if offsets is not None:
                bounds = np.asarray(offsets[start : end + 1]).astype(np.int64)
                fitting = int(np.searchsorted(bounds, bounds[0] + max_values, side="right")) - 1
                end = start + max(1, min(fitting, end - start))
            else:
                per_cell = getattr(self.matrix, "values_per_cell", None) or self.n_genes
                end = min(end, start + max(1, max_values // max(per_cell, 1)))
            yield start, end
            start = end


class GenesOnly:
    """The columns of a matrix of cells x features that are genes, by flags of shape (features,)."""

    def __init__(self, matrix: Any, genes: np.ndarray):
        self.matrix, self.genes = matrix, genes
        self.column_map = np.where(genes, np.cumsum(genes) - 1, -1).astype(np.int32)
        self.shape = (int(matrix.shape[0]), int(np.count_nonzero(genes)))
        if hasattr(matrix, "sample_values"):
            self.sample_values = lambda: matrix.sample_values(genes)

    @property
    def indptr(self) -> Any:
        """Where each cell begins among all stored values, including those of other features; None if dense."""
        return _offsets_of(self.matrix)

    @property
    def values_per_cell(self) -> int | None:
        """Stored values of a cell, on average, of a sparse matrix without `indptr`; None for others."""
        return getattr(self.matrix, "values_per_cell", None)

    def read_rows(self, start: int, stop: int) -> CountRows:
        """Read the genes of some cells."""
        return self.select(read_rows(self.matrix, start, stop))

    def select(self, rows: CountRows) -> CountRows:
        """Drop the values of other features."""
        columns = self.column_map.take(rows.indices)
        kept = np.flatnonzero(columns >= 0)
        return CountRows(rows.data.take(kept), columns.take(kept), kept.searchsorted(rows.indptr))


def _offsets_of(matrix: Any) -> Any:
    """Return where the rows of a matrix begin among its stored values, as an array or data set; None if dense."""
    indptr = getattr(matrix, "indptr", None)
    if indptr is None and hasattr(matrix, "group"):  # backed AnnData
        indptr = matrix.group["indptr"]
    return indptr


# -------------------------------------------------------------------- opening


def open_counts(cells: Any, genes: Sequence[str] | None = None, layer: str | None = None) -> CountMatrix:
    """Find the raw counts in cells.

    Parameters
    ----------
    cells
        AnnData (in memory or backed), a matrix or tensor of cells x genes, one cell as a vector, a data frame with
        genes as columns, one ``{gene: count}`` (or a series) or a list of them, or an opened file
        (`cellglot.tokenization.read_cells`).
    genes
        Names of the columns, if `cells` has none.
    layer
        ``"X"``, ``"raw.X"`` or the name of a layer; by default the place that contains counts.

    Raises
    ------
    NotCountsError
        If no place contains raw counts or values from which they are recovered exactly. Describes what was seen.
    """
    if isinstance(cells, CountMatrix):
        return cells
    if isinstance(getattr(cells, "counts", None), CountMatrix):
        return cells.counts
    if hasattr(cells, "var_names") and hasattr(cells, "X"):
        places = _places(cells)
        return choose_counts(places, layer, cell_names=cells.obs_names, source="the AnnData")
    if hasattr(cells, "mod") and hasattr(cells, "obs_names"):
        raise TypeError(
            f"this is MuData of {', '.join(map(str, cells.mod))}: pass the AnnData with RNA counts, as in cells['rna']"
        )
    if is_named_cell(cells):
        cells = [cells]
    named = isinstance(cells, (list, tuple)) and len(cells) > 0 and all(map(is_named_cell, cells))
    if named:
        cells, genes = _from_named(cells)
    if hasattr(cells, "columns") and hasattr(cells, "to_numpy"):
        genes = list(cells.columns) if genes is None else genes
        cells = _frame_values(cells)
    if isinstance(cells, (list, tuple)):
        cells = np.asarray(cells)
    if isinstance(cells, str) or not hasattr(cells, "shape"):
        raise TypeError(
            f"cells are an AnnData, a matrix of cells x genes with genes=..., or {{gene: count}}, not "
            f"{type(cells).__name__}; files are opened by cellglot.tokenization.read_cells"
        )
    if genes is None:
        raise ValueError(f"a matrix of shape {tuple(cells.shape)} needs the names of its columns: pass genes=[...]")
    if len(cells.shape) == 1:
        cells = cells.reshape(1, -1)
    counts = choose_counts({"X": (cells, list(genes), None)}, layer, source="the matrix")
    counts.names_all_measured = not named
    return counts


def choose_counts(
    places: Mapping[str, tuple[Any, Sequence[str], Mapping[str, Any] | None]],
    layer: str | None,
    *,
    cell_names: Sequence[str] | None = None,
    source: str,
) -> CountMatrix:
    """Choose the place that contains raw counts.

    X is used if it contains counts, unless raw.X has more genes or more counts; then the layers usually named for
    counts; then X, raw.X and those layers if counts can be computed back exactly; then a place with only zeros in the
    checked cells.

    Parameters
    ----------
    places
        Name of the place -> (matrix, names of the genes, columns of the gene table).
    layer
        The only place to look at.
    """
    if layer is not None:
        name = layer if layer in places else f"layers[{layer!r}]"
        if name not in places:
            raise ValueError(f"{source} has no {layer!r}: it has {', '.join(places)}")
        places = {name: places[name]}
    candidates = _candidates(places, cell_names, source)
    seen: dict[str, str] = {}
    counts: list[CountMatrix] = []
    recoverable: list[CountMatrix] = []
    empty: list[CountMatrix] = []
    usual = {"X", "raw.X", *(f"layers[{name!r}]" for name in COUNT_LAYERS)}
    for name, candidate in candidates.items():
        if layer is None and name not in usual:
            continue
        sample = sample_rows(candidate.matrix)
        reason, whole = audit(sample.data)
        if reason is None:
            candidate.rounded = not whole
            (counts if sample.data.any() else empty).append(candidate)
            continue
        seen[name] = reason
        if _is_recoverable(candidate, sample):
            recoverable.append(candidate)
    if counts or recoverable or empty:
        chosen = _fullest(counts) if counts else [*recoverable, *empty][0]
        chosen.empty_places = tuple(c.location for c in empty)
        return chosen
    described = "; ".join(f"{name} has {reason}" for name, reason in seen.items())
    others = [name for name in places if name not in seen]
    raise NotCountsError(
        f"no raw counts in {source}: {described or 'no place named for counts'}. "
        + (f"Other layers: {', '.join(others)}; pass layer=... if one contains counts. " if others else "")
        + "Counts are whole numbers, not normalised, scaled or corrected."
    )


def _candidates(
    places: Mapping[str, tuple[Any, Sequence[str], Mapping[str, Any] | None]],
    cell_names: Sequence[str] | None,
    source: str,
) -> dict[str, CountMatrix]:
    """Return the genes of each place, without places that have none."""
    candidates: dict[str, CountMatrix] = {}
    others = ""
    for name, (matrix, index, columns) in with_types(places).items():
        features = features_of(index, columns)
        if features.genes is not None and not features.genes.any():
            others = others or f"{name} has {features.described()}"
            continue
        candidate = CountMatrix(
            matrix, index, columns, location=name, cell_names=cell_names, features=features, source=source
        )
        if candidate.n_cells == 0 or candidate.n_genes == 0:
            raise ValueError(f"{source} is empty: {candidate.n_cells:,} cells x {candidate.n_genes:,} genes")
        candidates[name] = candidate
    if others and not candidates:
        raise ValueError(
            f"{source} has no genes (features of type 'Gene Expression'): {others}. If they are genes, correct "
            "or remove the column of their types (feature_types, modality)"
        )
    return candidates


def _is_recoverable(candidate: CountMatrix, sample: CountRows) -> bool:
    """Try to compute back the counts of a sample, and set `recover` if that works."""
    values = sample.data
    if values.dtype.kind != "f" or not (values.min() >= 0 and np.isfinite(values.max())):
        return False
    candidate.recover = True
    try:
        if hasattr(candidate.matrix, "sample_values"):
            candidate.rows(0, min(SAMPLE_CELLS, candidate.n_cells))
        else:
            candidate._recovered(sample, 0)
    except NotCountsError:
        candidate.recover = False
    return candidate.recover


def _fullest(candidates: list[CountMatrix]) -> CountMatrix:
    """Prefer X, but raw.X if that has more genes or more counts (X may be filtered)."""
    by_name = {c.location: c for c in candidates}
    x, raw = by_name.get("X"), by_name.get("raw.X")
    if x is not None and raw is not None:
        x_sum, raw_sum = (float(sample_rows(c.matrix).data.sum()) for c in (x, raw))
        return raw if raw.n_genes > x.n_genes or raw_sum > x_sum else x
    return x or raw or candidates[0]


def _places(adata: Any) -> dict[str, tuple[Any, Sequence[str], Mapping[str, Any] | None]]:
    var = {str(c): adata.var[c] for c in getattr(adata.var, "columns", ())}
    names = list(adata.var_names)
    places: dict[str, tuple[Any, Sequence[str], Mapping[str, Any] | None]] = {}
    if adata.X is not None:
        places["X"] = (adata.X, names, var)
    if getattr(adata, "raw", None) is not None:
        raw_var = {str(c): adata.raw.var[c] for c in adata.raw.var.columns}
        places["raw.X"] = (adata.raw.X, list(adata.raw.var_names), raw_var)
    for name in getattr(adata, "layers", {}):
        places[f"layers[{name!r}]"] = (adata.layers[name], names, var)
    return places


def is_named_cell(cells: Any) -> bool:
    """Whether this is one cell as gene -> count: a mapping or a series, but not a table or a sparse matrix."""
    named = hasattr(cells, "keys") and hasattr(cells, "items")
    return named and not hasattr(cells, "columns") and not hasattr(cells, "tocsr")


def _from_named(cells: Sequence[Any]) -> tuple[Any, list[str]]:
    column: dict[str, int] = {}
    rows: list[dict[int, float]] = []
    for number, cell in enumerate(cells):
        row: dict[int, float] = {}
        rows.append(row)
        for gene, count in cell.items():
            at = column.setdefault(str(gene), len(column))
            try:
                row[at] = row.get(at, 0.0) + float(count)  # a series may have a gene twice
            except (TypeError, ValueError):
                raise NotCountsError(f"cell {number} has {count!r} for the gene {str(gene)!r}, not a count") from None
    indices = np.fromiter((at for row in rows for at in row), dtype=np.int64)
    data = np.fromiter((count for row in rows for count in row.values()), dtype=np.float64)
    indptr = np.cumsum([0, *map(len, rows)])
    return _by_rows((len(rows), len(column)), indptr, indices, data), list(column)


def _by_rows(shape: tuple[int, ...], indptr: np.ndarray, indices: np.ndarray, data: np.ndarray) -> Any:
    """Return a sparse matrix by rows."""
    return SimpleNamespace(shape=shape, indptr=indptr, indices=indices, data=data)


def _frame_values(frame: Any) -> Any:
    """Return the values of a data frame, NaN for missing ones; refuse columns of text."""
    if hasattr(frame, "sparse"):  # pandas' accessor, if all columns are sparse
        return frame.sparse.to_coo()
    values = frame.to_numpy()
    if values.dtype != object:  # columns of different or nullable types are objects
        return values
    try:
        return frame.to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        text = [str(name) for name, kind in frame.dtypes.items() if getattr(kind, "kind", "O") not in "biuf"]
        raise NotCountsError(
            f"{len(text):,} of the data frame's {len(frame.columns):,} columns are not numbers: "
            f"{', '.join(text[:5])}{', ...' if len(text) > 5 else ''}. Columns must be genes: remove others, and make "
            "the names of cells the index."
        ) from error


# -------------------------------------------------------------------- reading rows


def _row_readable(matrix: Any, name: str = "the matrix") -> Any:
    """Return a matrix whose rows can be read fast; convert other sparse formats to CSR."""
    if (wrong := _sparse_fault(matrix)) is not None:
        raise ValueError(f"{name} is a damaged sparse matrix: {wrong}")
    if getattr(matrix, "format", "csr") != "csr":
        if hasattr(matrix, "to_memory"):  # backed AnnData
            matrix = matrix.to_memory()
        matrix = matrix.tocsr()
    if getattr(matrix, "has_canonical_format", True) is False:
        matrix = matrix.copy()
        matrix.sum_duplicates()
    if hasattr(matrix, "detach"):
        matrix = _from_tensor(matrix.detach().cpu())
    if np.ma.is_masked(matrix):
        raise NotCountsError(f"{int(np.ma.count_masked(matrix)):,} values are masked: fill them with counts")
    if isinstance(matrix, np.matrix):
        matrix = np.asarray(matrix)
    return matrix


def _sparse_fault(matrix: Any) -> str | None:
    """Describe damage of a sparse matrix in memory, before compiled code uses its indices; None if there is none.

    `read_rows` checks the columns of CSR, in the rows that it reads.
    """
    if hasattr(matrix, "read_rows"):  # of a file, which is checked when it is read
        return None
    kind = getattr(matrix, "format", "csr")
    if kind == "coo" and isinstance(getattr(matrix, "row", None), np.ndarray):
        outside = _outside(matrix.row, matrix.shape[0]) or _outside(matrix.col, matrix.shape[1])
        lengths = {len(matrix.row), len(matrix.col), len(matrix.data)}
        return outside or (None if len(lengths) == 1 else "rows, columns and values differ in number")
    indptr, indices, data = (getattr(matrix, part, None) for part in ("indptr", "indices", "data"))
    if kind not in ("csr", "csc") or not all(isinstance(part, np.ndarray) for part in (indptr, indices, data)):
        return None
    assert isinstance(indptr, np.ndarray) and isinstance(indices, np.ndarray) and isinstance(data, np.ndarray)
    major = int(matrix.shape[0 if kind == "csr" else 1])
    if not (
        indptr.ndim == indices.ndim == data.ndim == 1 and indptr.dtype.kind in "iu" and indices.dtype.kind in "iu"
    ):
        return "indptr and indices are not vectors of integers"
    if len(indptr) != major + 1 or len(indices) != len(data):
        return f"{len(indptr):,} offsets, {len(indices):,} indices and {len(data):,} values for shape {matrix.shape}"
    if indptr[0] != 0 or indptr[-1] > len(data) or (indptr[1:] < indptr[:-1]).any():
        return f"its indptr does not increase from 0 to at most its {len(data):,} values"
    return _outside(indices, matrix.shape[0]) if kind == "csc" else None


def _outside(numbers: np.ndarray, n: int) -> str | None:
    if len(numbers) and not (numbers.min() >= 0 and numbers.max() < n):
        return f"it has indices from {numbers.min():,} to {numbers.max():,} along an axis of {n:,}"
    return None


def _from_tensor(tensor: Any) -> Any:
    if "sparse" not in str(tensor.layout):
        return tensor.numpy()
    rows = (tensor.coalesce() if str(tensor.layout) == "torch.sparse_coo" else tensor).to_sparse_csr()
    indptr, indices, data = (part.numpy() for part in (rows.crow_indices(), rows.col_indices(), rows.values()))
    return _by_rows(tuple(rows.shape), indptr, indices, data)


def read_rows(matrix: Any, start: int, stop: int) -> CountRows:
    """Read rows `start` to `stop` unchecked, in compressed sparse rows."""
    if hasattr(matrix, "read_rows"):
        return matrix.read_rows(start, stop)
    indptr = getattr(matrix, "indptr", None)
    if indptr is not None and isinstance(getattr(matrix, "data", None), np.ndarray):
        low, high = int(indptr[start]), int(indptr[stop])
        bounds = indptr[start : stop + 1].astype(np.int64) - low
        return _inside(CountRows(matrix.data[low:high], matrix.indices[low:high], bounds), int(matrix.shape[1]))
    block = matrix[start:stop]
    if hasattr(block, "compute"):  # a lazy array
        block = block.compute()
    if hasattr(block, "tocsr"):
        block = _row_readable(block)
        return _inside(CountRows(block.data, block.indices, block.indptr.astype(np.int64)), int(matrix.shape[1]))
    block = np.asarray(block)
    stored = block != 0
    cells, genes = np.nonzero(stored)
    indptr = np.concatenate([[0], np.cumsum(stored.sum(axis=1))]).astype(np.int64)
    return CountRows(block[cells, genes], genes, indptr)


def _inside(rows: CountRows, n_genes: int) -> CountRows:
    if (outside := _outside(rows.indices, n_genes)) is not None:
        raise ValueError(f"a damaged sparse matrix: {outside} (genes)")
    return rows


def sample_rows(matrix: Any) -> CountRows:
    """Read some rows from the beginning, the middle and the end; if rows are slow to read, some values as one row."""
    if hasattr(matrix, "sample_values"):
        values = matrix.sample_values()
        return CountRows(values, np.zeros(len(values), dtype=np.int64), np.array([0, len(values)]))
    n = int(matrix.shape[0])
    starts = [0] if n <= 3 * SAMPLE_CELLS else [0, n // 2, n - SAMPLE_CELLS]
    blocks = [read_rows(matrix, s, min(s + (SAMPLE_CELLS if len(starts) > 1 else n), n)) for s in starts]
    ends = np.cumsum([0] + [len(b.data) for b in blocks])
    return CountRows(
        np.concatenate([b.data for b in blocks]),
        np.concatenate([b.indices for b in blocks]),
        np.concatenate([[0]] + [b.indptr[1:] + e for b, e in zip(blocks, ends, strict=False)]).astype(np.int64),
    )


__all__ = ["CountMatrix", "CountRows", "choose_counts", "is_named_cell", "open_counts"]
