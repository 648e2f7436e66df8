"""``evaluate``: models and plain baselines on labelled cells."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cellglot.evaluation.benchmark.tasks import check_tasks
from cellglot.evaluation.endings import is_embedding_file
from cellglot.evaluation.judges.names import check_judges
from cellglot.modeling.model_names import resolve_model
from cellglot.verbs.cells import as_path, existing, is_anndata, or_none


if TYPE_CHECKING:
    from anndata import AnnData

    from cellglot.evaluation.benchmark.evaluate import Evaluation
    from cellglot.tokenization import CellOntology


def evaluate(
    models: str | os.PathLike | Sequence[str | os.PathLike] | Mapping[str, str | os.PathLike],
    cells: "str | os.PathLike | AnnData | None" = None,
    *,
    output: str | os.PathLike | None = None,
    tasks: Sequence[str] | None = None,
    labels: str | None = None,
    batches: str | None = None,
    donors: str | None = None,
    markers: str | os.PathLike | Mapping[str, Sequence[str]] | None = None,
    marker_types: Mapping[str, str] | None = None,
    gene_sets: str | os.PathLike | Mapping[str, Sequence[str]] | None = None,
    perturbations: str | None = None,
    control: str = "control",
    drug_response: str | os.PathLike | None = None,
    drug_values: str = "auto",
    ontology: "str | os.PathLike | CellOntology" = "shipped",
    judges: str | Sequence[str] = (),
    without_batches: bool = False,
    baselines: bool = True,
    seed: int = 0,
    test_fraction: float = 0.25,
    shots: int = 10,
    marker_cells: int = 50,
    retrieval_cells: int = 1000,
    perturbation_cells: int = 150,
    batch_size: int = 64,
    layer: str | None = None,
    gene_column: str | None = None,
    species: str | None = None,
    min_coverage: float | None = None,
    device: str | None = None,
    overwrite: bool = False,
) -> "Evaluation":
    """Evaluate models and plain baselines on labelled cells.

    An evaluation that was stopped resumes where it was, when it is called again with the same `output`.

    Parameters
    ----------
    models
        Name in the collection, folder or repository of a model, a classifier or an adapter; several; or name on the
        table -> these. A file of embeddings of these cells (``.h5ad``, ``.parquet``, ``.npy``, of `cellglot.embed` or
        another tool) is scored as an embedding.
    cells
        AnnData with raw counts, in memory or backed; or a file of cells, as for `cellglot.read_cells`; None
        for drug response alone.
    output
        Folder for ``evaluation.json``, ``evaluation.md`` and pictures; by default nothing is written.
    tasks
        Of ``"clustering"``, ``"integration"``, ``"annotation"``, ``"novel"``, ``"retrieval"``, ``"markers"``,
        ``"gene-sets"``, ``"pathways"``, ``"perturbation"``, ``"drug-response"``; by default all for which there are
        labels, batches, markers, gene sets, perturbations and a folder of drug response.
    labels, batches, donors
        Columns of obs with cell types, batches, and donors or data sets, which are not split.
    markers
        Table of marker genes, ``.tsv``, ``.csv`` or ``.gmt``; or cell type -> genes.
    marker_types
        Label -> cell type of the table, where their names differ.
    gene_sets
        Sets of genes such as pathways: a ``.gmt``, or name -> genes.
    perturbations
        Column of obs with the gene that is knocked out in each cell, as in scPerturb.
    control
        Its value in cells without a knock-out.
    drug_response
        Folder of cell lines and drugs: ``expression.parquet``, ``drugs.tsv``, ``response.tsv``. Needs RDKit
        (``pip install 'cellglot[chemistry]'``).
    drug_values
        Its expression: ``"log2"`` of TPM + 1, ``"linear"``, or ``"relative"`` ranks of microarrays and z-scores;
        ``"auto"`` finds out which of the first two, and refuses the others.
    ontology
        ``"shipped"`` (all cell types; comes with cellglot), ``"blood"``, ``"guide"``, the date of a release of the
        Cell Ontology, an OBO or OWL file, or an opened
        `CellOntology`.
    judges
        Packages that score the same embeddings by their own code: ``"scib-metrics"``
        (``pip install 'cellglot[judges]'``), ``"cz-benchmarks"`` (in an environment of its own, which is made at the
        first use).
    without_batches
        Also score each embedding of which Harmony removed the batches of `batches`, as "NAME + Harmony"
        (``pip install 'cellglot[integration]'``).
    baselines
        Whether plain baselines are evaluated, too.
    seed
        Seed of everything that is drawn.
    test_fraction
        Share of cells (or donors) on which annotation is scored.
    shots
        Number of cells of each class for annotation by few cells.
    marker_cells
        Number of cells whose genes are masked, one at a time.
    retrieval_cells
        Number of labelled cells for which texts are searched, and the other way round.
    perturbation_cells
        Number of control cells, and most cells of each knock-out.
    batch_size, layer, gene_column, species, min_coverage, device
        As for `cellglot.embed`.
    overwrite
        Delete an earlier evaluation in `output`, and start from the beginning.

    Returns
    -------
    Evaluation
        ``results`` (row of the table -> model -> result), ``table()`` as Markdown, and the whole record.

    Raises
    ------
    ValueError
        If a model, column, task or judge does not exist, a file of embeddings is of other cells or of another order,
        or `output` contains something else.
    ImportError
        If a package is missing; says which to install.
    FileNotFoundError
        If there is no such table of marker genes, file of gene sets or folder of drug response.

    Examples
    --------
    >>> import cellglot
    >>> done = cellglot.evaluate({"mine": "model"}, adata, tasks=["clustering"], labels="cell_type", baselines=False)
    >>> print(done.table().splitlines()[0])
    | | mine |
    """
    named: Any = [models] if isinstance(models, str | os.PathLike) else models
    for source in named.values() if isinstance(named, Mapping) else named:
        if isinstance(source, str | os.PathLike) and not is_embedding_file(source):
            resolve_model(source)
    asked = check_judges([judges] if isinstance(judges, str) else judges)
    given = cells if cells is None or is_anndata(cells) else existing(cells)
    if tasks is not None:
        check_tasks(tasks, markers, drug_response, cells, gene_sets, perturbations)
    if drug_response is not None and not as_path(drug_response).exists():
        raise FileNotFoundError(f"{drug_response} does not exist: name a folder of drug response")
    if isinstance(markers, str | os.PathLike) and not as_path(markers).exists():
        raise FileNotFoundError(f"{markers} does not exist: name a table of marker genes")
    if isinstance(gene_sets, str | os.PathLike) and not as_path(gene_sets).exists():
        raise FileNotFoundError(f"{gene_sets} does not exist: name a .gmt of gene sets")
    from cellglot.evaluation.benchmark.evaluate import evaluate_models
    from cellglot.training.data.cell_types import open_ontology

    opened = open_ontology(ontology) if isinstance(ontology, str | os.PathLike) else ontology
    settings: dict[str, Any] = {
        "seed": seed, "test_fraction": test_fraction, "shots": shots, "marker_cells": marker_cells,
        "retrieval_cells": retrieval_cells, "perturbation_cells": perturbation_cells,
        "batch_size": batch_size, "device": device,
    }  # fmt: skip
    table: Any = markers
    sets: Any = gene_sets
    return evaluate_models(
        named,
        given,
        tasks,
        labels=labels,
        batches=batches,
        donors=donors,
        markers=table,
        marker_types=marker_types,
        gene_sets=sets,
        perturbations=perturbations,
        control=control,
        drug_response=or_none(drug_response),
        drug_values=drug_values,
        ontology=opened,
        judges=asked,
        without_batches=without_batches,
        with_baselines=baselines,
        output=or_none(output),
        overwrite=overwrite,
        layer=layer,
        gene_column=gene_column,
        species=species,
        min_coverage=min_coverage,
        **settings,
    )


__all__ = ["evaluate"]
