"""The demo's part on LangCell: zero-shot annotation of cell types never trained on, and classification."""

import json
from collections import Counter

import numpy as np
from scipy.sparse import vstack

from cellglot.demo.data import DemoData, series
from cellglot.demo.report import Section, Table, draw
from cellglot.evaluation import plots
from cellglot.evaluation.annotation.by_texts import CellAnnotation, annotate_cells
from cellglot.evaluation.embedding import class_names
from cellglot.evaluation.scores.classification import classification_scores
from cellglot.modeling.any_model import load_cell_text_model
from cellglot.modeling.modeling_langcell import LangCellForSequenceClassification
from cellglot.outputs import write_json
from cellglot.tokenization.ontology.candidates import make_candidates
from cellglot.tokenization.ontology.cell_ontology import CellOntology
from cellglot.training.config import load_config
from cellglot.training.data.cell_types import open_ontology
from cellglot.training.finetuning.finetune import finetune
from cellglot.training.pretraining.pretrain import pretrain
from cellglot.training.run import RUN_FILE


PRETRAINING_CELLS, FINETUNING_CELLS = 5_500, 6_000  # cells seen in all, over epochs, were none left out
LENGTH = 64  # tokens of a cell that the demo reads: its highest-ranked genes, <cls> before them
LEFT_OUT = 1 / 3  # share of types

Scores = dict[str, tuple[float, float, float]]


class LangCellDemo:
    """Pretrains a small LangCell on some cell types, annotates the others zero-shot, fine-tunes, classifies."""

    name = "LangCell"

    def __init__(self, data: DemoData):
        self.data = data
        self.corpus = data.corpora.get("rank-value") or data.tokenize("rank-value", return_expression_values=True)
        self.folder, self.classifier_folder = data.output / "langcell", data.output / "langcell-classifier"
        self.ontology = open_ontology("blood")
        self.types = np.array(self.ontology.resolve(data.classes).cell_types, dtype=object)
        self.left_out = choose_left_out(self.types, self.ontology)

    def run(self) -> np.ndarray:
        """Run every step, and return the predicted classes of the held-out cells."""
        data = self.data
        names = [self.ontology.name(t) for t in self.left_out]
        without = f" without {', '.join(names)}" if names else ""
        data.step(f"LangCell: pretraining on cells and texts{without}")
        config = load_config("langcell_small.yaml", data.overrides(self.corpus, PRETRAINING_CELLS, 20))
        config.model["cell_config"]["max_position_embeddings"] = LENGTH
        config.data["leave_out"] = self.left_out
        pretrain(config, self.corpus, self.folder, overwrite=True)
        self.pretraining = json.loads((self.folder / RUN_FILE).read_text())
        self.scores: dict[str, Scores] = {}
        if self.left_out:
            data.step("LangCell: zero-shot annotation of the types left out")
            self._zero_shot()
        data.step("LangCell: fine-tuning for classification")
        settings = [*data.overrides(self.corpus, FINETUNING_CELLS, 20), "trainer.learning_rate=1e-3"]
        config = load_config("langcell_finetune.yaml", settings)
        finetune(config, self.folder, self.corpus, self.classifier_folder, overwrite=True)
        return data.classify(LangCellForSequenceClassification, self.classifier_folder, self.corpus)

    def _zero_shot(self) -> None:
        """Annotate all cells of the types left out, once among these types and once among all."""
        model, processor = load_cell_text_model(self.folder)
        rows = np.flatnonzero(np.isin(self.types, self.left_out))
        counts = vstack(list(self.data.cells.chunks()), format="csr")[rows]
        genes = [str(g) for g in self.data.cells.counts.index]
        self.truth = self._names(self.types[rows])
        found: dict[str, CellAnnotation] = {}
        for among, types in (("left out", self.left_out), ("all", sorted({t for t in self.types if t is not None}))):
            found[among] = annotate_cells(
                model, processor, counts, make_candidates(types, self.ontology), genes=genes, progress=False
            )
        few, all_types = found["left out"], found["all"]
        self.predicted = _best(few, few.scores)
        predictions = {
            "score as released: similarity and matching": self.predicted,
            "similarity alone": _best(few, few.similarity),
            "matching alone": _best(few, few.matching_probability),
            "the most frequent type, always": np.full(len(rows), Counter(self.truth).most_common(1)[0][0]),
            f"score as released, among all {len(all_types.candidates)} types": _best(all_types, all_types.scores),
        }
        self.scores = {
            name: classification_scores(self.truth, p, seed=self.data.seed) for name, p in predictions.items()
        }
        for name, score in self.scores.items():
            value, low, high = score["accuracy"]
            self.data.console.print(f"{name}: accuracy {value:.3f} ({low:.3f} to {high:.3f})")
        self.data.console.print(f"chance among {len(self.left_out)} types: {1 / len(self.left_out):.3f}")
        write_json(
            self.data.output / "langcell-zero-shot.json",
            {"left_out": self.left_out, "cells": len(rows), "scores": self.scores},
        )

    def _names(self, types: np.ndarray) -> np.ndarray:
        return np.array([self.ontology.name(t) for t in types])

    def cards(self) -> list[tuple[str, str]]:
        """Return the numbers for the top of the page."""
        if not self.scores:
            return []
        accuracy = next(iter(self.scores.values()))["accuracy"][0]
        return [
            (
                f"{accuracy:.1%}",
                f"zero-shot accuracy on {len(self.left_out)} types never trained on (LangCell; chance "
                f"{1 / len(self.left_out):.1%})",
            )
        ]

    def sections(self) -> list[Section]:
        """Return this part of the page."""
        log, metrics = self.pretraining["log"], self.pretraining["metrics"]
        names = ("masked_gene_loss", "cell_cell_loss", "cell_text_loss", "matching_loss")
        losses = {n.removesuffix("_loss").replace("_", " "): series(log, n) for n in names}
        figures = draw(
            "Losses of LangCell's pretraining",
            lambda: plots.curves_plot(losses, "Pretraining LangCell", "loss"),
            self.data.again,
        )
        paragraphs = [
            f"Cells are their {LENGTH - 1} highest-ranked genes, and texts are the names and definitions of their "
            "types. The text encoder starts from random weights and has read only these texts.",
        ]
        if "eval_text_accuracy" in metrics:
            paragraphs[0] += (
                f" {metrics['eval_text_accuracy']:.1%} of held-out cells lie nearest to their own text, among texts "
                f"that it has learned (chance {metrics['eval_text_chance']:.1%})."
            )
        if not self.scores:
            paragraphs.append("Too few labels match cell types: no type was left out for zero-shot annotation.")
            return [Section("LangCell: cells and texts", paragraphs, figures=figures)]
        paragraphs.append(self._judgement())
        figures += draw(
            "Confusion matrix of zero-shot annotation",
            lambda: plots.confusion_plot(
                self.truth.tolist(), self.predicted.tolist(), "Zero-shot, types never trained on"
            ),
            self.data.again,
            self.data.output / "langcell-zero-shot.png",
        )
        return [Section("LangCell: cell types never trained on", paragraphs, table=self._table(), figures=figures)]

    def _judgement(self) -> str:
        chance, (name, score) = 1 / len(self.left_out), next(iter(self.scores.items()))
        low = score["accuracy"][1]
        frequent = self.scores["the most frequent type, always"]["accuracy"][0]
        text = (
            "The model was not trained on any cell or text of "
            f"{', '.join(self.ontology.name(t) for t in self.left_out)}; only the medians of genes come from all "
            "training cells. The types were chosen by a rule: of each pair of nearest relatives in the ontology the "
            "type with more cells, up to a third of all types. Their "
            f"{len(self.truth):,} cells are annotated by the texts of these types. The interval of the {name} is "
            f"{'above' if low > chance else 'not above'} chance ({chance:.1%}), and "
            f"{'above' if low > frequent else 'not above'} naming the most frequent type ({frequent:.1%})."
        )
        return text + " Intervals are from 1,000 bootstrap samples of these cells, without the variation of trainings."

    def _table(self) -> Table:
        rows = []
        for name, score in self.scores.items():
            columns = [f"{v:.3f}|{low:.3f} to {high:.3f}" for v, low, high in score.values()]
            rows.append([name, *"|".join(columns).split("|")])
        chance = f"{1 / len(self.left_out):.3f}"
        rows.append([f"chance among the {len(self.left_out)} types", chance, "", "", ""])
        return Table(["zero-shot", "accuracy", "95% interval", "macro F1", "95% interval"], rows)


