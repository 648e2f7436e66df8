"""``query``: a sentence to the cells that it describes."""

import os
from typing import TYPE_CHECKING, Any

from cellglot.evaluation.endings import check_annotated, check_table
from cellglot.modeling.loaded_model import LoadedModel
from cellglot.modeling.model_names import resolve_model
from cellglot.outputs import check_files
from cellglot.verbs.cells import existing, is_anndata, or_none, to_write
from cellglot.verbs.models import check_dtype


if TYPE_CHECKING:
    from anndata import AnnData


def query(
    cells: "str | os.PathLike | AnnData",
    text: str,
    model: str | os.PathLike | LoadedModel,
    *,
    output: str | os.PathLike | None = None,
    copy: bool = False,
    top: int = 10,
    table: str | os.PathLike | None = None,
    batch_size: int = 64,
    layer: str | None = None,
    gene_column: str | None = None,
    species: str | None = None,
    min_coverage: float | None = None,
    dtype: str | None = None,
    device: str | None = None,
    overwrite: bool = False,
) -> Any:
    """Score cells by how well a sentence describes them.

    Results of an AnnData are written to it; those of `output` have the same names:

    - ``obs["cellglot_query"]``: cosine of cell and sentence; NaN for cells without embedding,
    - ``obs["cellglot_query_rank"]``: 1 for the best cell; 0 for cells without embedding,
    - ``uns["cellglot_query"]``: the sentence.

    Parameters
    ----------
    cells
        AnnData or file of cells; or a file of embeddings that `cellglot.embed` or `cellglot.annotate` wrote with this
        model. Embeddings of this model in ``obsm["X_cellglot"]`` are used, cells without them are embedded.
    text
        The sentence.
    model
        Folder or repository of a LangCell model; or a loaded one.
    output
        For a file: ``.h5ad`` with the cells and their scores.
    copy
        Return a copy of the AnnData with the results, and leave the given one as it is.
    top
        For a file: the number of best cells in the report and in `table`.
    table
        For a file: a table of the best cells, ``.csv``, ``.tsv`` or ``.parquet``.
    batch_size, layer, gene_column, species, min_coverage, device
        As for `cellglot.embed`.
    dtype
        As for `cellglot.load_model`.
    overwrite
        Replace results that exist. An input is never replaced.

    Returns
    -------
    AnnData or str or None
        None for an AnnData, or the copy; for a file a report with the best cells.

    Raises
    ------
    ValueError
        If the text is empty, the model reads no texts, or the embeddings of a file are of another model.
    TypeError
        If `cells` are neither a path nor an AnnData.

    Examples
    --------
    >>> import cellglot
    >>> cellglot.query(adata, "a B cell of blood", "langcell")
    >>> best = adata.obs.sort_values("cellglot_query", ascending=False).head(10)
    """
    check_dtype(dtype)
    if not text.strip():
        raise ValueError("the text to search for is empty")
    if top < 1:
        raise ValueError(f"top={top}: it has to be at least 1")
    options: dict[str, Any] = {
        "layer": layer, "gene_column": gene_column, "species": species, "min_coverage": min_coverage,
        "batch_size": batch_size, "device": device,
    }  # fmt: skip
    if isinstance(model, LoadedModel):
        source, ready = model.name, (model.network, model.processor)
    else:
        source, ready = resolve_model(model), None
    if is_anndata(cells):
        from cellglot.evaluation.search.file import query_anndata

        target = to_write(cells, copy, {"output": output, "table": table})
        query_anndata(source, target, text, loaded=ready, dtype=dtype, **options)
        return target if copy else None
    if copy:
        raise ValueError(f"copy is for an AnnData, {cells} is a file: name one for the result by output")
    path = existing(cells)
    files: dict[str, Any] = {"output": or_none(output), "table": or_none(table), "overwrite": overwrite}
    check_table(files["table"])
    check_annotated(files["output"])
    check_files([files["output"], files["table"]], [path, source], overwrite=overwrite)
    from cellglot.evaluation.search.file import query_file

    return query_file(source, path, text, top=top, loaded=ready, dtype=dtype, **files, **options)


__all__ = ["query"]
