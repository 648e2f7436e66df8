"""The demo by default: label cells by a model that ships, learn the file's own labels, compare, publish, reload."""

from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

import cellglot
from cellglot.demo.demo import Demo, score_columns
from cellglot.demo.report import Section, Table, draw, write_report
from cellglot.demo.sharing import TASKS, AdapterDemo, SharingDemo
from cellglot.evaluation import plots
from cellglot.evaluation.annotation.cell_map import annotation_plot
from cellglot.evaluation.benchmark.baselines import log_counts, logistic_regression, majority, pca_neighbors
from cellglot.evaluation.cell_plot.plot import CellPlot
from cellglot.evaluation.drawing import drawing
from cellglot.evaluation.embedding import default_device
from cellglot.evaluation.output import KEY
from cellglot.evaluation.scores.classification import classification_scores
from cellglot.modeling.collection import default_model, model_path
from cellglot.modeling.loading import load_tokenizer
from cellglot.tokenization.reading.cells import Cells, read_cells
from cellglot.training.families.records import family_of


MOST_DIFFERENCE = 1e-4
SEEN = (
    "These cells are among those that {model} was trained on, so its scores here are higher than on cells that it has "
    "not seen, and the comparison with the baselines is not a fair one: it shows that the steps work. Its card has "
    "scores on laboratories that were left out of training (cellglot models)."
)


