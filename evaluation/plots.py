"""Plots: embeddings, confusion, losses. Every function gives a matplotlib figure."""

import io
from base64 import b64encode
from collections.abc import Mapping, Sequence
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
# Distinct for up to 20 classes; further classes repeat them.
COLOURS = [
    "#2364aa", "#d1495b", "#3da35d", "#edae49", "#7b4fa3", "#00798c", "#c77dff", "#8d6b4f", "#6c757d", "#f28482",
    "#90be6d", "#577590", "#b5179e", "#f3722c", "#4d908e", "#9d8189", "#277da1", "#a7c957", "#6d597a", "#bc4749",
]  # fmt: skip


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.tick_params(colors=INK, labelsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#9aa5b1")
    return figure, axes


def umap_coordinates(embedding: np.ndarray, seed: int = 0) -> np.ndarray:
    """Lay out cells in two dimensions by UMAP, shape (cells, 2); NaN for cells without an embedding.

    Raises
    ------
    ValueError
        If there are fewer than four cells, or fewer with an embedding.
    """
    if not (known := np.isfinite(embedding).all(axis=1)).all():
        coordinates = np.full((len(embedding), 2), np.nan, dtype=np.float32)
        coordinates[known] = umap_coordinates(embedding[known], seed)
        return coordinates
    if len(embedding) < 4:
        raise ValueError(f"{len(embedding):,} cells are too few for a UMAP: it takes four or more")
    use_writable_caches()
    from umap import UMAP

    neighbors, threads = min(15, len(embedding) - 1), torch.get_num_threads()
    try:
        return UMAP(n_neighbors=neighbors, min_dist=0.3, random_state=seed, n_jobs=1).fit_transform(embedding)
    finally:
        torch.set_num_threads(threads)  # Numba's parallel loops set them anew, for PyTorch, too


def embedding_plot(
    coordinates: np.ndarray,
    labels: Sequence[str | None],
    title: str,
    held_out: Any = None,
    missing: str = "missing",
) -> Figure:
    """Draw cells in two dimensions, coloured by label; held-out cells are ringed, cells without a label grey.

    Parameters
    ----------
    coordinates
        Shape (cells, 2).
    labels
        One a cell, None (or not a number) where it has none; the legend lists them by number of cells.
    title
        Above the plot.
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
    figure, axes = _figure(8.6, 5.4)
    size = float(np.clip(12_000 / max(len(coordinates), 1), 1.5, 22))
    for (name, mine), colour in zip(groups, colours, strict=True):
        axes.scatter(
            *coordinates[mine].T, s=size, c=colour, label=f"{name} ({mine.sum():,})", linewidths=0, alpha=0.85
        )
        if held_out is not None:
            ringed = mine & held_out
            axes.scatter(*coordinates[ringed].T, s=size * 1.6, facecolors="none", edgecolors=INK, linewidths=0.5)
    axes.set_title(title, color=INK, fontsize=11, loc="left")
    axes.set_xlabel("UMAP 1", color=INK, fontsize=9)
    axes.set_ylabel("UMAP 2", color=INK, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8.5, markerscale=1.6)
    return figure


def confusion_plot(true: Sequence[str], predicted: Sequence[str], title: str) -> Figure:
    """Draw a confusion matrix, each row as shares of its true class, cells counted in the fields."""
    names = sorted({*map(str, true), *map(str, predicted)})
    place = {name: i for i, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)), dtype=int)
    for a, b in zip(true, predicted, strict=True):
        counts[place[str(a)], place[str(b)]] += 1
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side, label = 1.2 + 0.42 * len(names), 0.075 * max(map(len, names), default=0)
    figure, axes = _figure(side + label + 0.8, side + 0.7 * label + 0.6)
    figure.suptitle(title, color=INK, fontsize=11, x=0.02, ha="left")
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for i, j in zip(*np.nonzero(counts), strict=True):
        axes.text(
            j,
            i,
            f"{counts[i, j]}",
            ha="center",
            va="center",
            fontsize=8,
            color="white" if shares[i, j] > 0.55 else INK,
        )
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=8.5)
    axes.set_yticks(range(len(names)), names, fontsize=8.5)
    axes.set_xlabel("predicted", color=INK, fontsize=9)
    axes.set_ylabel("true", color=INK, fontsize=9)
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
        Name -> constant to compare with, dashed.
    """
    figure, axes = _figure(6.2, 3.6)
    for number, (name, (x, y)) in enumerate(curves.items()):
        axes.plot(x, y, color=(ACCENT, SECOND, *COLOURS[2:])[number], linewidth=1.8, label=name)
    for number, (name, value) in enumerate((lines or {}).items()):
        axes.axhline(value, color=("#7b8794", "#52606d")[number % 2], linewidth=1.2, linestyle="--", label=name)
    axes.set_xlabel("epoch", color=INK, fontsize=9)
    axes.set_ylabel(ylabel, color=INK, fontsize=9)
    axes.set_title(title, color=INK, fontsize=11, loc="left")
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=8.5)
    return figure


def bars_plot(values: Mapping[str, float], title: str, xlabel: str) -> Figure:
    """Draw horizontal bars, the first on top."""
    figure, axes = _figure(6.2, 0.9 + 0.3 * max(len(values), 1))
    names = list(values)[::-1]
    axes.barh(names, [values[n] for n in names], color=ACCENT, height=0.66)
    axes.set_xlabel(xlabel, color=INK, fontsize=9)
    axes.set_title(title, color=INK, fontsize=11, loc="left")
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    return figure


def geometry_plot(geometries: "Mapping[str, OntologyGeometry]", title: str) -> Figure:
    """Draw pairs of cell types, as the ontology (across) and as embeddings of some models (up) see them.

    Parameters
    ----------
    geometries
        Name of the model -> what `ontology_geometry` gave for it.
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
        axes.set_xlabel("similarity in the Cell Ontology (PageRank)", color=INK, fontsize=9)
        axes.grid(color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(colors=INK, labelsize=8.5)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    panels[0].set_ylabel("cosine of centroids of held-out cells", color=INK, fontsize=9)
    return figure


def save_figure(figure: Figure, path: str) -> None:
    """Write a figure, whole or not at all; the ending of `path` chooses the format."""
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=160, facecolor="white")


def data_uri(figure: Figure, kind: str = "png") -> str:
    """Return a figure as a ``data:`` address, to stand in an HTML page by itself."""
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
    "geometry_plot",
    "save_figure",
    "umap_coordinates",
]
