"""``perturb``: genes deleted or overexpressed one at a time, and what a model makes of it."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellglot.evaluation.endings import check_table
from cellglot.modeling.loaded_model import LoadedModel
from cellglot.modeling.model_names import resolve_model
from cellglot.outputs import check_file
from cellglot.verbs.cells import existing, is_anndata, or_none
from cellglot.verbs.models import load_model


if TYPE_CHECKING:
    from anndata import AnnData

    from cellglot.evaluation.perturbation.result import PerturbedGenes


def perturb(
    cells: "str | os.PathLike | AnnData",
    model: str | os.PathLike | LoadedModel,
    *,
    delete: str | Sequence[str] | None = None,
    overexpress: str | Sequence[str] | None = None,
    all_genes: bool = False,
    towards: str | None = None,
    column: str | None = None,
    cell_type: str | None = None,
    controls: int = 50,
    permutations: int = 1000,
    max_cells: int | None = None,
    seed: int = 0,
    output: str | os.PathLike | None = None,
    batch_size: int = 64,
    layer: str | None = None,
    gene_column: str | None = None,
    species: str | None = None,
    min_coverage: float | None = None,
    dtype: str | None = None,
    device: str | None = None,
    overwrite: bool = False,
) -> "PerturbedGenes":
    """Delete or overexpress genes of cells, one at a time, and measure what a model makes of it.

    A deleted gene has a count of zero: its rank token is removed, and the next gene moves up where the cell was cut;
    in Exceiver the gene is unexpressed. An overexpressed gene has the first rank; in Exceiver the 99% quantile of its
    values over the chosen cells that express it, if its own value is not higher. Other genes keep their counts.

    Each gene is compared with control genes of half to twice its mean expression, and tested by permutations in which
    the gene changes places with controls in each cell. docs/evaluation/perturbation.md says what that shows and what
    it does not.

    Parameters
    ----------
    cells
        AnnData with raw counts, in memory or backed; or a file of cells, as for `cellglot.read_cells`.
    model
        Name, folder or repository of a model of any kind, of a classifier or of an adapter; or a loaded model.
    delete
        Genes to delete: Ensembl ids, symbols or aliases.
    overexpress
        Genes to overexpress.
    all_genes
        Delete all genes that the cells express.
    towards
        State of cells, a value of `column`: measure the movement towards its mean embedding.
    column
        Column of obs with the states of cells; by default that of cell types.
    cell_type
        Value of `column`: perturb only these cells. By default all, with `towards` all others.
    controls
        Control genes for each gene; all that match, if there are fewer.
    permutations
        Permutations for each gene.
    max_cells
        Perturb at most this number of cells, drawn by `seed`; all by default.
    seed
        Seed of everything that is drawn.
    output
        Table to write, ``.csv``, ``.tsv`` or ``.parquet``. A run that was stopped is resumed by the same call.
    batch_size
        Number of cells that are computed at once.
    layer, gene_column, species, min_coverage, device
        As for `cellglot.embed`.
    dtype
        Type of the weights: ``"float32"``, ``"bfloat16"`` or ``"float16"``; as stored by default.
    overwrite
        Replace a table that exists. An input is never replaced.

    Returns
    -------
    PerturbedGenes
        Its `table` has one row for each gene, with mean shift of the embedding, movement towards the target state, the
        same of the control genes, p-value, FDR, and the mean change of the probability of each class.

    Raises
    ------
    ValueError
        If not exactly one of `delete`, `overexpress` and `all_genes` is given, a gene is not in the vocabulary, not
        among the genes of the cells or not expressed, a state has no cells, too few genes match, or values are not
        counts.
    TypeError
        If `cells` are neither a path nor an AnnData.

    Examples
    --------
    >>> import cellglot
    >>> found = cellglot.perturb(adata, "model", delete=["CD74", "CST3"], max_cells=20)
    >>> table = found.table()
    """
    if (delete is not None) + (overexpress is not None) + bool(all_genes) != 1:
        raise ValueError(
            "name genes to delete (--delete) or to overexpress (--overexpress), or delete all of them (--all-genes): "
            "one of the three"
        )
    from cellglot.lists import split_list

    named = delete if delete is not None else overexpress
    genes = split_list(named) if isinstance(named, str) else named
    target, name = or_none(output), model.name if isinstance(model, LoadedModel) else resolve_model(model)
    source: Any = cells if is_anndata(cells) else existing(cells)
    if target is not None:
        check_table(target)
        check_file(target, [source if isinstance(source, Path) else source.filename, name], overwrite=overwrite)
    from cellglot.evaluation.perturbation.perturb import Request, perturb_cells

    request = Request(
        kind="delete" if overexpress is None else "overexpress",
        genes=None if all_genes else [str(gene) for gene in genes or ()],
        towards=towards,
        column=column,
        cell_type=cell_type,
        controls=controls,
        permutations=permutations,
        max_cells=max_cells,
        seed=seed,
    )
    return perturb_cells(
        model if isinstance(model, LoadedModel) else load_model(name, dtype=dtype),
        source,
        request,
        output=target,
        layer=layer,
        species=species,
        gene_column=gene_column,
        min_coverage=min_coverage,
        batch_size=batch_size,
        device=device,
        overwrite=overwrite,
    )


__all__ = ["perturb"]
