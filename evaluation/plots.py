"""Plots of embeddings, confusion matrices, losses and scores, as matplotlib figures."""

import io
import warnings
from base64 import b64encode
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from cellglot.outputs import atomic
from cellglot.outputs.caches import use_writable_caches


if TYPE_CHECKING:
    from cellglot.evaluation.scores.ontology_agreement import OntologyGeometry


INK, GRID, ACCENT, SECOND = "#1f2933", "#e4e7eb", "#2364aa", "#d1495b"
MISSING = "#c9ced6"
EXACT_NEIGHBORS = 20_000  # cells of a UMAP up to which all pairs are compared: sooner done than an index is built
COLOURED = 19  # classes with a colour of their own; the others are drawn as one class
COLOURS = [
    "#2364aa", "#d1495b", "#3da35d", "#edae49", "#7b4fa3", "#00798c", "#c77dff", "#8d6b4f", "#6c757d", "#f28482",
    "#90be6d", "#577590", "#b5179e", "#f3722c", "#4d908e", "#9d8189", "#277da1", "#a7c957", "#6d597a", "#bc4749",
]  # fmt: skip


def _figure(width: float, height: float, title: str = "", **labels: Any) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    style(axes, **labels)
    axes.set_title(title, color=INK, fontsize=11, loc="left")
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#9aa5b1")
    return figure, axes


def style(axes: Any, *, xlabel: str = "", ylabel: str = "", grid: str | None = None, labelsize: float = 9) -> None:
    """Style axes as in all plots: colours, labels, grid lines along ``"x"``, ``"y"`` or ``"both"``."""
    axes.tick_params(colors=INK, labelsize=labelsize)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.set_xlabel(xlabel, color=INK, fontsize=9)
    axes.set_ylabel(ylabel, color=INK, fontsize=9)
    if grid is not None:
        axes.grid(axis=grid, color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)


def frequent(labels: Iterable[str | None], others: str = "other types") -> list[str | None]:
    """Replace all labels except the 19 most frequent by one; missing labels stay None."""
    labels = list(labels)
    common = {label for label, _ in Counter(v for v in labels if v is not None).most_common(COLOURED)}
    return [v if v is None or v in common else others for v in labels]


