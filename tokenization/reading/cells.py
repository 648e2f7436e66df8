"""Read cells from files: find the raw counts, say where they are, and stream them in bounded memory."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cellglot.inputs.addresses import as_source, name_of
from cellglot.tokenization.count_matrix import CountMatrix, choose_counts, open_counts
from cellglot.tokenization.genes.species import check_species, read_as_human
from cellglot.tokenization.reading.errors import CellFileError, reading
from cellglot.tokenization.reading.filters import check_filter
from cellglot.tokenization.reading.formats import CellFile, open_cell_file
from cellglot.tokenization.reading.obs import FrameTable, schema_names
from cellglot.tokenization.reading.selection import of_cells, of_table, select_cells
from cellglot.tokenization.reading.storable_table import storable_frame


if TYPE_CHECKING:
    from anndata import AnnData
    from scipy.sparse import csr_matrix


NAMES_AT_ONCE = 1 << 16
FILTERED = "the filter leaves out"  # begins a note


logger = logging.getLogger(__name__)


class Cells:
    """Opened cells: raw counts by rows, genes, and metadata under the names of the CELLxGENE schema.

    Made by `read_cells`; closes as a context manager.

    Parameters
    ----------
    name
        Name of the file without its ending, or ``"AnnData"``.
    opened
        The opened file.
    counts
        Raw counts, their genes, and where they were found.
    rename
        Column of the file -> its name in the metadata.

    Attributes
    ----------
    metadata_columns : dict
        Name of a column in the metadata -> its name in the file.
    notes : list of str
        What was converted, left out or recovered.
    """

    def __init__(self, name: str, opened: CellFile, counts: CountMatrix, rename: Mapping[str, str] | None = None):
        self.name = name
        self.format = opened.format
        self.counts = counts
        self.obs = opened.obs
        self.metadata_columns = schema_names(opened.obs.names, rename)
        others = tuple(f"{place} " for place in opened.places if place != counts.location)
        self.notes = [note for note in opened.notes if not note.startswith(others)]
        if counts.left_out:
            kinds = ", ".join(f"{n:,} {kind}" for kind, n in counts.left_out.items())
            self.notes.append(f"left out features that are not genes: {kinds}")
        if counts.note:
            self.notes.append(counts.note)
        if counts.recover:
            self.notes.append(
                f"{counts.location} contains log1p of scaled counts: raw counts are computed back exactly, with each "
                "cell's smallest value as one count"
            )
        if isinstance(found := getattr(opened.obs, "n_in_file", None), int):
            self.notes.append(f"{FILTERED} {found - counts.n_cells:,} of {found:,} cells")
        self._tables: dict[bool, pd.DataFrame] = {}
        self._close = opened.close

    def __len__(self) -> int:
        return self.counts.n_cells

    def __str__(self) -> str:
        return self.summary()

    def __enter__(self) -> "Cells":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._close()

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return self.counts.n_cells

    @property
    def n_genes(self) -> int:
        """Number of genes."""
        return self.counts.n_genes

    @property
    def var(self) -> pd.DataFrame:
        """The gene table."""
        index, columns = self.counts.own_genes or (self.counts.index, self.counts.columns)
        return pd.DataFrame(dict(columns or {}), index=pd.Index([str(g) for g in index]))

    def names(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Read names of cells, object, shape (stop - start,)."""
        return self.obs.index(start, self.n_cells if stop is None else stop)

    def row_numbers(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return the numbers of cells in the file, int64, shape (stop - start,); a filter leaves out some of them."""
        stop = self.n_cells if stop is None else stop
        numbers = getattr(self.obs, "row_numbers", None)
        return np.arange(start, stop) if numbers is None else numbers(start, stop)

    def metadata(
        self, start: int = 0, stop: int | None = None, only: Sequence[str] | None = None, names: bool = True
    ) -> pd.DataFrame:
        """Read metadata of cells `start` to `stop`, by default of all, under the schema's names.

        Parameters
        ----------
        start, stop
            Numbers of the first cell and of the cell after the last.
        only
            Columns to read; those that the file lacks are left out. By default all.
        names
            Read the names of the cells, too; without them the index has numbers.
        """
        stop = self.n_cells if stop is None else stop
        wanted = {n: have for n, have in self.metadata_columns.items() if only is None or n in only}
        index = pd.Index(self.names(start, stop)) if names else pd.RangeIndex(start, stop)
        columns = {}
        for name, have in wanted.items():  # pandas 3 would make texts of objects, and NaN of None
            values = self.obs.column(have, start, stop)
            columns[name] = pd.Series(values, index=index, dtype=values.dtype, copy=False)
        return pd.DataFrame(columns, index=index)

    def table(self, every: bool = False) -> pd.DataFrame:
        """Read the metadata of all cells with types that AnnData and Parquet can store.

        Other types (dates, mixed objects, ...) become text, and a column that cannot be read is left out; `notes`
        says so.

        Parameters
        ----------
        every
            Read all columns of obs. By default only columns of the schema and renamed ones, under these names.
        """
        if every in self._tables:
            return self._tables[every]
        columns = dict(self.metadata_columns)
        if every:
            carried = set(columns.values())
            columns |= {name: name for name in self.obs.names if name not in carried and name not in columns}
        read: dict[str, pd.Series] = {}
        for name, have in columns.items():
            if self.obs.is_read(have):
                read[name] = self.obs.series(have).set_axis(range(self.n_cells))
            else:
                self._say(f"column {have!r} of obs is stored in an unsupported way: it is left out")
        frame = pd.DataFrame(read, index=range(self.n_cells)).set_axis(pd.Index(self.names(), dtype=object))
        frame, notes = storable_frame(frame)
        for note in notes:
            self._say(note)
        self._tables[every] = frame
        return frame

    def _say(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)

    def duplicate_names(self) -> int:
        """Count cells whose name an earlier cell has; needs 8 bytes a cell."""
        hashes = np.concatenate(
            [
                pd.util.hash_array(self.names(start, min(start + NAMES_AT_ONCE, self.n_cells)), categorize=False)
                for start in range(0, self.n_cells, NAMES_AT_ONCE)
            ]
        )
        hashes.sort()  # several times as fast as a hash table
        return int(np.count_nonzero(hashes[1:] == hashes[:-1]))

    def chunks(self, max_cells: int = 1 << 14, max_values: int = 1 << 22) -> Iterator["csr_matrix"]:
        """Stream raw counts as SciPy matrices in compressed sparse rows, in the order of the file.

        Parameters
        ----------
        max_cells, max_values
            Largest chunk, in cells and in stored counts.

        Raises
        ------
        NotCountsError
            If a cell's values are not counts.
        CellFileError
            If the file is cut short.
        """
        from scipy.sparse import csr_matrix

        for start, stop in self.counts.ranges(max_values, max_cells):
            rows = self.counts.rows(start, stop)
            yield csr_matrix((rows.data, rows.indices, rows.indptr), shape=(stop - start, self.n_genes))

    def to_anndata(self) -> "AnnData":
        """Read everything into an AnnData: raw counts in X, metadata under the schema's names in obs."""
        from anndata import AnnData
        from scipy.sparse import vstack

        return AnnData(vstack(list(self.chunks()), format="csr"), obs=self.table(), var=self.var)

    def summary(self) -> str:
        """Describe what was found, and where, in lines of text."""
        lines = [
            f"{self.name}: {self.n_cells:,} cells x {self.n_genes:,} genes ({self.format}), "
            f"raw counts in {self.counts.described_location}",
        ]
        if self.metadata_columns:
            carried = [
                name if name == have else f"{name} (from {have})" for name, have in self.metadata_columns.items()
            ]
            lines.append(f"metadata: {', '.join(carried)}")
        duplicates = self.duplicate_names()
        if duplicates:
            lines.append(f"{duplicates:,} cells have the name of an earlier cell; all are kept")
        return "\n".join(lines + self.notes)


def read_cells(
    source: "str | os.PathLike | AnnData",
    *,
    layer: str | None = None,
    rename: Mapping[str, str] | None = None,
    folder: str | os.PathLike | None = None,
    species: str | None = None,
    filter: str | None = None,
) -> Cells:
    """Open cells and find their raw counts.

    Parameters
    ----------
    source
        ``.h5ad``, ``.zarr``, 10x ``.h5``, a 10x folder (``matrix.mtx``, plain or gzipped), ``.loom``, a SOMA
        experiment (a folder, or an address such as ``s3://bucket/name``), ``census:VERSION`` or
        ``census:VERSION/ORGANISM`` for CELLxGENE Census, or an AnnData.
    layer
        ``"X"``, ``"raw.X"`` or a layer's name: the only place to look at. By default X if it contains counts (or
        raw.X, if that contains more), then the usual layers, then places from which counts can be
        recovered, then places that contain only zeros.
    rename
        Column of obs -> its name in the metadata, e.g. ``{"bulk_labels": "cell_type"}``.
    folder
        Where to keep a matrix that has to be converted to rows, and the numbers of the cells that meet the filter; a
        temporary folder by default.
    species
        ``"mouse"``: genes are read as their human one-to-one orthologs. ``"human"`` and ``"other"``: as they are, as
        by default.
    filter
        Which cells to read, by columns of obs: ``'tissue == "lung" and is_primary_data == True'``. The others are left
        out as if the file did not have them.

    Returns
    -------
    Cells
        Only heads and samples have been read.

    Raises
    ------
    CellFileError
        If the file is missing, damaged, cut short or in an unknown format, or no cell meets the filter.
    FilterError
        If the filter cannot be read, or names an unknown column.
    NotCountsError
        If no place contains raw counts, or values from which counts can be computed back exactly.
    ValueError
        If the file has no cells or no genes.
    TypeError
        If `source` is neither a path nor an AnnData.

    Examples
    --------
    >>> import cellglot
    >>> with cellglot.read_cells("cells.h5ad") as cells:
    ...     print(cells.n_cells, cells.counts.described_location)
    60 X
    >>> counts = cellglot.read_cells("cells.h5ad").to_anndata()
    """
    check_species(species)
    if filter is not None:
        check_filter(filter)
    kept = None if folder is None else Path(folder)

    def chosen(opened: CellFile, counts: CountMatrix) -> CountMatrix:
        if filter is not None:
            rows = select_cells(opened.obs, filter, kept, rename)
            opened.obs, counts.matrix = of_table(opened.obs, rows), of_cells(counts.matrix, rows)
        return counts

    if isinstance(source, str | os.PathLike):
        path = as_source(source)
        opened = open_cell_file(path, kept)
        try:
            with reading(path):
                counts = choose_counts(opened.places, layer, cell_names=_LazyNames(opened), source=str(path))
                cells = Cells(name_of(path), opened, chosen(opened, counts), rename)
        except BaseException:
            opened.close()
            raise
    elif getattr(source, "isbacked", False) and not getattr(source, "is_view", False):
        opened = open_cell_file(Path(source.filename), kept)
        opened.obs = FrameTable(source.obs)
        opened.places = _places_now(source, opened)
        with reading(source.filename):
            counts = choose_counts(opened.places, layer, cell_names=_LazyNames(opened), source="the AnnData")
            counts = chosen(opened, counts)
        cells = Cells(name_of(Path(source.filename)), opened, counts, rename)
    elif hasattr(source, "var_names") and hasattr(source, "obs"):
        opened = CellFile("AnnData", {}, FrameTable(source.obs))
        counts = chosen(opened, open_counts(source, layer=layer))
        counts.cell_names = _LazyNames(opened)
        cells = Cells("AnnData", opened, counts, rename)
    else:
        raise TypeError(f"cells are read from a path or an AnnData, not from {type(source).__name__}")
    if species == "mouse":
        try:
            cells.notes.append(read_as_human(cells.counts))
        except ValueError:
            cells.close()
            raise
    for note in cells.notes:
        logger.info("%s: %s", cells.name, note)
    return cells


def _places_now(source: "AnnData", opened: CellFile) -> dict[str, Any]:
    """Return the current matrices of a backed AnnData: genes and layers may differ from those in the file."""

    def of_table(var: pd.DataFrame) -> tuple[list[str], dict[str, Any]]:
        return [str(name) for name in var.index], {str(c): var[c].astype(object).to_numpy() for c in var.columns}

    places = {}
    if "X" in opened.places:
        places["X"] = (opened.places["X"][0], *of_table(source.var))
    if "raw.X" in opened.places and source.raw is not None:
        on_disk = opened.places["raw.X"][0]
        same = on_disk.shape == tuple(source.raw.shape)
        places["raw.X"] = (on_disk if same else source.raw.X, *of_table(source.raw.var))
    for name in source.layers:  # in memory, whether they came from the file or not
        places[f"layers[{name!r}]"] = (source.layers[name], *of_table(source.var))
    return places


class _LazyNames(Sequence):
    """Names of cells, which are read when a message needs one."""

    def __init__(self, opened: CellFile):
        self.opened = opened

    def __getitem__(self, number: Any) -> str:
        return str(self.opened.obs.index(number, number + 1)[0])

    def __len__(self) -> int:
        return len(self.opened.obs)


__all__ = ["CellFileError", "Cells", "read_cells"]
