"""``embed``: cells to embeddings."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellglot.evaluation.drawing import check_picture
from cellglot.evaluation.endings import check_embeddings
from cellglot.modeling.loaded_model import LoadedModel
from cellglot.modeling.model_names import resolve_model
from cellglot.outputs import check_files
from cellglot.verbs.backends import check_backend, load_graph
from cellglot.verbs.cells import KEY, existing, is_anndata, or_none, output_of, to_write
from cellglot.verbs.models import load_model


if TYPE_CHECKING:
    from anndata import AnnData


def embed(
    cells: "str | os.PathLike | AnnData",
    model: str | os.PathLike | LoadedModel,
    *,
    output: str | os.PathLike | None = None,
    copy: bool = False,
    plot: str | os.PathLike | None = None,
    color: str | None = None,
    remove_batch: str | None = None,
    min_genes: int | None = None,
    batch_size: int = 64,
    layer: str | None = None,
    gene_column: str | None = None,
    species: str | None = None,
    min_coverage: float | None = None,
    dtype: str | None = None,
    device: str | None = None,
    backend: str = "torch",
    overwrite: bool = False,
) -> Any:
    """Embed cells by a model of any kind.

    Results of an AnnData are written to it, as scanpy does:

    - ``obsm["X_cellglot"]``: embeddings, float32, shape (cells, size); NaN for cells without a gene of the model,
    - ``obsm["X_cellglot_harmony"]``: where `remove_batch` is given, the embeddings without batches; what was done is
      in ``uns["cellglot"]["batch_removal"]``,
    - ``obsm["X_cellglot_umap"]``: coordinates of the UMAP, where `plot` is given, shape (cells, 2),
    - ``uns["cellglot"]``: ``model``, and for a model of texts ``model_fingerprint``, by which `cellglot.query` knows
      the embeddings.

    Parameters
    ----------
    cells
        AnnData with raw counts, in memory or backed; or a file of cells, as for `cellglot.read_cells`.
    model
        Folder or repository of a model, a classifier or an adapter; or a loaded model.
    output
        For a file of cells: ``.h5ad`` (embeddings in X), ``.parquet`` or ``.npy``. Beside an ``.npy``,
        ``NAME.cells.json`` has the checksum of the names of its cells.
    copy
        Return a copy of the AnnData with the results, and leave the given one as it is.
    plot
        Picture of a UMAP: ``.png``, ``.svg`` or ``.pdf``; or ``.html``, to zoom, hover and colour by metadata and
        genes.
    color
        Column of obs by which the picture is coloured; by default cell types.
    remove_batch
        Column of obs with batches, which Harmony removes from the embeddings. Written files have the embeddings
        without batches, an ``.h5ad`` those before in ``obsm["X_with_batches"]``. Needs harmonypy
        (``pip install 'cellglot[integration]'``).
    min_genes
        For a file of cells: leave out cells that express fewer genes.
    batch_size
        Number of cells that are computed at once.
    layer
        Where the raw counts are: ``"X"``, ``"raw.X"`` or the name of a layer. Found by default.
    gene_column
        Column of var with the ids of genes; ``"index"`` for the index. Found by default.
    species
        ``"mouse"``: genes are read as their human one-to-one orthologs. By default they are taken as they are.
    min_coverage
        Smallest share of the counts that the model's genes have to cover; by default 0.5.
    dtype
        As for `cellglot.load_model`; with ``backend="onnx"`` as for `cellglot.export`, by default the first that there
        is.
    device
        ``"cuda"``, ``"mps"`` or ``"cpu"``; by default the fastest that there is.
    backend
        ``"torch"``; or ``"onnx"``, which computes a model that `cellglot.export` wrote by onnxruntime on the CPU.
    overwrite
        Replace `output` and `plot` if they exist. An input is never replaced.

    Returns
    -------
    AnnData or str or None
        None for an AnnData, or the copy; for a file what was read and written.

    Raises
    ------
    ValueError
        If `output` is missing or an input, there is no such model, too few genes match, values are not counts, or
        `remove_batch` is no column, has one batch or missing values.
    ImportError
        If `remove_batch` is given, and harmonypy is not installed.
    TypeError
        If `cells` are neither a path nor an AnnData.

    Examples
    --------
    >>> import cellglot
    >>> cellglot.embed(adata, "model")
    >>> adata.obsm["X_cellglot"].shape
    (60, 64)

    From file to file, in bounded memory:

    >>> report = cellglot.embed("cells.h5ad", "model", output="embedding.h5ad")
    """
    check_backend(backend, model, dtype, device)
    reading: dict[str, Any] = {"layer": layer, "gene_column": gene_column, "min_coverage": min_coverage}
    reading["species"] = species
    options = reading | {"batch_size": batch_size, "device": "cpu" if backend == "onnx" else device}
    if is_anndata(cells):
        target = to_write(cells, copy, {"output": output})
        if min_genes is not None:
            raise ValueError("min_genes is for files of cells: take a part of the AnnData")
        _embed_anndata(target, model, or_none(plot), color, remove_batch, overwrite, (backend, dtype), **options)
        return target if copy else None
    written, ready = output_of(cells, output, copy), model if isinstance(model, LoadedModel) else None
    source, path = model.name if isinstance(model, LoadedModel) else resolve_model(model), existing(cells)
    check_embeddings(written)
    check_picture(or_none(plot))
    from cellglot.evaluation.embedding_files import beside

    check_files([written, *beside(written), or_none(plot)], [path, source], overwrite=overwrite)
    from cellglot.evaluation.embed_file import embed_file

    ready = ready or (_loaded(source, backend, dtype) if (backend, dtype) != ("torch", None) else None)
    files: dict[str, Any] = {"plot": or_none(plot), "color": color, "overwrite": overwrite, "loaded": ready}
    files |= {"remove_batch": remove_batch, "min_genes": min_genes}
    return embed_file(source, path, written, **files, **options)


def _embed_anndata(
    adata: "AnnData",
    model: Any,
    plot: Path | None,
    color: str | None,
    remove_batch: str | None,
    overwrite: bool,
    by: tuple[str, str | None],
    **options: Any,
) -> None:
    check_picture(plot, adata.n_obs)
    check_files([plot], [adata.filename], overwrite=overwrite)
    if not isinstance(model, LoadedModel):
        resolve_model(model)
    from cellglot.evaluation.batch_removal import check_harmony, read_batches, remove_batches
    from cellglot.evaluation.embedding import embed_cells
    from cellglot.tokenization.reading.cells import read_cells

    if remove_batch is not None:
        check_harmony()
    loaded = model if isinstance(model, LoadedModel) else _loaded(model, *by)
    with read_cells(adata, layer=options.pop("layer"), species=options.pop("species")) as opened:
        column = color or opened.metadata_columns.get("cell_type")
        if column is not None and column not in adata.obs:
            raise ValueError(f"no column {column!r} in obs; it has {', '.join(map(str, adata.obs.columns)) or 'none'}")
        batches = None if remove_batch is None else read_batches(opened, remove_batch)
        embedding = embed_cells(loaded.encoder, loaded.tokenizer, opened, **options)
        adata.obsm[f"X_{KEY}"] = embedding
        old = ("model_fingerprint", "batch_removal")
        adata.uns[KEY] = {n: v for n, v in adata.uns.get(KEY, {}).items() if n not in old} | _facts(loaded)
        adata.obsm.pop(f"X_{KEY}_harmony", None)  # of other embeddings
        if batches is not None and remove_batch is not None:
            removal = remove_batches(embedding, batches, remove_batch)
            adata.obsm[f"X_{KEY}_harmony"] = embedding = removal.embedding
            adata.uns[KEY]["batch_removal"] = removal.facts
        if plot is not None:
            from cellglot.evaluation import plots
            from cellglot.evaluation.embed_file import draw_embedding

            adata.obsm[f"X_{KEY}_umap"] = coordinates = plots.umap_coordinates(embedding)
            draw_embedding(opened, coordinates, column, plot, "cells")


def _loaded(model: str | os.PathLike, backend: str, dtype: str | None) -> LoadedModel:
    return load_graph(model, dtype) if backend == "onnx" else load_model(model, dtype=dtype)


def _facts(model: LoadedModel) -> dict[str, Any]:
    if model.processor is None:
        return {"model": model.name}
    from cellglot.evaluation.text_model import fingerprint

    return {"model": model.name, "model_fingerprint": fingerprint(model.network)}


__all__ = ["embed"]
