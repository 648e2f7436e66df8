"""Pictures of an evaluation: bars with intervals, UMAPs of embeddings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from cellglot.evaluation import plots
from cellglot.evaluation.benchmark.results import Table, metrics_of
from cellglot.evaluation.cell_plot.genes import GeneValues, gene_values
from cellglot.evaluation.cell_plot.page import write_page
from cellglot.evaluation.cell_plot.plot import CellPlot
from cellglot.evaluation.judges.names import SCIB
from cellglot.evaluation.scores.bootstrap import Score
from cellglot.tokenization.reading.cells import Cells


# The metric that is drawn for each task; accuracy for the others.
MAIN_METRICS = {
    "clustering": "avg_bio", "integration": "avg_batch", "markers": "auroc", "gene-sets": "auroc_matched",
    "pathways": "average_precision", "perturbation": "controls_that_move_less",
    "retrieval": "cell_to_text_recall@1", "drug-response": "pearson", SCIB: "total",
}  # fmt: skip
MODEL_COLOUR, BASELINE_COLOUR = plots.ACCENT, "#9aa5b1"
MOST_CELLS, MOST_GENES = 20_000, 60


def scores_plot(results: Table, columns: Sequence[str], baselines: Sequence[str], title: str) -> Figure:
    """Draw the main metric of every task: one panel per task, one bar with its interval per model, baselines grey."""
    panels = []
    for task, by_model in results.items():
        metric = MAIN_METRICS.get(task.split(":")[0], "accuracy")
        scores = {n: by_model[n].metrics[metric] for n in columns if n in by_model and metric in by_model[n].metrics}
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
    """Draw a bar for each score; bars are equally thick in all panels, which have `most` bars at most."""
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
    plots.style(axes, grid="x", labelsize=8.5)


def _ends(score: Score) -> tuple[float, float]:
    """Return the distances of the interval's ends from the score."""
    if score.low is None or score.high is None:
        return 0.0, 0.0
    return score.value - score.low, score.high - score.value


class MapGenes:
    """Genes for the maps of several models, read once as long as the same cells are shown.

    Parameters
    ----------
    cells
        Opened cells.
    groups
        Label of each cell, None if missing; None without labels.
    """

    def __init__(self, cells: Cells, groups: Sequence[str | None] | np.ndarray | None):
        self.cells, self.groups = cells, groups
        self._kept: dict[bytes, GeneValues] = {}

    def of(self, shown: np.ndarray) -> GeneValues:
        """Return the values of genes that tell the labels apart, for the shown cells."""
        key = shown.tobytes()
        if key not in self._kept:
            self._kept = {key: gene_values(self.cells, self.groups, shown, MOST_GENES)}
        return self._kept[key]


def draw_umap(
    embedding: np.ndarray,
    colours: dict[str, np.ndarray],
    name: str,
    folder: Path,
    seed: int = 0,
    genes: MapGenes | None = None,
) -> list[str]:
    """Draw a UMAP of at most 20,000 randomly chosen cells, once for each colouring, as ``umap_NAME_BY.png``.

    Parameters
    ----------
    colours
        Name of the colouring (``"cell type"``) -> one label per cell, None if missing.
    genes
        Of the cells; with them also ``umap_NAME.html``, a map to zoom, hover and colour.

    Returns
    -------
    list of str
        Names of the files; empty if fewer than four cells have an embedding.
    """
    shown = np.flatnonzero(np.isfinite(embedding).all(axis=1))
    if len(shown) > MOST_CELLS:
        shown = np.sort(np.random.default_rng(seed).permutation(shown)[:MOST_CELLS])
    if len(shown) < 4:
        return []
    coordinates, written = plots.umap_coordinates(embedding[shown], seed), []
    for by, values in colours.items():
        figure = plots.embedding_plot(coordinates, plots.frequent(values[shown], "others"), f"{name}: cells by {by}")
        path = folder / umap_file(name, by)
        plots.save_figure(figure, str(path))
        written.append(path.name)
    if genes is not None:
        plot = CellPlot(coordinates, genes.cells.names(), f"{name}: cells", seed, shown)
        for by, values in colours.items():
            plot.add_classes(by, values)
        plot.add_gene_values(genes.of(plot.shown))
        write_page([plot], folder / map_file(name), f"{name}: cells")
        written.append(map_file(name))
    return written


def map_file(name: str) -> str:
    """Return the file name of a model's map to zoom, hover and colour."""
    return "umap_" + _word(name) + ".html"


def _word(text: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in text)


def umap_file(name: str, by: str) -> str:
    """Return the file name of a model's UMAP with one colouring."""
    return f"umap_{_word(name)}_{_word(by)}.png"


__all__ = ["MapGenes", "draw_umap", "map_file", "scores_plot", "umap_file"]
