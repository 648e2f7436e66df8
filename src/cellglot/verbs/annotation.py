"""``annotate``: cells to cell types, by a trained head or by texts."""

import logging
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cellglot.evaluation.drawing import check_picture
from cellglot.evaluation.endings import check_annotated, check_table
from cellglot.modeling.collection import default_model
from cellglot.modeling.graph_alone import has_graph_alone
from cellglot.modeling.loaded_model import LoadedModel
from cellglot.modeling.model_names import resolve_model
from cellglot.outputs import check_files
from cellglot.verbs.backends import check_backend, load_graph
from cellglot.verbs.cells import as_path, existing, is_anndata, or_none, output_of, to_write


_log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from anndata import AnnData

    from cellglot.tokenization.ontology.candidates import Candidates


def annotate(
    cells: "str | os.PathLike | AnnData",
    model: str | os.PathLike | LoadedModel | None = None,
    *,
    output: str | os.PathLike | None = None,
    copy: bool = False,
    adapter: str | os.PathLike | None = None,
    candidates: "str | os.PathLike | Sequence[str] | Mapping[str, str | Sequence[str]] | Candidates | None" = None,
    ontology_branch: str | None = None,
    leaves_only: bool = False,
    in_corpus: str | os.PathLike | None = None,
    ontology: str | os.PathLike = "shipped",
    template: Sequence[str] | None = None,
    alpha: float = 0.1,
    shortlist: int | None = None,
    smooth: int | None = None,
    back_off_below: float | None = None,
    labels: str | None = None,
    table: str | os.PathLike | None = None,
    plot: str | os.PathLike | None = None,
    vote: bool = False,
    set_coverage: float | None = None,
    batch_size: int | None = None,
    layer: str | None = None,
    gene_column: str | None = None,
    species: str | None = None,
    min_coverage: float | None = None,
    dtype: str | None = None,
    device: str | None = None,
    backend: str | None = None,
    overwrite: bool = False,
) -> Any:
    """Annotate cells: by the classes of a classifier or an adapter, or by texts of types that were never trained on.

    Results of an AnnData are written to it, as scanpy does; those of a file have the same names:

    - ``obs``: ``cellglot_cell_type``, ``cellglot_cell_type_ontology_term_id``, ``cellglot_score_uncalibrated`` (with
      `labels` ``cellglot_score_calibrated``), ``cellglot_margin`` (distance to the second class); by texts also
      ``cellglot_similarity``, ``cellglot_matching``, ``cellglot_matching_probability``; with `back_off_below`
      ``cellglot_best_candidate``, ``cellglot_mass``, ``cellglot_backed_off``; by a classifier with a calibration
      ``cellglot_confidence``, ``cellglot_best_class``, ``cellglot_prediction_set``, ``cellglot_broader_type`` (and
      ``_ontology_term_id``), ``cellglot_novelty``, ``cellglot_assigned``, ``cellglot_reason``; with `vote`
      ``cellglot_cell_type_voted``,
    - ``obsm``: ``X_cellglot`` (embeddings), ``cellglot_scores`` (a column for each class), by texts
      ``cellglot_similarity`` and ``cellglot_matching``; with `plot` ``X_cellglot_umap``,
    - ``uns["cellglot"]``: ``classes``, ``cell_types`` (their Cell Ontology ids), ``model``, and how it was done.

    Cells that express no gene of the model have no type, and NaN as scores. By a classifier with a calibration, cells
    that are like none of its types are ``"unassigned"``, with a reason; where most cells of a file are, the first line
    of the result says so, and for an AnnData a warning.

    Parameters
    ----------
    cells
        AnnData with raw counts, in memory or backed; or a file of cells, as for `cellglot.read_cells`.
    model
        Name in the collection, folder or repository of a classifier, of an adapter, of a LangCell model, or of the
        base model of `adapter`; or a loaded model. By default the classifier of blood that ships with cellglot.
    output
        For a file of cells: ``.h5ad`` with the annotated cells.
    copy
        Return a copy of the AnnData with the results, and leave the given one as it is.
    adapter
        Folder or repository of an adapter that was trained on `model`.
    candidates
        For a LangCell model: names, ids or synonyms of cell types (a list, or one text with commas); class -> text or
        texts; or a ``pathlib.Path`` to a file with either. A name that the ontology does not know is used as its own
        text.
    ontology_branch
        All cell types below this one are candidates, too.
    leaves_only
        Of the branch only types without subtypes.
    in_corpus
        Of the branch only types that this tokenized corpus has training cells of.
    ontology
        ``"shipped"`` (all cell types; comes with cellglot), ``"blood"``, ``"guide"`` (with the definitions of the
        optional ``cellxgene-ontology-guide``), the date of a release of the Cell Ontology, or an OBO or OWL file.
    template
        Text of a cell type, with ``{name}``, ``{definition}``, ``{synonyms}``, ``{parents}``, ``{id}``; several are
        averaged.
    alpha
        Weight of the similarity of embeddings; the rest is the weight of matching.
    shortlist
        Match a cell only with this number of types, those of the highest similarity.
    smooth
        Average scores over a cell and this number of neighbours.
    back_off_below
        Where the best type has a smaller share than this, predict a parent type.
    labels
        Column of obs with the types of some cells, by which scores are calibrated.
    table
        For a file of cells: also write a table, ``.csv``, ``.tsv`` or ``.parquet``.
    plot
        Picture of a UMAP, coloured by prediction: ``.png``, ``.svg`` or ``.pdf``; or ``.html``, to zoom, hover and
        colour by label, confidence, novelty, metadata or a gene.
    vote
        Let clusters of cells vote on their type, as CellTypist does: ``obs["cellglot_cell_type_voted"]``.
    set_coverage
        For a classifier with a calibration: share of prediction sets that should hold the true type, from 0.8 to 0.95;
        0.9 by default.
    batch_size
        Number of cells that are computed at once; by default 16 with texts, else 64.
    layer, gene_column, species, min_coverage, device
        As for `cellglot.embed`.
    dtype
        As for `cellglot.embed`.
    backend
        As for `cellglot.embed`; annotation by texts needs PyTorch. By default PyTorch; but up to 20,000 cells are
        computed by onnxruntime if the classifier ships with a graph and neither an adapter, a `dtype` nor a `device`
        other than the CPU is given, because importing PyTorch would take longer. Values are the same within rounding.
    overwrite
        Replace results that exist. An input is never replaced.

    Returns
    -------
    AnnData or str or None
        None for an AnnData, or the copy; for a file what was read, predicted and written.

    Raises
    ------
    ValueError
        If the model has neither classes nor texts, options are for another kind of model, `output` is missing or an
        input, too few genes match, or values are not counts.
    TypeError
        If `cells` are neither a path nor an AnnData.

    Examples
    --------
    >>> import cellglot
    >>> cellglot.annotate(adata, "classifier")
    >>> predicted = adata.obs["cellglot_cell_type"]

    By texts, without training:

    >>> cellglot.annotate(adata, "langcell", candidates=["B cell", "CD14+ monocyte"])
    """
    of_texts = {
        "candidates": candidates, "ontology_branch": ontology_branch, "leaves_only": leaves_only,
        "in_corpus": in_corpus, "template": template, "alpha": alpha != 0.1, "shortlist": shortlist, "smooth": smooth,
        "back_off_below": back_off_below, "labels": labels,
    }  # fmt: skip
    reading = {
        "layer": layer, "gene_column": gene_column, "species": species, "min_coverage": min_coverage, "device": device,
        "voted": vote,
    }  # fmt: skip
    in_memory = is_anndata(cells)
    if model is None:
        if adapter is not None or any(of_texts.values()):
            given = [*(["adapter"] if adapter else []), *(k for k, v in of_texts.items() if v)]
            raise ValueError(f"{', '.join(given)}: name the model that they are for")
        model = default_model()
    if in_memory:
        target = to_write(cells, copy, {"output": output, "table": table})
        written = None
    else:
        written = output_of(cells, output, copy)
    check_backend(backend or "torch", model, dtype, device, adapter)
    check_annotated(written)
    check_table(or_none(table))
    check_picture(or_none(plot), target.n_obs if in_memory else None)
    file = target.filename if in_memory else existing(cells)
    read: list[Any] = [file, in_corpus, adapter, getattr(model, "name", model)]
    read += [path for path in (candidates, ontology) if isinstance(path, os.PathLike)]
    check_files([written, or_none(table), or_none(plot)], read, overwrite=overwrite)

    loaded = model if isinstance(model, LoadedModel) else None
    source = loaded.name if loaded is not None else resolve_model(str(model))
    adapted = None if adapter is None else resolve_model(adapter)
    plain = loaded is None and adapted is None and dtype is None and str(device or "cpu") == "cpu"
    by_graph = backend is None and plain and not any(of_texts.values()) and has_graph_alone(source)
    if backend == "onnx":
        loaded, reading["device"] = _classifier_graph(source, dtype), "cpu"
    given = [name for name, value in of_texts.items() if value]
    chosen, options = None, dict[str, Any](reading | {"batch_size": batch_size or 64, "set_coverage": set_coverage})
    if not by_graph and _by_texts(loaded or source, adapted, given):
        chosen = _candidates(candidates, ontology_branch, leaves_only, in_corpus, ontology, template)
        if set_coverage is not None:
            raise ValueError("set_coverage is for classifiers with a calibration, not for annotation by texts")
        options |= {
            "batch_size": batch_size or 16, "alpha": alpha, "shortlist": shortlist, "smooth": smooth,
            "back_off_below": back_off_below, "labels": labels,
        }  # fmt: skip
    from cellglot.evaluation.annotation.by_graph import MOST_CELLS
    from cellglot.evaluation.annotation.file import annotate_anndata, annotate_file, load_annotator

    ready = None if loaded is None else (loaded.network, loaded.tokenizer if chosen is None else loaded.processor)
    if written is not None:
        files: dict[str, Any] = {"table": or_none(table), "plot": or_none(plot), "overwrite": overwrite}
        return annotate_file(
            source, as_path(cells), written, chosen, adapter=adapted, dtype=dtype, loaded=ready, by_graph=by_graph,
            **files, **options,
        )  # fmt: skip
    facts = {"model": source} | ({} if adapted is None else {"adapter": adapted})
    ready = ready or load_annotator(source, chosen, adapted, dtype, by_graph and target.n_obs <= MOST_CELLS)
    said = annotate_anndata(ready, target, chosen, facts=facts, plot=or_none(plot), **options).split("\n")[0]
    if said.startswith("WARNING: "):
        _log.warning(said)
    return target if copy else None