class ShortDemo(Demo):
    """Label cells by the default model of the collection, then adapt it to the labels of the file.

    Parameters as for `Demo`.

    Raises
    ------
    RuntimeError
        If the published adapter computes other numbers than the trained one.
    """

    def steps(self, cells: Cells) -> Path:
        """Run every step, and return the path of the report."""
        data, self.model = self.data, default_model()
        base = Path(model_path(self.model))
        data.step(f"labels for {len(cells):,} cells by {self.model}, a model that ships with cellglot")
        self._annotate()
        data.step(f"tokens for an adapter that learns the labels in {self.labels!r}; a fifth of the cells is held out")
        family = family_of(base)
        tokenizer = family.corpus_tokenizer(load_tokenizer(base, family.tokenizer_class))
        corpus = data.tokenize(tokenizer, self.model)
        self.adapter = AdapterDemo(data, self.model, base, corpus, family.name)
        predictions = {self.adapter.name: self.adapter.run()}
        data.step("baselines: logistic regression, neighbours in PCA, the most frequent class")
        predictions |= self._baselines(cells)
        self.scores = {n: classification_scores(data.truth, p, seed=self.seed) for n, p in predictions.items()}
        for name, score in self.scores.items():
            data.console.print(f"{name}: accuracy {score['accuracy'][0]:.3f}, macro F1 {score['macro_f1'][0]:.3f}")
        if self.cells is None:
            data.console.print(SEEN.format(model=self.model))
        tasks = TASKS[1:] if self.quick else TASKS
        self.sharing = SharingDemo(data, {self.adapter.name: self.adapter.folder}, self.publisher, [base], tasks)
        self.sharing.run()
        self.reloaded = self._reload()
        data.step("report")
        return self._report()

    def _annotate(self) -> None:
        """Write the annotated cells and their map, and keep what they say."""
        data, path = self.data, self.output / "annotated.h5ad"
        said = cellglot.annotate(data.source, self.model, output=path, plot=self.output / "cells.html", overwrite=True)
        self.said = "\n".join(line for line in str(said).split("\n") if not line.startswith(str(self.output)))
        data.console.print(self.said, markup=False)
        if (map_file := self.output / "cells.html").exists():
            data.console.print(f"the map of these cells is there already: open {map_file} in a browser", markup=False)
        with read_cells(path) as cells:
            names = [name for name in cells.obs.names if name.startswith(f"{KEY}_")]
            self.columns = {name: cells.obs.series(name) for name in names}
        with h5py.File(path) as file:
            drawn = file["obsm"].get(f"X_{KEY}_umap")
            self.where = None if drawn is None else drawn[()]

    def _baselines(self, cells: Cells) -> dict[str, np.ndarray]:
        data = self.data
        labels = np.where(data.labelled, data.classes, "").astype(str)
        counts = log_counts(cells)
        found = (
            logistic_regression(counts, labels, data.train, data.test),
            pca_neighbors(counts, labels, data.train, data.test, self.seed),
            majority(labels, data.train, data.test),
        )
        return {baseline.name: baseline.predicted for baseline in found}

    def _reload(self) -> float | None:
        """Load the published adapter by the name of its base; return the largest difference of its logits."""
        published = self.sharing.published.get(self.adapter.name)
        if published is None:
            return None
        self.data.step("the published adapter, loaded again")
        logits, _ = self.adapter.read(self.sharing.folder(self.adapter.folder))
        difference = float(np.nanmax(np.abs(logits - self.adapter.logits), initial=0.0))
        if not difference <= MOST_DIFFERENCE or logits.shape != self.adapter.logits.shape:
            raise RuntimeError(
                f"the published adapter computes other numbers than the trained one: they differ by {difference:.2g}"
            )
        self.data.console.print(
            f"all {logits.size:,} scores of {len(logits):,} cells are the same (largest difference {difference:.1g})"
        )
        return difference

    # ---------------------------------------------------------------- the report

    def _report(self) -> Path:
        data, name = self.data, self.data.source.name
        adapter, linear = list(self.scores.values())[:2]
        types = self.columns[f"{KEY}_cell_type"]
        assigned = int((types.notna() & (types != "unassigned")).sum())
        path = self.output / "report.html"
        write_report(
            path,
            name,
            f"{name}: labelled by {self.model}, which ships with cellglot; then an adapter learned its own labels, "
            f"was compared, published and loaded again, on {default_device()}. Every number on this page was computed "
            f"by this run of {self.command()}.",
            [
                (f"{len(types):,}", f"cells, {(data.splits == 'validation').sum():,} held out for the adapter"),
                (f"{assigned / len(types):.1%}", f"have a cell type by {self.model}"),
                (f"{adapter['accuracy'][0]:.1%}", f"accuracy of the adapter for {self.labels}"),
                (f"{linear['accuracy'][0]:.1%}", "accuracy of logistic regression"),
            ],
            [self._labels(), self._classification(), self.adapter.section(), *self.sharing.sections()],
            f"cellglot {cellglot.__version__}, seed {self.seed}; made by `{self.command()}`"
            + (" (a tenth of the training)." if self.quick else "."),
            "From a file of cells to labels, and to an adapter of your own",
        )
        return path

    def _labels(self) -> Section:
        """Return the part on the labels of the model that ships, with the map."""
        columns = {name.removeprefix(f"{KEY}_"): values for name, values in self.columns.items()}
        own = pd.Series(self.data.classes, index=columns["cell_type"].index, dtype=object)
        rows = []
        for label, number in own.value_counts().items():
            mine = (own == label).to_numpy()
            counts = columns["cell_type"][mine].astype(object).value_counts()
            if len(counts):
                rows.append([str(label), f"{number:,}", str(counts.index[0]), f"{counts.iloc[0] / number:.0%}"])
        header = [f"{self.labels} in the file", "cells", f"most frequent type by {self.model}", "share"]
        paragraphs = [
            "The map shows the same cells: choose what colours it, look closer with the buttons, or Ctrl and the "
            "wheel. The table compares the labels of the file with the types of the model."
        ]
        return Section(f"Cell types by {self.model}", paragraphs, self.said, Table(header, rows), maps=self._maps())

    def _maps(self) -> list[CellPlot]:
        data = self.data
        with drawing("the map of the cells", data.again):
            if self.where is None:
                raise ValueError("the UMAP was not computed")
            plot = annotation_plot(self.columns, data.cells, self.where, f"{data.source.name}: cells by {self.model}")
            plot.add_classes(f"{self.labels} by the adapter", self.adapter.predicted, "no prediction")
            plot.add_classes("split", np.where(data.splits == "validation", "held out", "training"))
            return [plot]
        return []

    def _classification(self) -> Section:
        data = self.data
        paragraphs = [
            f"Trained on {int(data.train.sum()):,} cells, tested on {len(data.truth):,} cells held out by "
            f"{self.adapter.corpus.manifest['split']['by']}. Intervals are from 1,000 bootstrap samples of them."
        ]
        if self.cells is None:
            paragraphs.append(SEEN.format(model=self.model))
        predicted = self.adapter.predicted[data.test].astype(str).tolist()
        figures = draw(
            "Confusion matrix of the adapter",
            partial(plots.confusion_plot, data.truth.tolist(), predicted, "The adapter on held-out cells"),
            data.again,
            self.output / f"confusion-{self.model}.png",
        )
        header = ["method", "accuracy", "95% interval", "macro F1", "95% interval"]
        rows = [[name, *score_columns(score)] for name, score in self.scores.items()]
        title = f"An adapter for {self.labels}, on held-out cells"
        return Section(title, paragraphs, table=Table(header, rows), figures=figures)

    # ---------------------------------------------------------------- the last lines

    def written(self) -> list[tuple[str, str]]:
        """Return names in the output folder and what they are."""
        folder = self.adapter.folder.name
        return [
            ("report.html", "a map of the cells, tables and scores of this run: open it first"),
            ("cells.html", "the map alone: zoom, hover, colour by type, confidence, novelty or a gene"),
            ("annotated.h5ad", "the cells with types, confidence, novelty and embeddings"),
            (f"{folder}/", f"the adapter that learned {self.labels}"),
            ("evaluation/", "models beside baselines, with intervals: evaluation.md"),
            (f"published/{folder}/", "the adapter as it would be on the Hub, with its card README.md"),
        ]

    def next_commands(self) -> list[str]:
        """Return what to type next."""
        return [
            "cellglot annotate cells.h5ad -o annotated.h5ad --umap cells.html",
            f"cellglot finetune {self.model} --cells cells.h5ad --labels COLUMN --method lora -o my-adapter",
            "cellglot demo --full    # pretrains all three models from the start",
        ]


__all__ = ["ShortDemo"]
