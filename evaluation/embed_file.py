"""Embedding of the cells of a file, written to a file with an optional picture."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cellglot.evaluation.batch_removal import BatchRemoval, check_harmony, read_batches, remove_batches
from cellglot.evaluation.drawing import check_picture, drawing, is_interactive
from cellglot.evaluation.embedding import embed_cells
from cellglot.evaluation.embedding_files import beside, write_embeddings
from cellglot.evaluation.endings import check_embeddings
from cellglot.evaluation.parallel_embedding import SharedEmbedding, number_of_processes
from cellglot.modeling.any_model import load_any_model
from cellglot.modeling.loaded_model import LoadedModel, weights_checksum
from cellglot.outputs import check_files
from cellglot.tokenization.gene_report import GeneReport
from cellglot.tokenization.reading.cells import Cells, read_cells
from cellglot.tokenization.reading.labels import read_labels


def embed_file(
    model: str | Path,
    cells: Path,
    output: Path,
    *,
    plot: Path | None = None,
    color: str | None = None,
    layer: str | None = None,
    species: str | None = None,
    remove_batch: str | None = None,
    min_genes: int | None = None,
    loaded: LoadedModel | None = None,
    overwrite: bool = False,
    **options: Any,
) -> str:
    """Embed the cells of a file. The result is written before the picture is drawn.

    Parameters
    ----------
    model
        Folder or repository of a model of any kind, or of an adapter.
    output
        ``.h5ad`` (embedding in X, metadata in obs, UMAP in obsm if drawn), ``.parquet`` (``cell_id`` and
        ``embedding``) or ``.npy``, with ``.cells.json`` beside it, by which other cells are told apart.
    plot
        File of a UMAP; ``.html`` to zoom, hover and colour by metadata and genes.
    color
        Column of obs to colour by; by default ``cell_type``, if the file has it.
    loaded
        The model, if it is loaded already.
    overwrite
        Replace outputs that exist; inputs are never replaced.
    species
        As for `cellglot.read_cells`.
    remove_batch
        Column of obs with batches, which Harmony removes. An ``.h5ad`` has the embedding before that in
        ``obsm["X_with_batches"]``, and says what was done in ``uns["cellglot"]``.
    min_genes
        Leave out cells that express fewer genes of the file.
    layer, **options
        As for `cellglot.evaluation.embedding.embed_cells`.

    Returns
    -------
    str
        Summary of the cells, the matched genes and the written files.

    Raises
    ------
    OutputError
        If an output is an input, or exists without `overwrite`.
    ValueError
        If a file ending is unsupported, a column does not exist, or there are too few cells for a UMAP.
    """
    check_embeddings(output)
    check_picture(plot)
    check_files([output, *beside(output), plot], [cells, model], overwrite=overwrite)
    if remove_batch is not None:
        check_harmony()
    report = GeneReport()
    with read_cells(cells, layer=layer, species=species) as opened:
        column = color if color is not None else opened.metadata_columns.get("cell_type")
        if color is not None and color not in opened.obs.names:
            raise ValueError(f"{cells}: no column {color!r} in obs; it has {', '.join(opened.obs.names) or 'none'}")
        kept = np.arange(len(opened)) if min_genes is None else np.flatnonzero(expressed_genes(opened) >= min_genes)
        if not len(kept):
            raise ValueError(f"{cells}: none of {len(opened):,} cells expresses {min_genes:,} genes: lower min_genes")
        check_picture(plot, len(kept))
        table = opened.table() if output.suffix == ".h5ad" else None  # a damaged table is refused before the work
        batches = None if remove_batch is None else read_batches(opened, remove_batch)
        loaded = loaded or load_any_model(model)
        lines = [opened.summary()]

        def finished(embedding: np.ndarray) -> _Embedded:
            """Leave cells out, remove batches, and write."""
            facts = {"model": _name(model)} | ({} if min_genes is None else {"min_genes": min_genes})
            result = _Embedded(kept, embedding[kept], None if table is None else table.iloc[kept], facts)
            if batches is not None and remove_batch is not None:
                result.remove(remove_batches(result.embedding, batches[kept], remove_batch))
            result.write(opened, output)
            return result

        if number_of_processes() == 1:
            result = finished(embed_cells(loaded.encoder, loaded.tokenizer, opened, report=report, **options))
        else:
            run = _run(loaded, cells, len(opened), layer=layer, species=species, **options)
            with SharedEmbedding(output, run, overwrite) as shared:
                embedding = shared.embed(loaded.encoder, loaded.tokenizer, opened, report, **options)
                if embedding is None:
                    return ""
                result = finished(embedding)
            lines.append(
                f"by {shared.processes} processes; embedded by an earlier run: {shared.resumed_cells:,} cells"
            )
        lines.append(report.summary())
        if len(kept) < len(opened):
            lines.append(f"left out {len(opened) - len(kept):,} cells with fewer than {min_genes:,} expressed genes")
        if result.removal is not None:
            lines.append(result.removal.summary())
        lines.append(f"{output}: {result.embedding.shape[0]:,} cells x {result.embedding.shape[1]:,}")
        if plot is not None:
            again = ["cellglot", "embed", model, cells, "--output", output, "--plot", plot, "--overwrite"]
            again += [] if remove_batch is None else ["--remove-batch", remove_batch]
            again += [] if min_genes is None else ["--min-genes", str(min_genes)]
            with drawing(plot, again):
                _draw(opened, result, column, output, plot)
                lines.append(str(plot))
    return "\n".join(lines)


def _run(loaded: LoadedModel, cells: Path, n_cells: int, **options: Any) -> dict[str, Any]:
    """Describe what embeddings depend on: cells, model and settings, for a run in several processes."""
    status, places = cells.stat(), ("device", "progress")  # places do not matter
    return {
        "cells": {"file": str(cells.resolve()), "bytes": status.st_size, "changed": status.st_mtime_ns, "n": n_cells},
        "model": {"name": loaded.name, "weights": weights_checksum(loaded.encoder)},
        "settings": {name: value for name, value in sorted(options.items()) if name not in places},
    }


def _name(model: str | Path) -> str:
    """Return a model's name: that of a folder without its place."""
    return Path(model).name if Path(model).exists() else str(model)