def umap_coordinates(embedding: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return a UMAP of cells, shape (cells, 2); NaN for cells without an embedding.

    Raises
    ------
    ValueError
        If fewer than four cells have an embedding.
    """
    if not (known := np.isfinite(embedding).all(axis=1)).all():
        coordinates = np.full((len(embedding), 2), np.nan, dtype=np.float32)
        coordinates[known] = umap_coordinates(embedding[known], seed)
        return coordinates
    if len(embedding) < 4:
        raise ValueError(f"{len(embedding):,} cells are too few for a UMAP: it needs at least four")
    use_writable_caches()
    from umap import UMAP

    threads, neighbors = torch.get_num_threads(), min(15, len(embedding) - 1)
    options: dict[str, Any] = {"n_neighbors": neighbors, "n_jobs": 1}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="precomputed_knn")  # without an index to add cells by: none are
            if len(embedding) <= EXACT_NEIGHBORS:
                options["precomputed_knn"] = _neighbors(embedding, neighbors)
            return UMAP(min_dist=0.3, random_state=seed, **options).fit_transform(embedding)
    finally:
        torch.set_num_threads(threads)  # Numba's parallel loops change the number for PyTorch, too


def _neighbors(embedding: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray, None]:
    """Return the nearest cells of each, itself first, and their distances; umap-learn takes a Python call a pair."""
    from sklearn.neighbors import NearestNeighbors

    found = NearestNeighbors(n_neighbors=number - 1, algorithm="brute").fit(embedding)
    distances, indices = found.kneighbors()  # of each cell all others
    own = np.arange(len(embedding))[:, None]
    return np.hstack([own, indices]), np.hstack([np.zeros(own.shape), distances]).astype(np.float32), None


def embedding_plot(
    coordinates: np.ndarray,
    labels: Sequence[str | None],
    title: str,
    held_out: Any = None,
    missing: str = "missing",
) -> Figure:
    """Draw cells in two dimensions, coloured by label; held-out cells have a ring, cells without a label are grey.

    Parameters
    ----------
    coordinates
        Shape (cells, 2).
    labels
        One per cell, None or NaN if missing; the legend lists them by number of cells.
    held_out
        Whether each cell was held out, shape (cells,).
    missing
        Name of the cells without a label.
    """
    unlabelled = np.array([pd.isna(label) for label in labels], dtype=bool)
    given = np.asarray(labels, dtype=str)
    names, counts = np.unique(given[~unlabelled], return_counts=True)
    groups = [(str(name), given == name) for name in names[np.argsort(-counts, kind="stable")]]
    colours = [COLOURS[number % len(COLOURS)] for number in range(len(groups))]
    if unlabelled.any():
        groups = [*((name, mine & ~unlabelled) for name, mine in groups), (missing, unlabelled)]
        colours.append(MISSING)
    figure, axes = _figure(8.6, 5.4, title, xlabel="UMAP 1", ylabel="UMAP 2")
    size = float(np.clip(12_000 / max(len(coordinates), 1), 1.5, 22))
    for (name, mine), colour in zip(groups, colours, strict=True):
        axes.scatter(
            *coordinates[mine].T, s=size, c=colour, label=f"{name} ({mine.sum():,})", linewidths=0, alpha=0.85
        )
        if held_out is not None:
            ringed = mine & held_out
            axes.scatter(*coordinates[ringed].T, s=size * 1.6, facecolors="none", edgecolors=INK, linewidths=0.5)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8.5, markerscale=1.6)
    return figure


def confusion_plot(true: Sequence[str], predicted: Sequence[str], title: str) -> Figure:
    """Draw a confusion matrix: coloured by shares of the true class, with numbers of cells."""
    a, b = np.array(true, dtype=str), np.array(predicted, dtype=str)
    names = np.union1d(a, b).tolist()
    counts = pd.crosstab(a, b).reindex(index=names, columns=names, fill_value=0).to_numpy()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side, label = 1.2 + 0.42 * len(names), 0.075 * max(map(len, names), default=0)
    figure, axes = _figure(side + label + 0.8, side + 0.7 * label + 0.6, xlabel="predicted", ylabel="true")
    figure.suptitle(title, color=INK, fontsize=11, x=0.02, ha="left")
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for i, j in zip(*np.nonzero(counts), strict=True):
        colour = "white" if shares[i, j] > 0.55 else INK
        axes.text(j, i, str(counts[i, j]), ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=8.5)
    axes.set_yticks(range(len(names)), names, fontsize=8.5)
    return figure


def curves_plot(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    title: str,
    ylabel: str,
    lines: Mapping[str, float] | None = None,
) -> Figure:
    """Draw curves over epochs.

    Parameters
    ----------
    curves
        Name -> (epochs, values).
    lines
        Name -> constant to compare with, drawn as a dashed line.
    """
    figure, axes = _figure(6.2, 3.6, title, xlabel="epoch", ylabel=ylabel, grid="y")
    for number, (name, (x, y)) in enumerate(curves.items()):
        axes.plot(x, y, color=(ACCENT, SECOND, *COLOURS[2:])[number], linewidth=1.8, label=name)
    for number, (name, value) in enumerate((lines or {}).items()):
        axes.axhline(value, color=("#7b8794", "#52606d")[number % 2], linewidth=1.2, linestyle="--", label=name)
    axes.legend(frameon=False, fontsize=8.5)
    return figure


def bars_plot(values: Mapping[str, float], title: str, xlabel: str) -> Figure:
    """Draw horizontal bars, the first on top."""
    figure, axes = _figure(6.2, 0.9 + 0.3 * max(len(values), 1), title, xlabel=xlabel, grid="x")
    names = list(values)[::-1]
    axes.barh(names, [values[n] for n in names], color=ACCENT, height=0.66)
    return figure


def geometry_plot(geometries: "Mapping[str, OntologyGeometry]", title: str) -> Figure:
    """Draw pairs of cell types by similarity in the ontology (x) and cosine in the embedding (y), one panel per model.

    Parameters
    ----------
    geometries
        Name of the model -> result of `ontology_geometry`.
    """
    figure = Figure(figsize=(4.4 * len(geometries), 4.0), layout="constrained")
    figure.suptitle(title, color=INK, fontsize=11, x=0.01, ha="left")
    panels = figure.subplots(1, len(geometries), sharey=True, squeeze=False)[0]
    for axes, colour, (name, geometry) in zip(
        panels, (SECOND, ACCENT, *COLOURS[2:]), geometries.items(), strict=False
    ):
        axes.scatter(geometry.ontology_similarity, geometry.cosine, s=22, color=colour, alpha=0.75, linewidths=0)
        axes.set_xscale("log")
        low, high = geometry.interval
        axes.set_title(
            f"{name}\nSpearman {geometry.spearman:.2f} (95%: {low:.2f} to {high:.2f})", fontsize=9.5, color=INK
        )
        style(axes, xlabel="similarity in the Cell Ontology (PageRank)", grid="both", labelsize=8.5)
    panels[0].set_ylabel("cosine of centroids of held-out cells", color=INK, fontsize=9)
    return figure


def save_figure(figure: Figure, path: str) -> None:
    """Write a figure atomically, in the format of the file ending."""
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=160, facecolor="white")


def data_uri(figure: Figure, kind: str = "png") -> str:
    """Return a figure as a ``data:`` URI, to embed it in an HTML page."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "cellglot"}):
        figure.savefig(buffer, format=kind, dpi=160, facecolor="white")
    mime = "image/svg+xml" if kind == "svg" else "image/png"
    return f"data:{mime};base64,{b64encode(buffer.getvalue()).decode()}"


__all__ = [
    "bars_plot",
    "confusion_plot",
    "curves_plot",
    "data_uri",
    "embedding_plot",
    "frequent",
    "geometry_plot",
    "save_figure",
    "style",
    "umap_coordinates",
]
