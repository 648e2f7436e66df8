"""The full demo: all three models pretrained from the start on a file of real cells, with a report."""

import functools
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import transformers

import cellglot
from cellglot.demo.demo import Demo, score_columns
from cellglot.demo.exceiver import ExceiverDemo
from cellglot.demo.langcell import LangCellDemo
from cellglot.demo.report import Picture, Section, Table, draw, write_report
from cellglot.demo.sccello import ScCelloDemo
from cellglot.demo.sharing import AdapterDemo, SharingDemo
from cellglot.evaluation import plots
from cellglot.evaluation.benchmark.baselines import log_counts, logistic_regression, majority
from cellglot.evaluation.embedding import default_device
from cellglot.evaluation.scores.classification import classification_scores
from cellglot.model_cards.checks.clean_process import compare, visit_as_stranger, visit_here
from cellglot.tokenization.reading.cells import Cells


CLEAN_CELLS = 16
CLEAN_PROCESSES = 2  # at a time
MOST_DIFFERENCE = 1e-4


class FullDemo(Demo):
    """Pretrain, fine-tune, evaluate, publish and load again all three models; parameters as for `Demo`.

    Raises
    ------
    RuntimeError
        If a saved model computes other numbers in a clean process.
    """

    def steps(self, cells: Cells) -> Path:
        """Run every step, and return the path of the report."""
        data = self.data
        data.step("audit: are these raw counts, and where")
        data.console.print(cells.summary())
        data.step("vocabularies and tokens")
        self.parts: list[Any] = [ExceiverDemo(data), ScCelloDemo(data), LangCellDemo(data)]
        self.predictions = {f"{part.name}, pretrained and fine-tuned": part.run() for part in self.parts}
        tuned = self.parts[1]
        self.adapter = AdapterDemo(data, tuned.name, tuned.folder, tuned.corpus)
        self.predictions[self.adapter.name] = self.adapter.run()
        data.step("baselines")
        self._baselines(cells)
        data.step("loading the saved folders in clean processes, without cellglot")
        self.clean = self._clean_process(cells)
        models = {part.name: part.folder for part in self.parts}
        self.sharing = SharingDemo(data, models, self.publisher)
        self.sharing.run()
        data.step("report")
        return self._report()

    def written(self) -> list[tuple[str, str]]:
        """Return names in the output folder and what they are."""
        folders = ", ".join(f"{part.folder.name}/" for part in self.parts)
        return [
            ("report.html", "every number of this run, with maps of the cells: open it first"),
            (folders, "the pretrained models; those with -classifier know the labels"),
            (f"{self.adapter.folder.name}/", "an adapter on scCello"),
            ("evaluation/", "models beside baselines, with intervals: evaluation.md"),
            ("published/", "the models as they would be on the Hub, each with its card README.md"),
        ]

    def next_commands(self) -> list[str]:
        """Return what to type next."""
        return [
            f"cellglot annotate {self.output / 'exceiver-classifier'} cells.h5ad -o annotated.h5ad --umap cells.html",
            f"cellglot publish {self.output / 'exceiver'} OWNER/NAME",
        ]

    def _baselines(self, cells: Cells) -> None:
        data = self.data
        labels = np.where(data.labelled, data.classes, "").astype(str)
        for baseline in (
            logistic_regression(log_counts(cells), labels, data.train, data.test),
            majority(labels, data.train, data.test),
        ):
            self.predictions[baseline.name] = baseline.predicted
        self.scores = {n: classification_scores(data.truth, p, seed=self.seed) for n, p in self.predictions.items()}
        for name, score in self.scores.items():
            data.console.print(f"{name}: accuracy {score['accuracy'][0]:.3f}, macro F1 {score['macro_f1'][0]:.3f}")

    def _clean_process(self, cells: Cells) -> list[list[str]]:
        """Run every saved folder here and in a process without cellglot; a row of the report for each."""
        chosen = np.flatnonzero(self.data.splits == "validation")[:CLEAN_CELLS]
        texts = ["a blood cell"] * len(chosen)
        examples = [_counts_by_gene(cells, int(number)) for number in chosen]
        folders = [folder for part in self.parts for folder in (part.folder, part.classifier_folder)]
        jobs = [
            {"kind": "model", "folder": str(folder.resolve()), "cells": examples, "texts": texts} for folder in folders
        ]
        rows = []
        with ThreadPoolExecutor(min(CLEAN_PROCESSES, os.cpu_count() or 1)) as processes:
            for job, folder, theirs in zip(jobs, folders, processes.map(visit_as_stranger, jobs), strict=True):
                n_numbers = compare(visit_here(job), theirs, MOST_DIFFERENCE)
                classes = sorted({made.split(".")[-1] for made in theirs.loaded.values()})
                rows.append([folder.name, ", ".join(classes), f"{n_numbers:,}"])
        self.data.console.print(f"same numbers in clean processes for {len(chosen)} cells and {len(folders)} models")
        return rows

    def _report(self) -> Path:
        data, name = self.data, self.data.source.name
        report = self.parts[0].corpus.manifest["files"][0]["report"]
        command = self.command()
        path = self.output / "report.html"
        cards = [
            (f"{len(data.splits):,}", f"cells, {(data.splits == 'validation').sum():,} held out"),
            (f"{report['matched']:,}", "genes with counts in training cells: the vocabulary"),
        ]
        for part in self.parts:
            cards += part.cards()
        cards += [
            (f"{score['accuracy'][0]:.1%}", f"accuracy: {method.split(',')[0]}")
            for method, score in self.scores.items()
            if not method.startswith(("most frequent", self.adapter.name))
        ]
        sections = [self._audit(report)]
        for part in self.parts:
            sections += part.sections()
        write_report(
            path,
            name,
            f"{name}: audited, tokenized, learned from, classified, saved and loaded again in "
            f"{time.monotonic() - data.started:.0f} seconds on {default_device()}. Every number on this page was "
            f"computed by this run of {command}.",
            cards,
            [
                *sections,
                self.adapter.section(),
                self._classification(),
                *self.sharing.sections(),
                self._strangers(),
            ],
            f"cellglot {cellglot.__version__}, seed {self.seed}; made by `{command}`"
            + (" (a tenth of the training)." if self.quick else "."),
        )
        return path

    def _audit(self, report: dict[str, Any]) -> Section:
        losses = dict(report["largest_losses"])
        figures: list[Picture] = []
        paragraphs: list[str] = []
        if losses:
            figures = draw(
                "Largest losses in counts",
                lambda: plots.bars_plot(losses, "Genes lost with the most counts", "counts"),
                self.data.again,
            )
        else:
            paragraphs = ["No counts were lost: every expressed gene is in the vocabulary."]
        table = Table(["genes", "number"], _gene_rows(report))
        return Section("Audit and gene report", paragraphs, self.data.cells.summary(), table, figures)

    def _classification(self) -> Section:
        data = self.data
        figures: list[Picture] = []
        best = list(self.scores.values())
        linear = self.scores["logistic regression on log counts"]["accuracy"][0]
        behind = [p.name for p, s in zip(self.parts, best, strict=False) if s["accuracy"][0] <= linear]
        for part in self.parts:
            predicted = self.predictions[f"{part.name}, pretrained and fine-tuned"]
            title = f"{part.name} on held-out cells"
            make = functools.partial(plots.confusion_plot, data.truth.tolist(), predicted.tolist(), title)
            path = self.output / f"confusion-{part.name.lower()}.png"
            figures += draw(f"Confusion matrix of {part.name}", make, data.again, path)
        paragraph = (
            f"Trained on {int(data.train.sum()):,} cells, tested on {len(data.truth):,} cells held out by "
            f"{self.parts[0].corpus.manifest['split']['by']} before anything was learned, gene statistics included. "
            "Intervals are from 1,000 bootstrap samples of these cells."
        )
        if behind:
            listed = " and ".join([", ".join(behind[:-1]), behind[-1]] if len(behind) > 1 else behind)
            paragraph += f" {listed} {'do' if len(behind) > 1 else 'does'} not beat logistic regression."
        header = ["method", "accuracy", "95% interval", "macro F1", "95% interval"]
        rows = [[name, *score_columns(score)] for name, score in self.scores.items()]
        return Section("Classification of held-out cells", [paragraph], table=Table(header, rows), figures=figures)

    def _strangers(self) -> Section:
        paragraph = (
            "New processes without cellglot loaded these folders by Auto classes, from the code that they contain "
            f"(transformers {transformers.__version__}), and computed the same numbers."
        )
        header = ["folder", "classes", "numbers compared"]
        loading = _LOADING.format(folder=self.output / "exceiver-classifier")
        return Section("Saved, and loaded without cellglot", [paragraph], loading, Table(header, self.clean))


_LOADING = """from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{folder}", trust_remote_code=True)
model = AutoModelForSequenceClassification.from_pretrained("{folder}", trust_remote_code=True)
logits = model(**tokenizer(adata, return_tensors="pt")).logits
labels = [model.config.id2label[i] for i in logits.argmax(dim=1).tolist()]"""


def _gene_rows(report: dict[str, Any]) -> list[list[str]]:
    rows = [["in the file", f"{report['genes']:,}"]]
    rows += [[f"matched by {rule.replace('_', ' ')}", f"{n:,}"] for rule, n in report["matched_by_rule"].items() if n]
    rows += [
        [label, f"{report[key]:,}"]
        for label, key in (
            ("not in the vocabulary (no counts in training cells, or unknown)", "unknown"),
            ("ambiguous names, left out", "ambiguous"),
            ("duplicates, summed", "summed"),
            ("cells without a known gene", "cells_without_genes"),
        )
    ]
    return rows


def _counts_by_gene(cells: Cells, number: int) -> dict[str, float]:
    row = cells.counts.rows(number, number + 1)
    return {str(cells.counts.index[gene]): float(n) for gene, n in zip(row.indices, row.data, strict=True)}


__all__ = ["FullDemo"]