def _classifier_graph(model: str, dtype: str | None) -> LoadedModel:
    """Load the graph of a classifier of cells."""
    loaded = load_graph(model, dtype)
    if loaded.purpose == "classes of cells":
        return loaded
    if loaded.purpose == "cells and texts":
        raise ValueError(f"{model} annotates by texts, which PyTorch computes: leave backend='onnx' out")
    raise ValueError(f"{model} is for {loaded.purpose}, not a classifier of cells: export a classifier or an adapter")


def _by_texts(model: str | LoadedModel, adapter: str | None, given: list[str]) -> bool:
    """Whether cells are annotated by texts: the model reads texts, and has no classes."""
    if isinstance(model, LoadedModel):
        name, with_classes, texts = model.name, bool(model.classes), model.processor is not None
        if adapter is not None:
            raise ValueError("adapter is for the name of a model: load both by cellglot.load_model(name, adapter=...)")
    else:
        from cellglot.modeling.any_model import describe_model

        what = describe_model(model)
        name, texts = model, what.reads_texts
        with_classes = (
            adapter is not None or what.is_adapter or what.purpose in ("classes of cells", "a value of cells")
        )
    if with_classes and given:
        raise ValueError(
            f"{adapter or name} predicts its own classes: {', '.join(given)} are for LangCell models and texts"
        )
    return not with_classes and (texts or bool(given))


def _candidates(
    candidates: Any,
    branch: str | None,
    leaves_only: bool,
    in_corpus: str | os.PathLike | None,
    ontology: str | os.PathLike,
    template: Sequence[str] | None,
) -> "Candidates":
    from cellglot.tokenization import Corpus
    from cellglot.tokenization.ontology.candidates import (
        Candidates,
        make_candidates,
        read_candidates,
        split_candidates,
    )
    from cellglot.training.data.cell_types import cell_types_of, open_ontology

    if isinstance(candidates, Candidates):
        return candidates
    terms, options = open_ontology(ontology), dict[str, Any]()
    if template:
        options["template"] = template
    if in_corpus is not None:
        tables = cell_types_of(Corpus.open(in_corpus), terms).tables
        options["among"] = [] if tables is None else tables.cell_types
    if isinstance(candidates, os.PathLike):
        candidates = read_candidates(as_path(candidates))
    elif isinstance(candidates, str):
        candidates = split_candidates(candidates, terms)
    return make_candidates(candidates or [], terms, branch=branch, leaves_only=leaves_only, **options)


__all__ = ["annotate"]
