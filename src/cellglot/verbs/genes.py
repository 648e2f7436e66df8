"""``genes``: embeddings of genes, their neighbours, gene sets, and attention between genes."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cellglot.modeling.loaded_model import LoadedModel
from cellglot.modeling.model_names import resolve_model
from cellglot.outputs import check_files
from cellglot.verbs.cells import as_path, existing, is_anndata, or_none
from cellglot.verbs.models import load_model


if TYPE_CHECKING:
    from anndata import AnnData

    from cellglot.evaluation.genes.result import GeneEmbeddings


def genes(
    model: str | os.PathLike | LoadedModel,
    cells: "str | os.PathLike | AnnData | None" = None,
    *,
    output: str | os.PathLike | None = None,
    neighbours: int = 0,
    gene_sets: str | os.PathLike | Mapping[str, Sequence[str]] | None = None,
    set_genes: tuple[int, int] = (10, 500),
    permutations: int = 1000,
    attention: bool = False,
    edges: int = 100_000,
    min_cells: int = 10,
    column: str | None = None,
    cell_type: str | None = None,
    max_cells: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    layer: str | None = None,
    gene_column: str | None = None,
    species: str | None = None,
    min_coverage: float | None = None,
    dtype: str | None = None,
    device: str | None = None,
    overwrite: bool = False,
) -> "GeneEmbeddings":
    """Embed the genes of a model: as it learned them, and as it reads them in cells.

    Static embeddings are those of the tokens. Contextual ones are the mean over cells of the state of a gene: its
    hidden state in scCello and LangCell; in Exceiver what the decoder makes of the gene's query, or without a decoder
    the latents that read the gene. Of a classifier or an adapter, its encoder is used. docs/evaluation/genes.md says
    what the scores mean.

    Parameters
    ----------
    model
        Name, folder or repository of a model of any kind, of a classifier or of an adapter; or a loaded model.
    cells
        AnnData with raw counts, in memory or backed; or a file of cells, as for `cellglot.read_cells`; by default
        static embeddings alone.
    output
        ``.parquet``; other results are written beside it: ``NAME_neighbours.parquet``, ``NAME_gene_sets.csv``,
        ``NAME_attention.parquet`` and ``NAME_attention.png``. A run that was stopped is resumed by the same call.
    neighbours
        Nearest genes to find for each gene, by the cosine of centred embeddings.
    gene_sets
        Sets of genes to score: a ``.gmt``, or name -> genes.
    set_genes
        Least and most genes of a set that is scored.
    permutations
        Random sets of genes of the same expression for each set.
    attention
        Sum attention between genes over the cells.
    edges
        Number of pairs of genes to keep, those with the strongest attention.
    min_cells
        Neighbours, gene sets and attention are of genes that the model reads in at least this number of cells.
    column
        Column of obs with the states of cells; by default that of cell types.
    cell_type
        Value of `column`: use only these cells.
    max_cells
        Use at most this number of cells, drawn by `seed`; all by default.
    seed
        Seed of everything that is drawn.
    batch_size
        Number of cells that are computed at once.
    layer, gene_column, species, min_coverage, device
        As for `cellglot.embed`.
    dtype
        Type of the weights: ``"float32"``, ``"bfloat16"`` or ``"float16"``; as stored by default.
    overwrite
        Replace files that exist. An input is never replaced.

    Returns
    -------
    GeneEmbeddings
        ``static`` and ``contextual`` embeddings, ``genes`` (a row for each), and what was asked for.

    Raises
    ------
    ValueError
        If attention is asked for without cells, no set has enough genes, too few genes match, or values are not
        counts.
    FileNotFoundError
        If there is no such file of gene sets.

    Examples
    --------
    >>> import cellglot
    >>> found = cellglot.genes("model", adata, neighbours=5, min_cells=5)
    >>> found.contextual.shape == (len(found), found.contextual.shape[1])
    True
    """
    source: Any = cells if cells is None or is_anndata(cells) else existing(cells)
    target, name = or_none(output), model.name if isinstance(model, LoadedModel) else resolve_model(model)
    if attention and source is None:
        raise ValueError("attention between genes is summed over cells: name a file of cells")
    if source is None and (cell_type is not None or column is not None):
        raise ValueError("cell_type and column choose cells: name a file of cells")
    table = or_none(gene_sets) if isinstance(gene_sets, str | os.PathLike) else None
    if table is not None and not table.exists():
        raise FileNotFoundError(f"{table} does not exist: name a .gmt of gene sets")
    from cellglot.evaluation.genes.files import GeneFiles

    files = None
    if target is not None:
        files = GeneFiles.beside(as_path(target), neighbours > 0, gene_sets is not None, attention)
        given = source if source is None or isinstance(source, os.PathLike) else source.filename
        check_files(files.all(), [given, name, table], overwrite=overwrite)
    from cellglot.evaluation.genes.embed_genes import Request, embed_genes
    from cellglot.evaluation.scores.marker_table import read_marker_table

    sets: Any = gene_sets if table is None else read_marker_table(table)
    request = Request(
        column=column,
        cell_type=cell_type,
        max_cells=max_cells,
        seed=seed,
        min_cells=min_cells,
        neighbours=neighbours,
        gene_sets=sets,
        set_genes=(int(set_genes[0]), int(set_genes[1])),
        permutations=permutations,
        attention=attention,
        edges=edges,
    )
    return embed_genes(
        model if isinstance(model, LoadedModel) else load_model(name, dtype=dtype),
        source,
        request,
        write=None if files is None else files.write,
        unfinished=None if files is None or source is None else files.unfinished,
        layer=layer,
        species=species,
        gene_column=gene_column,
        min_coverage=min_coverage,
        batch_size=batch_size,
        device=device,
        overwrite=overwrite,
    )


__all__ = ["genes"]
