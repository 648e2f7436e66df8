"""The demo's cells: tokens, labels, splits, and what its parts on single models share."""

import importlib.util
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from anndata import AnnData
from rich.console import Console
from scipy.sparse import vstack

from cellglot.evaluation import plots
from cellglot.evaluation.cell_plot.plot import CellPlot
from cellglot.evaluation.drawing import drawing
from cellglot.evaluation.embedding import class_names, embed_cells, run_model
from cellglot.outputs import atomic
from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.tokenization.corpus.tokenize import tokenize_corpus
from cellglot.tokenization.reading.cells import Cells, read_cells
from cellglot.tokenization.reading.labels import read_labels


MOST_CELLS = 5_000
LEAST_CELLS = 100  # fewer are too few to train and to test on


@dataclass
class DemoData:
    """Cells of the demo, with labels and a draw of held-out cells that all models share.

    Parameters
    ----------
    labels
        Column of obs with the classes.
    quick
        Train a tenth of the steps.
    started
        `time.monotonic` at the start of the demo.
    again
        Words of the command that runs this demo again.
    """

    source: Path
    cells: Cells
    labels: str
    output: Path
    quick: bool
    seed: int
    console: Console
    started: float = field(default_factory=time.monotonic)
    again: Sequence[str] = ("cellglot", "demo")

    def __post_init__(self) -> None:
        self.corpora: dict[str, Corpus] = {}

    def step(self, text: str) -> None:
        """Print the name of the next step."""
        self.console.print(f"\n[bold blue]{time.monotonic() - self.started:4.0f} s  {text}[/]")

    def tokenize(self, tokenizer: Any, name: str = "", **options: Any) -> Corpus:
        """Tokenize the cells, a fifth held out; the draw is the same for every tokenizer.

        Parameters
        ----------
        tokenizer
            Kind of a new tokenizer, or the tokenizer of a model.
        name
            End of the folder's name; by default the kind.
        """
        corpus = tokenize_corpus(
            [self.source],
            self.output / f"corpus-{name or tokenizer}",
            tokenizer=tokenizer,
            tokenizer_options=options,
            rename={self.labels: "cell_type"},
            validation_fraction=0.2,
            seed=self.seed,
            processes=1,
            overwrite=True,
        )
        if not self.corpora:
            self.console.print(corpus.summary())
            self._read_labels(corpus)
        self.corpora[name or tokenizer] = corpus
        return corpus

    def _read_labels(self, corpus: Corpus) -> None:
        """Read split and class of every cell, in the order of the file."""
        columns = ["cell_index", "split", "cell_type"]
        shards = [shard for split in ("train", "validation", "test") for shard in corpus.shards(split)]
        table = pd.concat([pq.read_table(shard, columns=columns).to_pandas() for shard in shards])
        table = table.sort_values("cell_index")
        self.splits = table["split"].astype(str).to_numpy(dtype=object)
        self.classes = read_labels(table["cell_type"]).texts

    @property
    def labelled(self) -> np.ndarray:
        """Whether each cell has a class."""
        return np.array([c is not None for c in self.classes])

    @property
    def train(self) -> np.ndarray:
        """Whether each cell is for training and has a class."""
        return (self.splits == "train") & self.labelled

    @property
    def test(self) -> np.ndarray:
        """Whether each cell is held out and has a class."""
        return (self.splits == "validation") & self.labelled

    @property
    def truth(self) -> np.ndarray:
        """Classes of the held-out cells."""
        return self.classes[self.test].astype(str)

    def overrides(self, corpus: Corpus, seen: int, most: int) -> list[str]:
        """Return settings under which a training sees about `seen` cells in at most `most` epochs."""
        epochs = int(np.clip(round(seen / corpus.n_cells("train")), 2, most))
        epochs = max(2, epochs // 10) if self.quick else epochs
        every = max(1, epochs // 20)
        return [
            f"trainer.num_train_epochs={epochs}",
            f"trainer.seed={self.seed}",
            f"trainer.eval_steps={every / epochs}",
            "trainer.eval_strategy=steps",
            "trainer.save_strategy=no",
            f"trainer.logging_steps={every / epochs}",
        ]

    def embed(self, model_class: Any, folder: Path, corpus: Corpus) -> np.ndarray:
        """Embed all cells by a saved model."""
        tokenizer = type(corpus.tokenizer()).from_pretrained(folder)
        return embed_cells(model_class.from_pretrained(folder), tokenizer, self.cells, progress=False)

    def umap(self, model_class: Any, folder: Path, corpus: Corpus, what: str) -> list[CellPlot]:
        """Embed all cells by a saved model, keep the embedding, and draw it; empty if that fails."""
        embedding = self.embed(model_class, folder, corpus)
        name = what.lower().replace(", ", "-").replace(" ", "-")
        with atomic(self.output / f"embedding-{name}.npy") as temporary:
            np.save(temporary, embedding)
        title = f"{what}: cell embeddings by label"
        with drawing(f"the UMAP of {what}", self.again):
            coordinates = plots.umap_coordinates(embedding, self.seed)
            held_out = self.splits == "validation"
            figure = plots.embedding_plot(
                coordinates, self.classes.tolist(), f"{title} (held-out cells are ringed)", held_out, "(no label)"
            )
            plots.save_figure(figure, str(self.output / f"umap-{name}.png"))
            plot = CellPlot(coordinates, self.cells.names(), title)
            plot.add_classes("label", self.classes, "(no label)")
            plot.add_classes("split", np.where(held_out, "held out", "training"))
            plot.add_obs(self.cells, without=[self.labels])
            plot.add_genes(self.cells, self.classes)
            return [plot]
        return []

    def classify(self, model_class: Any, folder: Path, corpus: Corpus) -> np.ndarray:
        """Return the classes of the held-out cells by a saved classifier."""
        model, tokenizer = model_class.from_pretrained(folder), type(corpus.tokenizer()).from_pretrained(folder)
        logits = run_model(model, tokenizer, self.cells, "logits", progress=False)
        names = [model.config.id2label[i] for i in range(model.config.num_labels)]
        return class_names(logits, names)[self.test]


def prepare(cells: Path | None, labels: str, output: Path, seed: int, console: Console) -> Path:
    """Return the file of cells: those that ship with scanpy, or at most `MOST_CELLS` of the caller's."""
    if cells is None:
        path = output / "pbmc68k_reduced.h5ad"
        with atomic(path) as temporary:
            shutil.copyfile(_shipped_cells(), temporary)
        return path
    with read_cells(cells) as opened:
        if labels not in opened.obs.names:
            raise ValueError(f"{cells} has no column {labels!r} in obs: {', '.join(opened.obs.names)}")
        classes = pd.Series(opened.obs.column(labels, 0, opened.n_cells)).dropna()
        if len(classes) < LEAST_CELLS or classes.nunique() < 2:
            raise ValueError(
                f"{cells} has {len(classes):,} cells with a {labels!r}, of {classes.nunique():,} classes: the demo "
                f"takes {LEAST_CELLS:,} cells or more, of two classes or more"
            )
        if opened.n_cells <= MOST_CELLS:
            return cells
        chosen = np.sort(np.random.default_rng(seed).choice(opened.n_cells, MOST_CELLS, replace=False))
        console.print(f"using {MOST_CELLS:,} of {opened.n_cells:,} cells, drawn at random")
        return _subset(opened, labels, chosen, output / "cells.h5ad")


def _shipped_cells() -> Path:
    """Return the file of 700 blood cells in the installed scanpy, which is not imported."""
    found = importlib.util.find_spec("scanpy")
    places = [] if found is None else list(found.submodule_search_locations or [])
    path = Path(*places[:1], "datasets", "10x_pbmc68k_reduced.h5ad")
    if not path.is_file():
        raise ValueError("this installation of scanpy lacks its 700 blood cells: name a file by --cells and --labels")
    return path


def _subset(cells: Cells, labels: str, chosen: np.ndarray, path: Path) -> Path:
    parts, obs, start = [], [], 0
    for chunk in cells.chunks():
        mine = chosen[(chosen >= start) & (chosen < start + chunk.shape[0])] - start
        if len(mine):
            parts.append(chunk[mine])
            table = cells.metadata(start, start + chunk.shape[0])
            table[labels] = cells.obs.column(labels, start, start + chunk.shape[0])
            obs.append(table.iloc[mine])
        start += chunk.shape[0]
    frame = pd.concat(obs)
    frame.index = frame.index.astype(str)
    with atomic(path) as temporary:
        AnnData(vstack(parts, format="csr"), obs=frame, var=cells.var).write_h5ad(temporary)
    return path


def series(log: Sequence[dict[str, float]], name: str) -> tuple[list[float], list[float]]:
    """Return epochs and values of one entry of a training's log."""
    points = {entry["epoch"]: entry[name] for entry in log if name in entry}
    return list(points), list(points.values())


__all__ = ["DemoData", "prepare", "series"]