@dataclass
class _Embedded:
    """Embeddings of the cells with the numbers `kept`, and what is written beside them."""

    kept: np.ndarray
    embedding: np.ndarray
    table: pd.DataFrame | None
    facts: dict[str, Any]
    matrices: dict[str, np.ndarray] = field(default_factory=dict)
    removal: BatchRemoval | None = None

    def remove(self, removal: BatchRemoval) -> None:
        self.matrices["X_with_batches"] = self.embedding
        self.embedding, self.removal = removal.embedding, removal
        self.facts["batch_removal"] = removal.facts

    def write(self, cells: Cells, output: Path) -> None:
        names = cells.names()[self.kept]
        write_embeddings(output, self.embedding, names, facts=self.facts, table=self.table, matrices=self.matrices)


def expressed_genes(cells: Cells) -> np.ndarray:
    """Return the number of genes that each cell expresses, int64, shape (cells,)."""
    return np.concatenate([np.diff(chunk.indptr) - _zeros(chunk) for chunk in cells.chunks()]).astype(np.int64)


def _zeros(chunk: Any) -> np.ndarray:
    """Count the stored zeros of each cell."""
    zero = np.concatenate([[0], np.cumsum(chunk.data == 0)])
    return zero[chunk.indptr[1:]] - zero[chunk.indptr[:-1]]


def _draw(cells: Cells, result: _Embedded, column: str | None, output: Path, plot: Path) -> None:
    """Compute a UMAP, add it to the written embedding, and draw it."""
    from cellglot.evaluation import plots  # imports matplotlib

    coordinates = plots.umap_coordinates(result.embedding)
    if output.suffix == ".h5ad":
        result.matrices["X_umap"] = coordinates
        result.write(cells, output)
    draw_embedding(cells, coordinates, column, plot, shown=result.kept)


def draw_embedding(
    cells: Cells,
    coordinates: np.ndarray,
    column: str | None,
    plot: Path,
    name: str = "",
    shown: np.ndarray | None = None,
) -> None:
    """Draw embedded cells, coloured by a column of obs: an image, or a page to zoom, hover and colour.

    Parameters
    ----------
    coordinates
        Shape (cells, 2).
    name
        Of the cells, for the title; by default the name of the file.
    shown
        Numbers of the cells that have coordinates, ascending; by default all.
    """
    from cellglot.evaluation import plots

    rows = np.arange(len(cells)) if shown is None else shown
    title = (name or cells.name) + (f", by {column}" if column else "")
    values = ["cells"] * len(cells) if column is None else cells.obs.column(column, 0, len(cells))
    labels = read_labels(values).texts.tolist()
    if not is_interactive(plot):
        plots.save_figure(plots.embedding_plot(coordinates, [labels[i] for i in rows], title), str(plot))
        return
    from cellglot.evaluation.cell_plot.page import write_page
    from cellglot.evaluation.cell_plot.plot import CellPlot

    page = CellPlot(coordinates, cells.names(), name or cells.name, rows=shown)
    if column is not None:
        page.add_classes(column, labels)
    page.add_obs(cells, without=[column])
    page.add_genes(cells, None if column is None else labels)
    write_page([page], plot, title)


__all__ = ["draw_embedding", "embed_file", "expressed_genes"]
