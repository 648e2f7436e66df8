"""Pictures of an evaluation: bars with intervals, embeddings laid out."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from cellglot.evaluation import plots
from cellglot.evaluation.benchmark.results import Table, metrics_of
from cellglot.evaluation.scores.bootstrap import Score


# What is drawn of each task; of the others accuracy.
MAIN_METRICS = {"clustering": "avg_bio", "integration": "avg_batch", "markers": "auroc"}
MODEL_COLOUR, BASELINE_COLOUR = plots.ACCENT, "#9aa5b1"
MOST_CELLS = 20_000
COLOURED = 19


def scores_plot(results: Table, columns: Sequence[str], baselines: Sequence[str], title: str) -> Figure:
    """Draw the main metric of every task: a panel each, a bar for each model, with its interval.

    Parameters
    ----------
    results
        Task -> model -> result.
    baselines
        Those that are drawn grey.
    """
    panels = []
    for task, by_model in results.items():
        metric = MAIN_METRICS.get(task, "accuracy")
        scores = {name: by_model[name].metrics[metric] for name in columns if _has(by_model, name, metric)}
        if scores:
            heading = next((h for m, h in metrics_of(task, by_model) if m == metric), f"{task}, {metric}")
            panels.append((heading, scores))
    most = max((len(scores) for _, scores in panels), default=1)
    across = min(3, max(len(panels), 1))
    down = -(-len(panels) // across) if panels else 1
    figure = Figure(figsize=(4.7 * across, down * (0.8 + 0.3 * most) + 0.5), layout="constrained")
    figure.suptitle(title, color=plots.INK, fontsize=11, x=0.01, ha="left")
    axes_of = figure.subplots(down, across, squeeze=False).ravel()
    for axes, (heading, scores) in zip(axes_of, panels, strict=False):
        _panel(axes, heading, scores, baselines, most)
    for axes in axes_of[len(panels) :]:
        axes.set_axis_off()
    return figure


def _panel(axes: Any, heading: str, scores: dict[str, Score], baselines: Sequence[str], most: int) -> None:
    """Draw a bar for each score, as thick as if there were the most that a panel has."""
    names = list(scores)[::-1]
    values = np.array([scores[n].value for n in names])
    ends = np.array([_ends(scores[n]) for n in names]).clip(min=0)
    colours = [BASELINE_COLOUR if n in baselines else MODEL_COLOUR for n in names]
    axes.barh(names, values, color=colours, height=0.66)
    axes.errorbar(values, range(len(names)), xerr=ends.T, fmt="none", ecolor=plots.INK, capsize=2.5)
    for place, (value, (_, above)) in enumerate(zip(values, ends, strict=True)):
        axes.text(max(value + above, 0) + 0.02, place, f"{value:.2f}", va="center", fontsize=8.5, color=plots.INK)
    axes.set_ylim(len(names) - most - 0.5, len(names) - 0.5)
    axes.set_xlim(min(0, float((values - ends[:, 0]).min()) * 1.05), 1.12)
    axes.set_title(heading, fontsize=9.5, color=plots.INK, loc="left")
    axes.tick_params(colors=plots.INK, labelsize=8.5)
    axes.grid(axis="x", color=plots.GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _ends(score: Score) -> tuple[float, float]:
    """Return how far the ends of an interval lie from the score."""
    if score.low is None or score.high is None:
        return 0.0, 0.0
    return score.value - score.low, score.high - score.value


def _has(by_model: dict, name: str, metric: str) -> bool:
    return name in by_model and metric in by_model[name].metrics


def draw_umap(
    embedding: np.ndarray, colours: dict[str, np.ndarray], name: str, folder: Path, seed: int = 0
) -> list[str]:
    """Draw the UMAP of a model's cells once for each way of colouring them; at most 20,000 cells, drawn at random.

    Parameters
    ----------
    colours
        What they are coloured by (``"cell type"``) -> one label a cell, None where it is missing.
    folder
        Where to write ``umap_NAME_BY.png``.

    Returns
    -------
    list of str
        Names of the files; none where fewer than four cells have an embedding.
    """
    shown = np.flatnonzero(np.isfinite(embedding).all(axis=1))
    if len(shown) > MOST_CELLS:
        shown = np.sort(np.random.default_rng(seed).permutation(shown)[:MOST_CELLS])
    if len(shown) < 4:
        return []
    coordinates, written = plots.umap_coordinates(embedding[shown], seed), []
    for by, values in colours.items():
        common = {label for label, _ in Counter(v for v in values[shown] if v is not None).most_common(COLOURED)}
        labels = [None if v is None else v if v in common else "others" for v in values[shown]]
        figure = plots.embedding_plot(coordinates, labels, f"{name}: cells by {by}")
        path = folder / umap_file(name, by)
        plots.save_figure(figure, str(path))
        written.append(path.name)
    return written


def umap_file(name: str, by: str) -> str:
    """Return the name of the picture of a model's cells, coloured by something."""
    return "umap_" + "_".join("".join(c if c.isalnum() else "_" for c in text) for text in (name, by)) + ".png"


__all__ = ["draw_umap", "scores_plot", "umap_file"]
