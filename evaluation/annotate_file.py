"""A file of cells to a file of annotated cells, a table and a picture."""

from pathlib import Path
from typing import Any

import numpy as np

from cellglot.evaluation import plots
from cellglot.evaluation.annotated_file import check_output, write_annotated
from cellglot.evaluation.annotation import KEY, annotate_cells, write_table
from cellglot.evaluation.cell_text_model import load_cell_text_model
from cellglot.tokenization.cell_type_candidates import Candidates
from cellglot.tokenization.cells import read_cells


TABLES = (".csv", ".tsv", ".parquet")


def annotate_file(
    model: str | Path,
    cells: Path,
    output: Path,
    candidates: Candidates,
    *,
    table: Path | None = None,
    plot: Path | None = None,
    layer: str | None = None,
    dtype: str | None = None,
    **options: Any,
) -> str:
    """Annotate the cells of a file.

    Parameters
    ----------
    model
        Folder or repository of a LangCell model with its processor.
    cells
        File of cells.
    output
        ``.h5ad``: the cells with what `CellAnnotation.write_to` lists; ``obsm["X_cellglot_umap"]`` where a picture is
        drawn.
    candidates
        The classes.
    table
        ``.csv``, ``.tsv`` or ``.parquet`` with a row for each cell.
    plot
        Where to draw a UMAP, coloured by prediction.
    layer, **options
        As for `cellglot.evaluation.annotation.annotate_cells`.
    dtype
        Of the weights: ``"bfloat16"``; by default as they are stored.

    Returns
    -------
    str
        What was read, asked, predicted and written.

    Raises
    ------
    ValueError
        If an ending is not known, there are too few cells for a UMAP, or the model knows no texts; as
        `annotate_cells` does.
    """
    if table is not None and table.suffix not in TABLES:
        raise ValueError(f"{table}: tables are written as {', '.join(TABLES)}")
    check_output(cells, output)
    with read_cells(cells, layer=layer) as opened:
        if plot is not None and len(opened) < 4:
            raise ValueError(f"{len(opened):,} cells are too few for a UMAP: it takes four or more")
        network, processor = load_cell_text_model(model, dtype)
        annotation = annotate_cells(network, processor, opened, candidates, layer=layer, **options)
        matrices = annotation.matrices()
        if plot is not None:
            coordinates = plots.umap_coordinates(np.nan_to_num(annotation.embedding))
            matrices[f"X_{KEY}_umap"] = coordinates
            title = f"{opened.name}, predicted cell types ({annotation.score_name.removeprefix('score_')})"
            plots.save_figure(annotation.plot(coordinates, title), str(plot))
        columns = {f"{KEY}_{name}": values for name, values in annotation.columns().items()}
        facts = annotation.facts() | {"model": str(model)}
        write_annotated(opened, cells, output, obs=columns, obsm=matrices, uns={KEY: facts})
        if table is not None:
            write_table(annotation.table(), table)
        written = [str(p) for p in (output, table, plot) if p is not None]
        return "\n".join([opened.summary(), annotation.summary(), *written])


__all__ = ["annotate_file"]
