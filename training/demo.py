"""The demo: from a file of real cells to a Hub-ready model, with a report."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pyarrow.parquet as pq
from rich.console import Console

import cellglot
from cellglot.evaluation import plots
from cellglot.evaluation.baselines import log_counts, logistic_regression, majority
from cellglot.evaluation.classification import classification_scores
from cellglot.evaluation.clean_process import run_in_clean_process
from cellglot.evaluation.embedding import embed_cells, run_model
from cellglot.modeling.modeling_exceiver import ExceiverForSequenceClassification, ExceiverModel
from cellglot.tokenization.cells import Cells, read_cells
from cellglot.tokenization.corpus import Corpus, tokenize_corpus
from cellglot.training.config import configs_folder, load_config
from cellglot.training.finetune import finetune
from cellglot.training.metrics import expressed_gene_mean_scores
from cellglot.training.pretrain import pretrain
from cellglot.training.run import RUN_FILE


MOST_CELLS = 5_000
PRETRAINING_CELLS, FINETUNING_CELLS = 34_000, 22_000  # cells seen in all, over epochs


@dataclass
class Demo:
    """One run of the demo.

    Parameters
    ----------
    cells
        File of cells; the 700 blood cells that scanpy ships by default.
    labels
        Column of obs that holds the classes.
    output
        Folder for everything the demo writes.
    quick
        A tenth of the training, to see that everything works.
    seed
        Of everything drawn.
    """

    cells: Path | None
    labels: str
    output: Path
    quick: bool = False
    seed: int = 0

    def run(self) -> Path:
        """Run every step; give the path of the report."""
        self.console = Console(highlight=False)
        self.started = time.monotonic()
        self.output.mkdir(parents=True, exist_ok=True)
        self._step("1/7 audit: are these raw counts, and where")
        self.source = self._prepare()
        with read_cells(self.source, rename={self.labels: "cell_type"}) as cells:
            self.audit = cells.summary()
            self.console.print(self.audit)
            self._step("2/7 vocabulary and tokens")
            self.corpus = self._tokenize()
            self.splits, self.classes = self._cells_of(self.corpus)
            self._step("3/7 pretraining a small Exceiver on masked expression")
            self.pretraining = self._pretrain()
            self._step("4/7 embeddings")
            self.pretrained_umap = self._umap(cells, self.output / "exceiver", "pretrained")
            self._step("5/7 fine-tuning for classification, beside logistic regression on log counts")
            self.finetuning = self._finetune()
            self.finetuned_umap = self._umap(cells, self.output / "exceiver-classifier", "fine-tuned")
            self.scores, predicted = self._classify(cells)
            self._step("6/7 loading the saved folder in a clean process, without cellglot")
            self.clean = self._clean_process(cells)
        self._step("7/7 report")
        report = self._report(predicted)
        self.console.print(f"[bold]{report}[/] after {time.monotonic() - self.started:.0f} seconds")
        return report

    def _step(self, text: str) -> None:
        self.console.print(f"\n[bold blue]{text}[/]")

    # ---------------------------------------------------------------- steps

    def _prepare(self) -> Path:
        """Give the file to work on: scanpy's cells, or at most `MOST_CELLS` of the caller's."""
        if self.cells is None:
            import scanpy

            path = self.output / "pbmc68k_reduced.h5ad"
            scanpy.datasets.pbmc68k_reduced().write_h5ad(path)
            return path
        with read_cells(self.cells) as cells:
            if self.labels not in cells.obs.names:
                raise ValueError(f"{self.cells} has no column {self.labels!r} in obs: {', '.join(cells.obs.names)}")
            if cells.n_cells <= MOST_CELLS:
                return self.cells
            chosen = np.sort(np.random.default_rng(self.seed).choice(cells.n_cells, MOST_CELLS, replace=False))
            self.console.print(f"taking {MOST_CELLS:,} of {cells.n_cells:,} cells at random: this is a demo")
            return self._subset(cells, chosen)

    def _subset(self, cells: Cells, chosen: np.ndarray) -> Path:
        from anndata import AnnData
        from scipy.sparse import vstack

        parts, obs, start = [], [], 0
        for chunk in cells.chunks():
            mine = chosen[(chosen >= start) & (chosen < start + chunk.shape[0])] - start
            if len(mine):
                parts.append(chunk[mine])
                table = cells.metadata(start, start + chunk.shape[0])
                table[self.labels] = cells.obs.column(self.labels, start, start + chunk.shape[0])
                obs.append(table.iloc[mine])
            start += chunk.shape[0]
        import pandas as pd

        frame = pd.concat(obs)
        frame.index = frame.index.astype(str)
        path = self.output / "cells.h5ad"
        AnnData(vstack(parts, format="csr"), obs=frame, var=cells.var).write_h5ad(path)
        return path

    def _tokenize(self) -> Corpus:
        corpus = tokenize_corpus(
            [self.source],
            self.output / "corpus",
            tokenizer="exceiver",
            rename={self.labels: "cell_type"},
            validation_fraction=0.2,
            seed=self.seed,
            processes=1,
            overwrite=True,
        )
        self.console.print(corpus.summary())
        return corpus

    @staticmethod
    def _cells_of(corpus: Corpus) -> tuple[np.ndarray, np.ndarray]:
        """Give split and class of every cell, in the order of the file."""
        columns = ["cell_index", "split", "cell_type"]
        rows = [
            row
            for split in ("train", "validation", "test")
            for shard in corpus.shards(split)
            for row in zip(*(pq.read_table(shard, columns=columns)[c].to_pylist() for c in columns), strict=True)
        ]
        rows.sort(key=lambda row: row[0])
        return np.array([r[1] for r in rows], dtype=object), np.array([r[2] for r in rows], dtype=object)

    def _overrides(self, seen: int, most: int) -> list[str]:
        epochs = int(np.clip(round(seen / self.corpus.n_cells("train")), 2, most))
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

    def _pretrain(self) -> dict[str, Any]:
        config = load_config(configs_folder() / "exceiver_small.yaml", self._overrides(PRETRAINING_CELLS, 60))
        pretrain(config, self.corpus, self.output / "exceiver", resume=False)
        record = json.loads((self.output / "exceiver" / RUN_FILE).read_text())
        record["gene_mean"] = expressed_gene_mean_scores(self.corpus)
        return record

    def _finetune(self) -> dict[str, Any]:
        config = load_config(configs_folder() / "exceiver_finetune.yaml", self._overrides(FINETUNING_CELLS, 40))
        folder = self.output / "exceiver-classifier"
        finetune(config, self.output / "exceiver", self.corpus, folder, resume=False)
        return json.loads((folder / RUN_FILE).read_text())

    def _umap(self, cells: Cells, folder: Path, what: str) -> str:
        tokenizer = self.corpus.tokenizer()
        embedding = embed_cells(ExceiverModel.from_pretrained(folder), tokenizer, cells, progress=False)
        np.save(self.output / f"embedding-{what}.npy", embedding)
        coordinates = plots.umap_coordinates(embedding, self.seed)
        labels = [str(c) if c is not None else "(no label)" for c in self.classes]
        title = f"Cell embeddings of the {what} model, by label (held-out cells are ringed)"
        figure = plots.embedding_plot(coordinates, labels, title, self.splits == "validation")
        plots.save_figure(figure, str(self.output / f"umap-{what}.png"))
        return plots.data_uri(figure)

    def _classify(self, cells: Cells) -> tuple[dict[str, dict], tuple[np.ndarray, np.ndarray]]:
        labelled = np.array([c is not None for c in self.classes])
        train = (self.splits == "train") & labelled
        test = (self.splits == "validation") & labelled
        truth = self.classes[test].astype(str)
        model = ExceiverForSequenceClassification.from_pretrained(self.output / "exceiver-classifier")
        logits = run_model(model, self.corpus.tokenizer(), cells, "logits", progress=False)
        names = np.array([model.config.id2label[i] for i in range(model.config.num_labels)])
        predicted = names[logits.argmax(axis=1)][test]
        labels = np.where(labelled, self.classes, "").astype(str)
        results = {"Exceiver, pretrained and fine-tuned": predicted}
        for baseline in (
            logistic_regression(log_counts(cells), labels, train, test),
            majority(labels, train, test),
        ):
            results[baseline.name] = baseline.predicted
        scores = {name: classification_scores(truth, p, seed=self.seed) for name, p in results.items()}
        for name, score in scores.items():
            self.console.print(f"{name}: accuracy {score['accuracy'][0]:.3f}, macro F1 {score['macro_f1'][0]:.3f}")
        return scores, (truth, predicted)

    def _clean_process(self, cells: Cells) -> dict[str, Any]:
        chosen = np.flatnonzero(self.splits == "validation")[:16]
        some = np.vstack([_dense_row(cells, int(c)) for c in chosen])
        genes = [str(g) for g in cells.counts.index]
        tokenizer = self.corpus.tokenizer()
        worst = 0.0
        for auto_class, folder, model_class, field in (
            ("AutoModel", "exceiver", ExceiverModel, "pooler_output"),
            (
                "AutoModelForSequenceClassification",
                "exceiver-classifier",
                ExceiverForSequenceClassification,
                "logits",
            ),
        ):
            values, facts = run_in_clean_process(self.output / folder, auto_class, field, some, genes)
            model = model_class.from_pretrained(self.output / folder)
            here = run_model(model, tokenizer, some, field, genes=genes, progress=False, device="cpu")
            worst = max(worst, float(np.abs(values - here).max()))
        if worst > 1e-4:
            raise RuntimeError(f"the clean process gives other numbers: largest difference {worst:.2g}")
        self.console.print(f"same numbers in a clean process for {len(chosen)} cells (largest difference {worst:.1g})")
        return facts | {"difference": worst, "cells": len(chosen)}

    # ---------------------------------------------------------------- report

    def _report(self, predicted: tuple[np.ndarray, np.ndarray]) -> Path:
        report = self.corpus.manifest["files"][0]["report"]
        metrics = self.pretraining["metrics"]
        gene_mean = self.pretraining["gene_mean"]
        best = self.scores["Exceiver, pretrained and fine-tuned"]
        linear = self.scores["logistic regression on log counts"]
        figures = self._curves(gene_mean)
        losses = dict(report["largest_losses"])
        confusion = plots.confusion_plot(predicted[0].tolist(), predicted[1].tolist(), "Exceiver on held-out cells")
        plots.save_figure(confusion, str(self.output / "confusion.png"))
        name = Path(self.source).name
        command = "cellglot demo" if self.cells is None else f"cellglot demo --cells {name} --labels {self.labels}"
        page = _template().render(
            name=name,
            lead=f"{name}: audited, tokenized, learned from, classified, saved and loaded again in "
            f"{time.monotonic() - self.started:.0f} seconds on {self.pretraining['device']}. Every number on this "
            f"page was computed by this run of `{command}`.",
            cards=[
                {
                    "value": f"{len(self.splits):,}",
                    "label": f"cells, {(self.splits == 'validation').sum():,} held out",
                },
                {"value": f"{report['coverage']:.1%}", "label": "of counts covered by the vocabulary"},
                {"value": f"{metrics['eval_explained_variance']:.2f}", "label": "explained variance of masked genes"},
                {"value": f"{best['accuracy'][0]:.1%}", "label": "accuracy of Exceiver on held-out cells"},
                {"value": f"{linear['accuracy'][0]:.1%}", "label": "of logistic regression on log counts"},
            ],
            audit=self.audit,
            genes=_gene_rows(report),
            losses=plots.data_uri(plots.bars_plot(losses, "Genes lost with the most counts", "counts"), "svg")
            if losses
            else None,
            pretraining=f"{self.pretraining['num_masked']} expressed genes of each cell are hidden and predicted from "
            f"the others. On held-out cells the mean squared error is {metrics['eval_masked_mse']:.3f} and the "
            f"explained variance {metrics['eval_explained_variance']:.3f}; guessing each gene's mean among training "
            f"cells that express it gives {gene_mean['mse']:.3f} and {gene_mean['explained_variance']:.3f}.",
            embedding="The mean of the model's latents is a cell's embedding. The upper picture is that of the model "
            "pretrained without any label; the lower one after fine-tuning on the labels of cells without a ring.",
            umap_pretrained=self.pretrained_umap,
            umap_finetuned=self.finetuned_umap,
            classification=f"Trained on {self.finetuning['training_cells']:,} cells, tested on "
            f"{len(predicted[0]):,} cells held out by {self.corpus.manifest['split']['by']} before anything was "
            f"learned, gene statistics included. Intervals are from 1,000 bootstrap samples of these cells."
            + (" Exceiver does not beat logistic regression here." if best["accuracy"] <= linear["accuracy"] else ""),
            methods=[_method_row(n, s) for n, s in self.scores.items()],
            confusion=plots.data_uri(confusion, "svg"),
            clean=f"A new process in which cellglot cannot be imported loaded both folders by Auto classes "
            f"({self.clean['tokenizer']} and {self.clean['model']}, from the code beside the weights, transformers "
            f"{self.clean['transformers']}) and gave the same numbers for {self.clean['cells']} cells: the largest "
            f"difference is {self.clean['difference']:.1g}.",
            loading=_LOADING.format(folder=self.output / "exceiver-classifier"),
            footer=f"cellglot {cellglot.__version__}, seed {self.seed}; made by `{command}`"
            + (" --quick (a tenth of the training)." if self.quick else "."),
            **figures,
        )
        path = self.output / "report.html"
        path.write_text(page, encoding="utf-8")
        return path

    def _curves(self, gene_mean: dict[str, float]) -> dict[str, str]:
        pre, fine = self.pretraining["log"], self.finetuning["log"]
        return {
            "loss_curve": plots.data_uri(
                plots.curves_plot(
                    {"training": _series(pre, "loss"), "held-out": _series(pre, "eval_masked_mse")},
                    "Masked expression",
                    "mean squared error",
                    {"mean of the gene": gene_mean["mse"]},
                ),
                "svg",
            ),
            "variance_curve": plots.data_uri(
                plots.curves_plot(
                    {"held-out": _series(pre, "eval_explained_variance")},
                    "Masked expression of held-out cells",
                    "explained variance",
                    {"mean of the gene": gene_mean["explained_variance"]},
                ),
                "svg",
            ),
            "finetune_curve": plots.data_uri(
                plots.curves_plot(
                    {
                        "training, classification": _series(fine, "classification_loss"),
                        "held-out, classification": _series(fine, "eval_loss"),
                        "training, masked expression": _series(fine, "expression_loss"),
                    },
                    "Fine-tuning",
                    "loss",
                ),
                "svg",
            ),
        }


_LOADING = """from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{folder}", trust_remote_code=True)
model = AutoModelForSequenceClassification.from_pretrained("{folder}", trust_remote_code=True)
logits = model(**tokenizer(adata, return_tensors="pt")).logits
labels = [model.config.id2label[i] for i in logits.argmax(dim=1).tolist()]"""


def _template() -> jinja2.Template:
    loader = jinja2.PackageLoader("cellglot.evaluation", "templates")
    return jinja2.Environment(loader=loader, autoescape=True).get_template("demo_report.html.jinja")


def _series(log: Sequence[dict[str, float]], name: str) -> tuple[list[float], list[float]]:
    points = {entry["epoch"]: entry[name] for entry in log if name in entry}
    return list(points), list(points.values())


def _gene_rows(report: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [("in the file", f"{report['genes']:,}")]
    rows += [(f"matched by {rule.replace('_', ' ')}", f"{n:,}") for rule, n in report["matched_by_rule"].items() if n]
    rows += [
        (label, f"{report[key]:,}")
        for label, key in (
            ("not in the vocabulary (no counts in training cells, or unknown)", "unknown"),
            ("ambiguous names, left out", "ambiguous"),
            ("duplicates, summed", "summed"),
            ("cells without a known gene", "cells_without_genes"),
        )
    ]
    return rows


def _method_row(name: str, score: dict[str, tuple[float, float, float]]) -> dict[str, str]:
    row = {"name": name}
    for metric, (value, low, high) in score.items():
        row[metric] = f"{value:.3f}"
        row[f"{metric}_interval"] = f"{low:.3f} to {high:.3f}"
    return row


def _dense_row(cells: Cells, number: int) -> np.ndarray:
    rows = cells.counts.rows(number, number + 1)
    dense = np.zeros(cells.n_genes)
    dense[rows.indices] = rows.data
    return dense


__all__ = ["Demo"]
