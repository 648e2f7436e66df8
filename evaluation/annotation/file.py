"""Annotation of a file (written to a file, a table and a picture) and of an AnnData (in place)."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from cellglot.evaluation.annotation.by_graph import MOST_CELLS, classify_by_graph
from cellglot.evaluation.drawing import check_picture, drawing, is_interactive
from cellglot.evaluation.endings import check_annotated, check_table
from cellglot.evaluation.output import (
    KEY,
    add_matrices,
    add_results,
    check_cells,
    write_annotated,
    write_table,
)
from cellglot.modeling.annotation_calibration import AnnotationCalibration
from cellglot.modeling.graph_alone import GraphAlone
from cellglot.outputs import check_files
from cellglot.tokenization.families import FAMILIES
from cellglot.tokenization.reading.cells import Cells, read_cells


if TYPE_CHECKING:
    from anndata import AnnData

    from cellglot.tokenization.ontology.candidates import Candidates


def annotate_file(
    model: str | Path,
    cells: Path,
    output: Path,
    candidates: "Candidates | None" = None,
    *,
    adapter: str | Path | None = None,
    table: Path | None = None,
    plot: Path | None = None,
    voted: bool = False,
    layer: str | None = None,
    species: str | None = None,
    dtype: str | None = None,
    loaded: tuple[Any, Any] | None = None,
    by_graph: bool = False,
    overwrite: bool = False,
    **options: Any,
) -> str:
    """Annotate the cells of a file: by the texts of `candidates`, or without them by a trained classifier.

    Parameters
    ----------
    model
        Folder or repository of a LangCell model with its processor, a classifier, an adapter, or the base model of
        `adapter`.
    output
        ``.h5ad``: the cells with the columns of `CellAnnotation.write_to` or `ClassifiedCells`;
        ``obsm["X_cellglot_umap"]`` if `plot` is given.
    candidates
        The classes, if the model annotates by texts.
    adapter
        Folder or repository of an adapter that was trained on `model`.
    table
        ``.csv``, ``.tsv`` or ``.parquet`` with one row per cell.
    plot
        File of a UMAP, coloured by prediction; ``.html`` to zoom, hover and colour by scores, metadata and genes.
    species
        As for `cellglot.read_cells`.
    voted
        Let clusters of the embedding vote on the types of their cells; column ``cellglot_cell_type_voted``.
    layer, **options
        As for `cellglot.evaluation.annotation.by_texts.annotate_cells` or `classify_cells`.
    dtype
        Of the weights, such as ``"bfloat16"``; by default as stored.
    loaded
        Result of `load_annotator`, to load the model only once.
    by_graph
        Whether the folder `model` has a graph (`cellglot.modeling.graph_alone`), which computes the cells if they are
        few; then PyTorch is not imported.
    overwrite
        Replace outputs that exist; inputs are never replaced.

    Returns
    -------
    str
        Summary of the cells, the predictions and the written files.

    Raises
    ------
    OutputError
        If an output is an input, or exists without `overwrite`.
    ValueError
        If a file ending is unsupported, there are too few cells for a UMAP, or the model does not fit; as
        `annotate_cells` and `load_classifier`.
    """
    check_table(table)
    check_annotated(output)
    check_picture(plot)
    check_files([output, table, plot], [cells, model, adapter], overwrite=overwrite)
    with read_cells(cells, layer=layer, species=species) as opened:
        check_picture(plot, len(opened))
        if voted:
            _check_vote(len(opened))
        check_cells(opened)
        loaded = loaded or load_annotator(model, candidates, adapter, dtype, by_graph and len(opened) <= MOST_CELLS)
        found = _annotated(loaded, opened, candidates, adapter or model, layer=layer, **options)
        facts = {"model": str(model)} | ({} if adapter is None else {"adapter": str(adapter)})
        columns = _columns(found, voted)
        write_annotated(opened, cells, output, obs=columns, obsm=found.matrices(), uns={KEY: found.facts() | facts})
        if table is not None:
            write_table(_with_vote(found.table(), columns), table)
        written = [str(p) for p in (output, table) if p is not None]
        if plot is not None:
            named = [] if adapter is None else ["--adapter", adapter]
            again = ["cellglot", "annotate", model, cells, *named, "--output", output, "--plot", plot, "--overwrite"]
            with drawing(plot, again):
                _draw(found, columns, opened, output, plot)
                written.append(str(plot))
        return "\n".join([found.summary(), opened.summary(), *written])


def load_annotator(
    model: str | Path,
    candidates: "Candidates | None",
    adapter: str | Path | None = None,
    dtype: str | None = None,
    by_graph: bool = False,
) -> tuple[Any, Any]:
    """Load a text model and its processor if there are candidates, else a classifier (or its graph) and tokenizer."""
    if by_graph:
        graph = GraphAlone(model)
        return graph, FAMILIES.of(graph.config["model_type"], model).tokenizer_class.from_pretrained(model)
    if candidates is None:
        from cellglot.evaluation.annotation.by_classifier import load_classifier

        return load_classifier(model, adapter, dtype)
    from cellglot.modeling.any_model import load_cell_text_model

    return load_cell_text_model(model, dtype)


def _annotated(
    loaded: tuple[Any, Any],
    opened: Cells,
    candidates: "Candidates | None",
    source: str | Path,
    *,
    layer: str | None,
    set_coverage: float | None = None,
    device: Any = None,
    **options: Any,
) -> Any:
    if candidates is None:
        calibration = AnnotationCalibration.load(source)
        if isinstance(loaded[0], GraphAlone):
            return classify_by_graph(*loaded, opened, calibration=calibration, set_coverage=set_coverage, **options)
        from cellglot.evaluation.annotation.by_classifier import classify_cells

        options |= {"device": device, "calibration": calibration, "set_coverage": set_coverage}
        return classify_cells(*loaded, opened, **options)
    from cellglot.evaluation.annotation.by_texts import annotate_cells

    return annotate_cells(*loaded, opened, candidates, layer=layer, device=device, **options)


def annotate_anndata(
    loaded: tuple[Any, Any],
    adata: "AnnData",
    candidates: "Candidates | None" = None,
    *,
    facts: Mapping[str, str],
    plot: Path | None = None,
    voted: bool = False,
    layer: str | None = None,
    species: str | None = None,
    **options: Any,
) -> str:
    """Annotate the cells of an AnnData in place, with the columns that `annotate_file` writes to a file.

    Parameters
    ----------
    loaded
        From `load_annotator`.
    adata
        The cells, in memory or backed.
    facts
        Names of the model and adapter, for ``uns["cellglot"]``.
    candidates, plot, voted, layer, species, **options
        As for `annotate_file`.

    Returns
    -------
    str
        Summary of the predictions.
    """
    check_picture(plot, adata.n_obs)
    if voted:
        _check_vote(adata.n_obs)
    with read_cells(adata, layer=layer, species=species) as opened:
        source = facts.get("adapter", facts["model"])
        found = _annotated(loaded, opened, candidates, source, layer=layer, **options)
        columns = _columns(found, voted)
        add_results(adata, obs=columns, obsm=found.matrices(), uns={KEY: found.facts() | dict(facts)})
        if plot is not None:
            from cellglot.evaluation import plots

            coordinates = plots.umap_coordinates(found.embedding)
            adata.obsm[f"X_{KEY}_umap"] = coordinates
            _save(found, columns, opened, coordinates, "predicted cell types", plot)
    return found.summary()


def _columns(found: Any, voted: bool) -> dict[str, Any]:
    columns = {f"{KEY}_{name}": values for name, values in found.columns().items()}
    if voted:
        from cellglot.evaluation.annotation.voting import vote  # imports igraph and scikit-learn

        columns[f"{KEY}_cell_type_voted"] = pd.Categorical(vote(found.embedding, found.predicted))
    return columns


def _check_vote(n_cells: int) -> None:
    from cellglot.evaluation.annotation.voting import check_vote

    check_vote(n_cells)


def _with_vote(table: pd.DataFrame, columns: Mapping[str, Any]) -> pd.DataFrame:
    """Put the vote into a table, beside the prediction."""
    found = columns.get(f"{KEY}_cell_type_voted")
    if found is not None:
        table.insert(1, "cell_type_voted", found)
    return table


def _draw(found: Any, columns: Mapping[str, Any], opened: Cells, output: Path, plot: Path) -> None:
    """Compute a UMAP, add it to the written file, and draw it."""
    from cellglot.evaluation import plots  # imports matplotlib

    coordinates = plots.umap_coordinates(found.embedding)
    add_matrices(output, {f"X_{KEY}_umap": coordinates})
    title = f"{opened.name}, predicted cell types"
    if getattr(found, "decisions", None) is None:
        kind = next(name for name in found.columns() if name.startswith("score_")).removeprefix("score_")
        title = f"{title} ({kind})"
    _save(found, columns, opened, coordinates, title, plot)


def _save(found: Any, columns: Mapping[str, Any], opened: Cells, coordinates: Any, title: str, plot: Path) -> None:
    """Write the picture: as an image, or as a page to zoom, hover and colour."""
    from cellglot.evaluation import plots

    if is_interactive(plot):
        from cellglot.evaluation.annotation.cell_map import annotation_plot
        from cellglot.evaluation.cell_plot.page import write_page

        write_page([annotation_plot(columns, opened, coordinates, title)], plot, title)
    else:
        plots.save_figure(found.plot(coordinates, title), str(plot))


__all__ = ["annotate_anndata", "annotate_file", "load_annotator"]
