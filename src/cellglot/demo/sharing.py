"""The demo's part on sharing: an adapter, a table of all models and plain baselines, published folders."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cellglot.demo.data import DemoData
from cellglot.demo.report import Section, Table
from cellglot.evaluation.benchmark.evaluate import Evaluation, evaluate_models
from cellglot.evaluation.benchmark.results import metrics_of
from cellglot.evaluation.embedding import class_names, run_model
from cellglot.modeling.adapters import load_with_adapter
from cellglot.outputs import atomic
from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.training.config import load_config
from cellglot.training.finetuning.finetune import config_name, finetune
from cellglot.training.run import RUN_FILE


ADAPTER_CELLS = 14_000  # cells seen in all, over epochs
TASKS = ("clustering", "annotation")

# (folder of a model, folder to write, file of cells, evaluation.json) -> what was published, with its summary()
Publisher = Callable[[Path, Path, Path, Path], Any]


class AdapterDemo:
    """Fine-tunes an adapter of low rank on a pretrained model, loads it from its folder, and classifies.

    Parameters
    ----------
    data
        Cells and their tokens.
    name, base
        Name and folder of the model.
    corpus
        The cells, tokenized for it.
    family
        Its family.
    """

    def __init__(self, data: DemoData, name: str, base: Path, corpus: Corpus, family: str = "sccello"):
        self.data, self.base, self.corpus, self.family = data, base, corpus, family
        self.name = f"{name} with a LoRA adapter"
        self.folder = data.output / f"{name.lower()}-lora"

    def run(self) -> np.ndarray:
        """Train the adapter, and return the predicted classes of the held-out cells."""
        data = self.data
        data.step(f"{self.name}: fine-tuning")
        overrides = data.overrides(self.corpus, ADAPTER_CELLS, 20)
        config = load_config(config_name(self.family, "lora"), overrides)
        finetune(config, self.base, self.corpus, self.folder, method="lora", overwrite=True)
        self.record = json.loads((self.folder / RUN_FILE).read_text())
        self.logits, names = self.read(self.folder, self.base)
        self.predicted = class_names(self.logits, names)
        return self.predicted[data.test]

    def read(self, folder: Path, base: Path | None = None) -> tuple[np.ndarray, list[str]]:
        """Load the adapter from a folder; return the logits of all cells, shape (cells, classes), and the classes."""
        model = load_with_adapter(folder, base)
        tokenizer = type(self.corpus.tokenizer()).from_pretrained(self.base)
        logits = run_model(model, tokenizer, self.data.cells, "logits", progress=False)
        return logits, [model.config.id2label[i] for i in range(model.config.num_labels)]

    def section(self) -> Section:
        """Return this part of the page."""
        adapter, base = _weights(self.folder) / 1e6, _weights(self.base) / 1e6
        rank = json.loads((self.folder / "adapter_config.json").read_text())["r"]
        return Section(
            "An adapter to share",
            [
                f"The adapter of rank {rank} and its head take {adapter:.2f} MB; the base model, which is unchanged, "
                f"takes {base:.2f} MB. The tables of this page have its accuracy."
            ],
            f"cellglot annotate {self.folder} cells.h5ad -o annotated.h5ad --umap cells.html",
        )


def _weights(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


@dataclass
class SharingDemo:
    """Evaluates pretrained models on held-out cells, and publishes them to folders.

    Parameters
    ----------
    models
        Name -> folder of a pretrained model.
    publisher
        Writes a folder with its card and checks it in a clean process; without one nothing is published.
    beside
        Further models to evaluate, which are not published.
    tasks
        Of the evaluation.
    """

    data: DemoData
    models: dict[str, Path]
    publisher: Publisher | None = None
    beside: Sequence[Path] = ()
    tasks: Sequence[str] = TASKS

    def run(self) -> None:
        """Evaluate and publish."""
        data = self.data
        data.step("all models and baselines on the held-out cells")
        held_out = data.output / "held_out.h5ad"
        chosen = data.cells.to_anndata()[data.test].copy()
        chosen.obs["cell_type"] = data.truth
        with atomic(held_out) as temporary:
            chosen.write_h5ad(temporary)
        self.evaluation: Evaluation = evaluate_models(
            {folder.name: str(folder) for folder in (*self.beside, *self.models.values())},
            held_out,
            self.tasks,
            labels="cell_type",
            output=data.output / "evaluation",
            overwrite=True,
            seed=data.seed,
            progress=False,
        )
        data.console.print(f"{data.output / 'evaluation' / 'evaluation.md'}: {len(self.evaluation.results)} tasks")
        self.published: dict[str, Any] = {}
        if self.publisher is None:
            return
        for name, folder in self.models.items():
            data.step(f"{name}: written with its card, and loaded by a process without cellglot")
            target = self.folder(folder)
            target.parent.mkdir(exist_ok=True)
            done = self.publisher(folder, target, held_out, data.output / "evaluation" / "evaluation.json")
            data.console.print(f"{target}: {len(done.files)} files, {done.compared:,} numbers are the same")
            self.published[name] = done

    def folder(self, model: Path) -> Path:
        """Return the folder that a model is published to."""
        return self.data.output / "published" / model.name

    def sections(self) -> list[Section]:
        """Return this part of the page."""
        sections = [
            Section(
                "Models and baselines in one table",
                [
                    f"Embeddings of the {len(self.data.truth):,} held-out cells, which no training of this run has "
                    "seen: how well clusters match the labels, and how well a linear probe, trained on a part of "
                    "these cells, predicts the types of the others. evaluation/evaluation.md has 95% intervals from "
                    "bootstrap samples."
                ],
                table=_table(self.evaluation),
            )
        ]
        if self.published:
            rows = [
                [name, ", ".join(sorted(done.loaded)), f"{len(done.files)}", f"{done.compared:,}"]
                for name, done in self.published.items()
            ]
            sections.append(
                Section(
                    "Published, with a card",
                    [
                        "Each folder in published/ contains weights, tokenizer, code, pipelines and a card "
                        "(README.md) whose numbers come from the records of this run; a process without cellglot "
                        "loaded all of it and computed the same numbers. cellglot publish FOLDER OWNER/NAME "
                        "uploads such a folder."
                    ],
                    table=Table(["model", "loaded", "files", "numbers compared"], rows),
                )
            )
        return sections


def _table(evaluation: Evaluation) -> Table:
    columns: Sequence[str] = evaluation.record.columns
    rows = []
    for task, by_model in evaluation.results.items():
        for metric, heading in metrics_of(task, by_model):
            scores = {n: r.metrics[metric].value for n, r in by_model.items() if metric in r.metrics}
            rows.append([heading, *(f"{scores[name]:.3f}" if name in scores else "–" for name in columns)])
    return Table(["", *columns], rows)


__all__ = ["AdapterDemo", "Publisher", "SharingDemo"]
