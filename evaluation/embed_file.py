"""Embedding of the cells of a file, written to a file with an optional picture."""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from cellglot.evaluation.drawing import check_picture, drawing, is_interactive
from cellglot.evaluation.embedding import embed_cells
from cellglot.evaluation.endings import check_embeddings
from cellglot.evaluation.parallel_embedding import SharedEmbedding, number_of_processes
from cellglot.modeling.any_model import load_any_model
from cellglot.modeling.loaded_model import LoadedModel
from cellglot.outputs import atomic, check_files, remove_leftovers
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
        ``embedding``) or ``.npy``.
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
    check_files([output, plot], [cells, model], overwrite=overwrite)
    report = GeneReport()
    with read_cells(cells, layer=layer, species=species) as opened:
        column = color if color is not None else opened.metadata_columns.get("cell_type")
        if color is not None and color not in opened.obs.names:
            raise ValueError(f"{cells}: no column {color!r} in obs; it has {', '.join(opened.obs.names) or 'none'}")
        check_picture(plot, len(opened))
        table = opened.table() if output.suffix == ".h5ad" else None  # a damaged table is refused before the work
        loaded = loaded or load_any_model(model)
        lines = [opened.summary()]
        if number_of_processes() == 1:
            embedding: np.ndarray | None = embed_cells(
                loaded.encoder, loaded.tokenizer, opened, report=report, **options
            )
            _write(opened, table, embedding, None, output)
        else:
            run = _run(loaded, cells, len(opened), layer=layer, species=species, **options)
            with SharedEmbedding(output, run, overwrite) as shared:
                embedding = shared.embed(loaded.encoder, loaded.tokenizer, opened, report, **options)
                if embedding is None:
                    return ""
                _write(opened, table, embedding, None, output)
            lines.append(
                f"by {shared.processes} processes; embedded by an earlier run: {shared.resumed_cells:,} cells"
            )
        lines += [report.summary(), f"{output}: {embedding.shape[0]:,} cells x {embedding.shape[1]:,}"]
        if plot is not None:
            again = ["cellglot", "embed", model, cells, "--output", output, "--plot", plot, "--overwrite"]
            with drawing(plot, again):
                _draw(opened, table, embedding, column, output, plot)
                lines.append(str(plot))
    return "\n".join(lines)


def _run(loaded: LoadedModel, cells: Path, n_cells: int, **options: Any) -> dict[str, Any]:
    """Describe what embeddings depend on: cells, model and settings, for a run in several processes."""
    status, digest = cells.stat(), hashlib.sha256()
    for name, values in sorted(loaded.encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(
            values.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() if values.numel() else b""
        )
    places = ("device", "progress")  # which do not matter
    return {
        "cells": {"file": str(cells.resolve()), "bytes": status.st_size, "changed": status.st_mtime_ns, "n": n_cells},
        "model": {"name": loaded.name, "weights": digest.hexdigest()[:32]},
        "settings": {name: value for name, value in sorted(options.items()) if name not in places},
    }


def _draw(
    cells: Cells, table: pd.DataFrame | None, embedding: np.ndarray, column: str | None, output: Path, plot: Path
) -> None:
    """Compute a UMAP, add it to the written embedding, and draw it."""
    from cellglot.evaluation import plots  # imports matplotlib

    coordinates = plots.umap_coordinates(embedding)
    if output.suffix == ".h5ad":
        _write(cells, table, embedding, coordinates, output)
    draw_embedding(cells, coordinates, column, plot)


def draw_embedding(cells: Cells, coordinates: np.ndarray, column: str | None, plot: Path, name: str = "") -> None:
    """Draw embedded cells, coloured by a column of obs: an image, or a page to zoom, hover and colour.

    Parameters
    ----------
    coordinates
        Shape (cells, 2).
    name
        Of the cells, for the title; by default the name of the file.
    """
    from cellglot.evaluation import plots

    title = (name or cells.name) + (f", by {column}" if column else "")
    values = ["cells"] * len(cells) if column is None else cells.obs.column(column, 0, len(cells))
    labels = read_labels(values).texts.tolist()
    if not is_interactive(plot):
        plots.save_figure(plots.embedding_plot(coordinates, labels, title), str(plot))
        return
    from cellglot.evaluation.cell_plot.page import write_page
    from cellglot.evaluation.cell_plot.plot import CellPlot

    page = CellPlot(coordinates, cells.names(), name or cells.name)
    if column is not None:
        page.add_classes(column, labels)
    page.add_obs(cells, without=[column])
    page.add_genes(cells, None if column is None else labels)
    write_page([page], plot, title)


def _write(
    cells: Cells, table: pd.DataFrame | None, embedding: np.ndarray, coordinates: np.ndarray | None, output: Path
) -> None:
    remove_leftovers(output)
    with atomic(os.path.realpath(output)) as temporary:
        if output.suffix == ".npy":
            np.save(temporary, embedding)
        elif output.suffix == ".parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            vectors = pa.FixedSizeListArray.from_arrays(pa.array(embedding.reshape(-1)), embedding.shape[1])
            names = pa.array([str(n) for n in cells.names()])
            pq.write_table(pa.table({"cell_id": names, "embedding": vectors}), temporary)
        else:
            from anndata import AnnData

            result = AnnData(embedding, obs=table)
            if coordinates is not None:
                result.obsm["X_umap"] = coordinates
            result.write_h5ad(temporary)


__all__ = ["draw_embedding", "embed_file"]