def _best(annotation: CellAnnotation, scores: np.ndarray) -> np.ndarray:
    """Name the candidate with the highest score; ``"no prediction"`` where a cell has none."""
    return class_names(scores, annotation.candidates.names).astype(str)


def choose_left_out(types: np.ndarray, ontology: CellOntology, share: float = LEFT_OUT) -> list[str]:
    """Choose cell types to leave out of training, by the ontology.

    Types are paired with their nearest relatives, the nearest pair first, each type once; of each pair the type with
    more cells is left out and the other stays, so that something is known of every type left out. A type with subtypes
    among the others stays, too. Our choice.

    Parameters
    ----------
    types
        Cell type of each cell, None for none, shape (cells,).

    Returns
    -------
    list of str
        Ids; empty where fewer than two types could be left out.
    """
    counts = Counter(t for t in types if t is not None)
    present = sorted(counts)
    stay = {t for t in present if ontology.descendants(t) & set(present)}
    similarity = ontology.similarity(present) if present else np.zeros((0, 0))
    pairs = [
        (similarity[i, j] + similarity[j, i], counts[a], a, b)
        for i, a in enumerate(present)
        for j, b in enumerate(present)
        if i != j and a not in stay and (counts[a], a) > (counts[b], b)
    ]
    gone: list[str] = []
    for *_, left, relative in sorted(pairs, reverse=True):
        if len(gone) < int(len(present) * share) and not {left, relative} & (stay | set(gone)):
            gone.append(left)
            stay.add(relative)
    return sorted(gone) if len(gone) > 1 else []


__all__ = ["LangCellDemo", "choose_left_out"]
