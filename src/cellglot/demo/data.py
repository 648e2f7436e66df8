"""The demo's cells: tokens, labels, splits, and what its parts on single models share."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from anndata import AnnData
from matplotlib.figure import Figure
from rich.console import Console
from scipy.sparse import vstack

from cellglot.evaluation import plots
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
    """

    source: Path
    cells: Cells
    labels: str
    output: Path
    quick: bool
    seed: int
    console: Console
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.corpora: dict[str, Corpus] = {}

    def step(self, text: str) -> None:
        """Print the name of the next step."""
        self.console.print(f"\n[bold blue]{time.monotonic() - self.started:4.0f} s  {text}[/]")

    def tokenize(self, tokenizer: str, **options: Any) -> Corpus:
        """Tokenize the cells, a fifth held out; the draw is the same for every tokenizer."""
        corpus = tokenize_corpus(
            [self.source],
            self.output / f"corpus-{tokenizer}",
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
        self.corpora[tokenizer] = corpus
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

    def umap(self, model_class: Any, folder: Path, corpus: Corpus, what: str) -> Figure:
        """Embed all cells by a saved model, keep the embedding, and draw it."""
        embedding = self.embed(model_class, folder, corpus)
        name = what.lower().replace(", ", "-").replace(" ", "-")
        with atomic(self.output / f"embedding-{name}.npy") as temporary:
            np.save(temporary, embedding)
        coordinates = plots.umap_coordinates(embedding, self.seed)
        labels = [c if c is not None else "(no label)" for c in self.classes]
        title = f"{what}: cell embeddings by label (held-out cells are ringed)"
        figure = plots.embedding_plot(coordinates, labels, title, self.splits == "validation")
        plots.save_figure(figure, str(self.output / f"umap-{name}.png"))
        return figure

    def classify(self, model_class: Any, folder: Path, corpus: Corpus) -> np.ndarray:
        """Return the classes of the held-out cells by a saved classifier."""
        model, tokenizer = model_class.from_pretrained(folder), type(corpus.tokenizer()).from_pretrained(folder)
        logits = run_model(model, tokenizer, self.cells, "logits", progress=False)
        names = [model.config.id2label[i] for i in range(model.config.num_labels)]
        return class_names(logits, names)[self.test]


def prepare(cells: Path | None, labels: str, output: Path, seed: int, console: Console) -> Path:
    """Return the file of cells: those that ship with scanpy, or at most `MOST_CELLS` of the caller's."""
    if cells is None:
        import scanpy

        path = output / "pbmc68k_reduced.h5ad"
        with atomic(path) as temporary:
            scanpy.datasets.pbmc68k_reduced().write_h5ad(temporary)
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
