"""A file of cells to a file of embeddings, and a picture of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import transformers
from transformers import PreTrainedTokenizerBase

import cellglot
from cellglot.evaluation import plots
from cellglot.evaluation.embedding import embed_cells
from cellglot.evaluation.masked_genes import cell_encoder
from cellglot.modeling.adapters import is_adapter, load_with_adapter, read_adapter
from cellglot.modeling.loading import load_configuration, load_model, load_tokenizer
from cellglot.tokenization.cell_labels import read_labels
from cellglot.tokenization.cells import Cells, read_cells
from cellglot.tokenization.gene_report import GeneReport


ENDINGS = (".h5ad", ".parquet", ".npy")


def embed_file(
    model: str | Path,
    cells: Path,
    output: Path,
    *,
    plot: Path | None = None,
    color: str | None = None,
    layer: str | None = None,
    **options: Any,
) -> str:
    """Embed the cells of a file.

    Parameters
    ----------
    model
        Folder or repository of a model of any head, or of an adapter.
    cells
        File of cells.
    output
        ``.h5ad`` (embedding in X, metadata in obs, UMAP in obsm if drawn), ``.parquet`` (``cell_id`` and
        ``embedding``) or ``.npy``.
    plot
        Where to draw a UMAP.
    color
        Column of obs to colour by; by default ``cell_type`` where the file has it.
    layer, **options
        As for `cellglot.evaluation.embedding.embed_cells`.

    Returns
    -------
    str
        What was read, matched and written.

    Raises
    ------
    ValueError
        If the ending of `output` is none of those above, or there is no column `color`.
    """
    if output.suffix not in ENDINGS:
        raise ValueError(f"{output}: embeddings are written as {', '.join(ENDINGS)}")
    cellglot.register_auto_classes()
    network, tokenizer = _encoder(model)
    report = GeneReport()
    with read_cells(cells, layer=layer) as opened:
        column = color if color is not None else opened.metadata_columns.get("cell_type")
        if color is not None and color not in opened.obs.names:
            raise ValueError(f"no column {color!r} in obs; it has {', '.join(opened.obs.names) or 'none'}")
        table = opened.table() if output.suffix == ".h5ad" else None  # what cannot be written is known before the work
        embedding = embed_cells(network, tokenizer, opened, report=report, **options)
        coordinates = None if plot is None else plots.umap_coordinates(embedding)
        _write(opened, table, embedding, coordinates, output)
        if plot is not None and coordinates is not None:
            values = ["cells"] * len(opened) if column is None else opened.obs.column(column, 0, len(opened))
            title = f"{opened.name}" + (f", by {column}" if column else "")
            plots.save_figure(plots.embedding_plot(coordinates, read_labels(values).texts.tolist(), title), str(plot))
        lines = [
            opened.summary(),
            report.summary(),
            f"{output}: {embedding.shape[0]:,} cells x {embedding.shape[1]:,}",
        ]
    return "\n".join(lines + ([] if plot is None else [str(plot)]))


def _encoder(model: str | Path) -> tuple[Any, PreTrainedTokenizerBase]:
    """Load what embeds cells, with all its weights, and its tokenizer."""
    if is_adapter(model):
        return cell_encoder(load_with_adapter(model)), load_tokenizer(read_adapter(model).base)
    tokenizer, config = load_tokenizer(model), load_configuration(model)
    auto_class = config.pipelines()["cell-embedding"]["pt"][0]
    network = load_model(getattr(transformers, auto_class), model)
    return network if auto_class == "AutoModel" else cell_encoder(network), tokenizer


def _write(
    cells: Cells, table: pd.DataFrame | None, embedding: np.ndarray, coordinates: np.ndarray | None, output: Path
) -> None:
    temporary = output.with_name(f".{output.stem}.part{output.suffix}")
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
    temporary.replace(output)


__all__ = ["embed_file"]
