"""Cells of SOMA experiments (TileDB), read by blocks of rows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cellglot.tokenization.count_matrix import COUNT_LAYERS, CountRows, read_rows
from cellglot.tokenization.reading.errors import CellFileError, names_the_file
from cellglot.tokenization.reading.matrices import canonical
from cellglot.tokenization.reading.obs import plain_column, plain_values, with_type
from cellglot.tokenization.reading.selection import joined
from cellglot.tokenization.reading.soma_experiment import SomaExperiment


ROWS_OF = "soma_joinid"
MEASUREMENT = "RNA"
NAMES_OF_CELLS, NAMES_OF_GENES = ("obs_id",), ("var_id", "feature_id")
NAME_OF_X = "data"  # of the layer that tiledbsoma.io writes X to
MOST_CELLS, MOST_VALUES = 1 << 12, 1 << 22  # of a matrix that are read at once
MOST_ROWS = 1 << 16  # of obs that are read at once

Place = tuple[Any, list[str], Mapping[str, Any]]


class SomaTable:
    """The cells of an experiment: its obs.

    Parameters
    ----------
    ids
        ``soma_joinid`` of the cells, ascending, shape (cells,); by default 0 to `n_cells`.
    """

    source = ""

    def __init__(
        self, experiment: SomaExperiment, columns: Sequence[str], n_cells: int, ids: np.ndarray | None = None
    ):
        self.experiment, self.ids = experiment, ids
        self.n_cells = n_cells if ids is None else len(ids)
        self.n_in_file: int | None = None  # if a filter left out some of them
        self._name_column = next((name for name in NAMES_OF_CELLS if name in columns), None)
        self.names = [name for name in columns if name not in (ROWS_OF, *NAMES_OF_CELLS)]
        self._asked: list[str] = []  # columns, which are then read together
        self._read: tuple[int, int, dict[str, np.ndarray]] = (0, 0, {})

    def of_cells(self, rows: np.ndarray) -> "SomaTable":
        """Return the table of some cells, by their numbers in ascending order."""
        columns = [*self.names, *([] if self._name_column is None else [self._name_column])]
        table = SomaTable(self.experiment, columns, self.n_cells, rows if self.ids is None else self.ids[rows])
        table.source, table.n_in_file = self.source, self.n_cells
        return table

    def __len__(self) -> int:
        return self.n_cells

    def row_numbers(self, start: int, stop: int) -> np.ndarray:
        """Return ``soma_joinid`` of some cells."""
        return np.arange(start, stop) if self.ids is None else np.asarray(self.ids[start:stop])

    def index(self, start: int, stop: int) -> np.ndarray:
        """Read names of cells; without names, ``soma_joinid``."""
        if self._name_column is None:
            return self.row_numbers(start, stop).astype(str).astype(object)
        names = np.empty(stop - start, dtype=object)
        names[:] = ["NA" if v is None else str(v) for v in self.column(self._name_column, start, stop).tolist()]
        return names

    @names_the_file
    def column(self, name: str, start: int, stop: int) -> np.ndarray:
        """Read a column; columns that were read of other cells before are read of these by the same query."""
        if stop - start > MOST_ROWS:
            starts = range(start, stop, MOST_ROWS)
            return np.concatenate([self._query([name], at, min(at + MOST_ROWS, stop))[name] for at in starts])
        if name not in self._asked:
            self._asked.append(name)
        first, last, found = self._read
        if not (found and first <= start and stop <= last):
            first, last, found = start, stop, self._query(self._asked, start, stop)
        elif name not in found:
            found = found | self._query([name], first, last)
        self._read = (first, last, found)
        return found[name][start - first : stop - first]

    def _query(self, columns: list[str], start: int, stop: int) -> dict[str, np.ndarray]:
        table = self._table(columns, start, stop)
        return {name: _plain(table.column(name)) for name in columns}

    def _table(self, columns: list[str], start: int, stop: int) -> Any:
        """Read some columns as a table of Arrow."""
        import pyarrow as pa

        ids = self.row_numbers(start, stop)

        def read(experiment: Any) -> Any:
            if not len(ids):
                return experiment.obs.schema.empty_table()
            table = experiment.obs.read(coords=(_coordinates(ids),), column_names=[ROWS_OF, *columns]).concat()
            found = table.column(ROWS_OF).to_numpy()
            if len(found) and (np.diff(found) <= 0).any():
                order = np.argsort(found, kind="stable")
                table, found = table.take(pa.array(order)), found[order]
            if not np.array_equal(found, ids):
                raise CellFileError(
                    f"obs has {len(found):,} of the {len(ids):,} cells from {ROWS_OF} {ids[0]:,} to {ids[-1]:,}: it "
                    "changed while it was read, or is damaged"
                )
            return table

        return self.experiment.read(read)

    def is_read(self, name: str) -> bool:
        """Whether there is such a column: all are supported."""
        return name in self.names

    @names_the_file
    def series(self, name: str) -> pd.Series:
        """Read a whole column with its type."""
        import pyarrow as pa

        starts = range(0, self.n_cells, MOST_ROWS)
        parts = [self._table([name], at, min(at + MOST_ROWS, self.n_cells)).select([name]) for at in starts]
        column = pa.concat_tables(parts).unify_dictionaries().column(name)
        if pa.types.is_dictionary(column.type):
            return column.to_pandas()
        return pd.Series(with_type(_plain(column)), copy=False)


def _plain(column: Any) -> np.ndarray:
    """Return a column of Arrow as numbers, or as objects with None for missing values."""
    import pyarrow as pa

    column = column.combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    if pa.types.is_dictionary(column.type):
        categories = np.append(plain_column(column.dictionary.to_pandas()).astype(object), [None])
        return categories[column.indices.fill_null(len(categories) - 1).to_numpy(zero_copy_only=False)]
    if column.null_count or not (
        pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_boolean(column.type)
    ):
        values = np.empty(len(column), dtype=object)
        values[:] = column.to_pylist()
        return plain_column(pd.Series(values, dtype=object))
    return plain_values(column.to_numpy(zero_copy_only=False))


def _coordinates(ids: np.ndarray) -> Any:
    """Return ascending ids as SOMA takes them: a range, including its end, if there are no gaps."""
    first, last = int(ids[0]), int(ids[-1])
    return slice(first, last) if last - first == len(ids) - 1 else np.asarray(ids, dtype=np.int64)


class SomaRows:
    """A matrix of cells x genes of an experiment, sparse or dense; blocks of cells are read at once and kept.

    Parameters
    ----------
    place
        Names of measurement and layer.
    genes
        ``soma_joinid`` of the genes, ascending, shape (genes,).
    values_per_cell
        Stored values of a cell, on average.
    ids
        ``soma_joinid`` of the cells, ascending, shape (cells,); by default 0 to `n_cells`.
    """

    source = ""

    def __init__(
        self,
        experiment: SomaExperiment,
        place: tuple[str, str],
        genes: np.ndarray,
        values_per_cell: int,
        n_cells: int,
        ids: np.ndarray | None = None,
    ):
        self.experiment, self.place, self.genes, self.ids = experiment, place, genes, ids
        self.values_per_cell = max(values_per_cell, 1)
        self.shape = (n_cells if ids is None else len(ids), len(genes))
        self._block_cells = max(1, min(MOST_CELLS, MOST_VALUES // self.values_per_cell))
        self._kept: tuple[int, CountRows] = (-1, CountRows(np.zeros(0), np.zeros(0, np.int32), np.zeros(1, np.int64)))

    def of_cells(self, rows: np.ndarray) -> "SomaRows":
        """Return some cells, by their numbers in ascending order."""
        ids = rows if self.ids is None else self.ids[rows]
        chosen = SomaRows(self.experiment, self.place, self.genes, self.values_per_cell, self.shape[0], ids)
        chosen.source = self.source
        return chosen

    @names_the_file
    def read_rows(self, start: int, stop: int) -> CountRows:
        """Read some cells."""
        parts = []
        while start < stop:
            number = start // self._block_cells
            first = number * self._block_cells
            end = min(stop, first + self._block_cells)
            parts.append(_part(self._block(number), start - first, end - first))
            start = end
        return joined(parts) if parts else _part(self._kept[1], 0, 0)

    def _block(self, number: int) -> CountRows:
        if self._kept[0] != number:
            first = number * self._block_cells
            stop = min(first + self._block_cells, self.shape[0])
            ids = np.arange(first, stop) if self.ids is None else np.asarray(self.ids[first:stop])
            self._kept = (number, self.experiment.read(lambda experiment: self._read(experiment, ids)))
        return self._kept[1]

    def _read(self, experiment: Any, ids: np.ndarray) -> CountRows:
        from scipy.sparse import coo_matrix

        matrix = experiment.ms[self.place[0]].X[self.place[1]]
        if not matrix.is_sparse:
            return self._read_dense(matrix, ids)
        parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for table in matrix.read(coords=(_coordinates(ids), slice(None))).tables():
            rows, genes, values = (table.column(n).to_numpy() for n in ("soma_dim_0", "soma_dim_1", "soma_data"))
            parts.append((self._places(ids, rows), self._places(self.genes, genes), values))
        rows, genes, values = (
            (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
            if parts
            else (np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32))
        )
        del parts
        made = coo_matrix((values, (rows, genes)), shape=(len(ids), len(self.genes))).tocsr()
        return canonical(CountRows(made.data, made.indices, made.indptr.astype(np.int64)))

    def _read_dense(self, matrix: Any, ids: np.ndarray) -> CountRows:
        first, last = int(ids[0]), int(ids[-1])
        block = matrix.read((slice(first, last), slice(None))).to_numpy()
        return read_rows(block[ids - first][:, self.genes], 0, len(ids))

    def _places(self, known: np.ndarray, found: np.ndarray) -> np.ndarray:
        """Return the positions of ids among known ones, int32; refuse others."""
        if len(known) and int(known[-1]) - int(known[0]) == len(known) - 1:
            places = found - known[0]
            outside = (places < 0) | (places >= len(known))
        else:
            places = np.searchsorted(known, found)
            outside = known[np.minimum(places, len(known) - 1)] != found
        if outside.any():
            raise CellFileError(
                f"X[{self.place[1]!r}] has a value at {ROWS_OF} {int(found[outside][0]):,}, which obs or var lacks: "
                "the experiment is damaged"
            )
        return places.astype(np.int32)


def _part(rows: CountRows, start: int, stop: int) -> CountRows:
    low, high = int(rows.indptr[start]), int(rows.indptr[stop])
    return CountRows(rows.data[low:high], rows.indices[low:high], rows.indptr[start : stop + 1] - low)


# -------------------------------------------------------------------- opening


def open_soma(
    source: Path | str,
) -> tuple[dict[str, Place], SomaTable, SomaExperiment]:
    """Open an experiment.

    Returns
    -------
    places : dict
        Name of each matrix -> (matrix, names of the genes, columns of the gene table).
    obs : SomaTable
        Its cells.
    experiment : SomaExperiment
        To close it.

    Raises
    ------
    CellFileError
        If it is not an experiment, or damaged.
    EnvironmentFailureError
        If a network source cannot be read.
    """
    experiment = SomaExperiment(source)
    try:
        obs = experiment.read(lambda opened: _cells(opened, experiment))
        return experiment.read(lambda opened: _places(opened, experiment, obs)), obs, experiment
    except BaseException:
        experiment.close()
        raise


def _cells(opened: Any, experiment: SomaExperiment) -> SomaTable:
    for name in ("obs", "ms"):
        if name not in opened:
            raise CellFileError(f"it has no {name}: it is not a complete SOMA experiment")
    if tuple(opened.obs.index_column_names) != (ROWS_OF,):
        raise CellFileError(
            f"its obs is indexed by {', '.join(opened.obs.index_column_names)}, not by {ROWS_OF}, which is "
            "unsupported: write it again by tiledbsoma.io.from_h5ad or from_anndata"
        )
    return SomaTable(experiment, list(opened.obs.schema.names), *_ids(opened.obs, "cells"))


def _ids(table: Any, what: str) -> tuple[int, np.ndarray | None]:
    """Return the number of rows, and their ids if these are not 0 to that number."""
    n = int(table.count)
    if n == 0:
        raise CellFileError(f"it has no {what}")
    (first, last), *_ = table.non_empty_domain()
    if (int(first), int(last)) == (0, n - 1):
        return n, None
    ids = np.concatenate([part.column(ROWS_OF).to_numpy() for part in table.read(column_names=[ROWS_OF])])
    return len(ids), np.sort(ids)


def _places(opened: Any, experiment: SomaExperiment, obs: SomaTable) -> dict[str, Place]:
    """Find the matrices: X and layers of the measurement of RNA, and raw.X, as `tiledbsoma.io` writes it."""
    measurements = list(opened.ms)
    others = [name for name in measurements if name != "raw"] or measurements
    if MEASUREMENT not in others and len(others) != 1:
        listed = ", ".join(map(repr, others)) or "none"
        raise CellFileError(
            f"it has the measurements {listed}, and none is named {MEASUREMENT!r}: which one is unclear"
        )
    chosen = MEASUREMENT if MEASUREMENT in others else others[0]
    places: dict[str, Place] = {}

    def add(measurement: str, layer: str, place: str, genes: tuple[np.ndarray, list[str], dict[str, Any]]) -> None:
        ids, names, columns = genes
        matrix = opened.ms[measurement].X[layer]
        if matrix.shape[0] < (obs.n_cells if obs.ids is None else int(obs.ids[-1]) + 1):
            raise CellFileError(f"X[{layer!r}] has {matrix.shape[0]:,} rows, but obs has {obs.n_cells:,} cells")
        per_cell = -(-int(matrix.nnz) // obs.n_cells) if matrix.is_sparse else len(ids)
        rows = SomaRows(experiment, (measurement, layer), ids, per_cell, obs.n_cells, obs.ids)
        places[place] = (rows, names, columns)

    genes = _genes(opened.ms[chosen])
    layers = list(opened.ms[chosen].X) if "X" in opened.ms[chosen] else []
    usual = {NAME_OF_X, *COUNT_LAYERS} & set(layers)
    for number, name in enumerate(layers):
        is_x = name == NAME_OF_X or (number == 0 and not usual)
        add(chosen, name, "X" if is_x else f"layers[{name!r}]", genes)
    if "raw" in measurements and chosen != "raw" and "X" in opened.ms["raw"] and (raw := list(opened.ms["raw"].X)):
        add("raw", raw[0], "raw.X", _genes(opened.ms["raw"]))
    if not places:
        raise CellFileError(f"the measurement {chosen!r} has no X")
    return places


def _genes(measurement: Any) -> tuple[np.ndarray, list[str], dict[str, Any]]:
    """Read ids, names and columns of the genes of a measurement."""
    table = measurement.var.read().concat()
    ids = table.column(ROWS_OF).to_numpy()
    order = np.argsort(ids, kind="stable")
    columns = {name: _plain(table.column(name))[order] for name in table.column_names if name != ROWS_OF}
    index = next((name for name in NAMES_OF_GENES if name in columns), None)
    if index is None:
        index = next((name for name, values in columns.items() if values.dtype == object), None)
    if index is None:
        raise CellFileError(f"var has no names of genes: it has {', '.join(columns) or 'no columns'}")
    names = [str(v) for v in columns[index]]
    given = {name: values.astype(object) for name, values in columns.items() if name != "var_id"}
    return ids[order], names, given


def soma_mark(source: Path | str) -> dict[str, int]:
    """Return the numbers of cells, genes and stored values of a network source, which change if it is rewritten."""
    experiment = SomaExperiment(source)
    try:
        return experiment.read(_sizes)
    finally:
        experiment.close()


def _sizes(opened: Any) -> dict[str, int]:
    sizes = {"cells": int(opened.obs.count)}
    for measurement in sorted(opened.ms):
        sizes[f"{measurement}/var"] = int(opened.ms[measurement].var.count)
        if "X" in opened.ms[measurement]:
            for layer in sorted(opened.ms[measurement].X):
                matrix = opened.ms[measurement].X[layer]
                sizes[f"{measurement}/X/{layer}"] = int(matrix.nnz) if matrix.is_sparse else int(np.prod(matrix.shape))
    return sizes


__all__ = ["SomaRows", "SomaTable", "open_soma", "soma_mark"]
