"""A visitor's files: what is in them, within the limits of the page."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from anndata import AnnData
from scipy.sparse import csr_matrix, vstack

from cellglot.inputs.errors import InputError
from cellglot.model_cards.space.gradio.limits import Limits
from cellglot.tokenization.genes.species import is_mouse
from cellglot.tokenization.reading.cells import Cells, read_cells
from cellglot.tokenization.reading.storable_table import storable_frame


MATRIX = ("matrix.mtx", "matrix.mtx.gz")
SEED = 0


@dataclass
class VisitorCells:
    """Cells of a visitor, with their counts in memory.

    Parameters
    ----------
    name
        Of the file, as the visitor calls it.
    adata
        Raw counts of the cells that are annotated, with all columns of the file's tables.
    counts_in
        Where the counts were found.
    n_cells
        Cells of the file.
    source
        The ``.h5ad`` that results are added to; None where a new file is written.
    left_out
        Kind of features that are not genes -> their number.
    notes
        Sentences about what was read.
    mouse
        Whether the genes are named as those of mouse.
    """

    name: str
    adata: AnnData
    counts_in: str
    n_cells: int
    source: Path | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    mouse: bool = False

    @property
    def sampled(self) -> bool:
        """Whether only some of the file's cells are annotated."""
        return self.adata.n_obs < self.n_cells


def gather(files: Sequence[str | os.PathLike], folder: Path) -> Path:
    """Return the path to read: that of one file, or a folder of `folder` that holds the three files of a 10x matrix.

    Parameters
    ----------
    files
        As they were uploaded.
    folder
        Of the visit.

    Raises
    ------
    InputError
        If several files are not one matrix with its genes and cells.
    """
    paths = [Path(file) for file in files]
    matrices = [path for path in paths if path.name.endswith((".mtx", ".mtx.gz"))]
    if len(paths) == 1 and not matrices:
        return paths[0]
    names = ", ".join(path.name for path in paths)
    if len(matrices) != 1:
        raise InputError(
            f"Drop one file of cells, or the three files of one 10x matrix (matrix.mtx.gz, features.tsv.gz, "
            f"barcodes.tsv.gz) together. These are {names}"
        )
    if len(paths) != 3:
        raise InputError(
            f"A matrix in {matrices[0].name} needs the names of its genes and cells: drop it together with "
            f"features.tsv.gz (or genes.tsv) and barcodes.tsv.gz. These are {names}"
        )
    together = folder / "matrix"
    shutil.rmtree(together, ignore_errors=True)
    together.mkdir(parents=True)
    for path in paths:
        name = path.name
        if path in matrices and not name.endswith(MATRIX):
            name = MATRIX[name.endswith(".gz")]
        _link(path, together / name)
    return together


def _link(path: Path, target: Path) -> None:
    try:
        os.link(path, target)
    except OSError:  # another disk
        shutil.copyfile(path, target)


def read_files(
    files: Sequence[str | os.PathLike], folder: Path, limits: Limits, species: str | None = None
) -> VisitorCells:
    """Read the files of a visitor: all cells, or a random sample of a file with more than the page annotates.

    Parameters
    ----------
    files
        One file of cells, or the three files of a 10x matrix.
    folder
        Of the visit, for what has to be converted.
    limits
        Checked before anything large is read.
    species
        As for `cellglot.read_cells`; it is checked here, and genes are read as human ones where cells are annotated.

    Raises
    ------
    TooLargeError
        If a limit is exceeded.
    ValueError
        As `cellglot.read_cells`.
    """
    limits.check_bytes(sum(Path(file).stat().st_size for file in files))
    path = gather(files, folder)
    with read_cells(path, folder=folder / "rows", species=species) as cells:
        limits.check_shape(cells.counts)
        found = _in_memory(cells, limits)
    shutil.rmtree(folder / "rows", ignore_errors=True)
    found.name = Path(files[0]).name if len(files) == 1 else "10x matrix"
    if cells.format == "h5ad" and not found.sampled:
        found.source = path
    return found


def read_table(adata: AnnData, limits: Limits) -> VisitorCells:
    """Check the counts of a pasted table, as `read_files` does those of a file."""
    with read_cells(adata) as cells:
        limits.check_shape(cells.counts)
        found = _in_memory(cells, limits)
    found.name = "pasted table"
    return found


def _in_memory(cells: Cells, limits: Limits) -> VisitorCells:
    """Read counts and tables; of more cells than are annotated those of a sample."""
    rows = np.arange(cells.n_cells)
    notes = list(cells.notes)
    if cells.n_cells > limits.cells:
        rows = np.sort(np.random.default_rng(SEED).choice(cells.n_cells, limits.cells, replace=False))
        notes.insert(
            0,
            f"The file has {cells.n_cells:,} cells. A random sample of {limits.cells:,} of them is annotated here; "
            "all of them are by the command: cellglot annotate CELLS",
        )
    counts = _rows_of(cells, rows)
    obs = cells.table(every=True)
    notes += [note for note in cells.notes if note not in notes]
    var = storable_frame(cells.var)[0]
    adata = AnnData(counts, obs=obs if len(rows) == len(obs) else obs.iloc[rows].copy(), var=var)
    if (repeated := cells.duplicate_names()) > 0:
        notes.append(f"{repeated:,} cells have the name of an earlier cell; all are kept")
    return VisitorCells(
        cells.name,
        adata,
        cells.counts.described_location,
        cells.n_cells,
        left_out=dict(cells.counts.left_out),
        notes=notes,
        mouse=is_mouse([str(name) for name in var.index], {str(c): var[c].to_numpy() for c in var.columns}),
    )


def _rows_of(cells: Cells, rows: np.ndarray) -> csr_matrix:
    """Read the counts of some cells, numbers ascending; the file is read once, in chunks."""
    parts, start = [], 0
    for chunk in cells.chunks():
        mine = rows[np.searchsorted(rows, start) : np.searchsorted(rows, start + chunk.shape[0])]
        if len(mine):
            parts.append(chunk if len(mine) == chunk.shape[0] else chunk[mine - start])
        start += chunk.shape[0]
    return vstack(parts, format="csr") if len(parts) > 1 else parts[0]


__all__ = ["VisitorCells", "gather", "read_files", "read_table"]
