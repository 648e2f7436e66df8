"""Few-shot learning of LangCell, by the texts of classes."""

import datetime
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import set_seed
from transformers.utils import ModelOutput

import cellglot
from cellglot.modeling.adapter_folders import cached_revision
from cellglot.modeling.cell_losses import count_items, cross_entropy_terms, join_losses
from cellglot.modeling.families import knows_texts
from cellglot.modeling.loading import load_model, load_processor
from cellglot.modeling.model_files import check_loaded
from cellglot.modeling.modeling_langcell import LangCellModel
from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.tokenization.ontology.candidates import Candidates, make_candidates
from cellglot.tokenization.ontology.descriptions import ANNOTATION_TEMPLATE
from cellglot.training.config import TrainingConfig, check_keys, read_section, where
from cellglot.training.data.cell_types import open_ontology
from cellglot.training.data.dataset import CellDataset, cells_with_genes
from cellglot.training.data.labels import labels_of
from cellglot.training.data.rank_value_collator import rank_value_collator
from cellglot.training.families.records import family_of
from cellglot.training.finetuning.cells import corpus_for
from cellglot.training.metrics import ClassificationMetrics
from cellglot.training.run import (
    check_held_out,
    check_same_vocabulary,
    check_vocabulary,
    finished_metrics,
    run_training,
    say,
    say_empty_cells,
    training_arguments,
    training_output,
)
from cellglot.training.runs.output import TrainingOutput, check_no_other_model
from cellglot.training.trainer import CellTrainer, count_parameters


ALPHA = 0.1


@strict
@dataclass(kw_only=True)
class FewShotSettings:
    """Keys of the section ``data``.

    Parameters
    ----------
    ontology
        ``blood``, a release's date, an OBO or OWL file.
    template
        Of a class's text.
    alpha
        Weight of similarity in the scores.
    """

    ontology: str | datetime.date = "blood"
    template: str = ANNOTATION_TEMPLATE
    alpha: float | int = ALPHA


@dataclass
class FewShotOutput(ModelOutput):
    """Output of `FewShotObjective`.

    Parameters
    ----------
    loss
        Sum of both losses.
    similarity_loss
        Cross entropy over class texts of similarity logits.
    matching_loss
        Cross entropy over class texts of P(match).
    logits
        Scores of zero-shot annotation, shape (cells, classes).
    """

    loss: torch.Tensor | None = None
    similarity_loss: torch.Tensor | None = None
    matching_loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None


class FewShotObjective(nn.Module):
    """A LangCell with the texts of classes, and the losses of few-shot learning.

    Parameters
    ----------
    model
        Both encoders and their projections learn; the matching head stays as it is, as released.
    text_input_ids, text_attention_mask
        Text of each class, shape (classes, tokens).
    alpha
        Weight of similarity in the scores.

    Notes
    -----
    As released: the cross entropy of cosines over tau, plus that of P(match), which stands in the place of logits as
    in zero-shot annotation.
    """

    def __init__(
        self,
        model: LangCellModel,
        text_input_ids: torch.Tensor,
        text_attention_mask: torch.Tensor,
        alpha: float = ALPHA,
    ):
        super().__init__()
        self.model, self.config, self.alpha = model, model.config, alpha
        self.register_buffer("text_input_ids", text_input_ids, persistent=False)
        self.register_buffer("text_attention_mask", text_attention_mask, persistent=False)
        model.requires_grad_(True)
        model.matching_head.requires_grad_(False)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        labels: torch.Tensor,
        num_items_in_batch: Any = None,
    ) -> FewShotOutput:
        """Compare cells with the text of every class.

        Parameters
        ----------
        input_ids, attention_mask
            Cells, shape (cells, tokens).
        labels
            Class of each cell, -100 for none, shape (cells,).
        num_items_in_batch
            As for `LangCellForPreTraining`.
        """
        model, texts = self.model, (self.text_input_ids, self.text_attention_mask)
        similarity = model(input_ids, attention_mask, *texts).logits
        matching = model.match(input_ids, attention_mask, *texts)
        parts = {
            "similarity_loss": cross_entropy_terms(similarity, labels),
            "matching_loss": cross_entropy_terms(matching, labels),
        }
        number = count_items(labels, parts["similarity_loss"].count)
        losses = join_losses(parts, number, num_items_in_batch, torch.is_grad_enabled())
        scores = self.alpha * similarity.softmax(dim=1) + (1 - self.alpha) * matching.softmax(dim=1)
        return FewShotOutput(loss=losses["similarity_loss"] + losses["matching_loss"], **losses, logits=scores)


@dataclass
class Shots:
    """Cells drawn to learn from.

    Parameters
    ----------
    keep
        Whether each training cell was drawn, shape (training cells,).
    drawn
        Class -> cells drawn.
    """

    keep: np.ndarray
    drawn: dict[str, int]

    def short(self, number: int) -> dict[str, int]:
        """Return the classes that have fewer cells than were asked for, with their cells."""
        return {name: n for name, n in self.drawn.items() if n < number}


def draw_cells(classes: Sequence[str | None], number: int, seed: int) -> Shots:
    """Draw cells of each class; of a class with fewer, all are taken.

    Parameters
    ----------
    classes
        Class of each training cell, None for cells that cannot be drawn.
    """
    if number < 1:
        raise ValueError(f"{number} cells a class: few-shot learning needs one at least")
    random, given = np.random.default_rng(seed), np.array(classes, dtype=object)
    keep, drawn = np.zeros(len(given), dtype=bool), {}
    for name in sorted({c for c in classes if c is not None}):
        rows = random.permutation(np.flatnonzero(given == name))[:number]
        keep[rows], drawn[name] = True, len(rows)
    return Shots(keep, drawn)


def few_shot(
    config: TrainingConfig,
    model: str | Path,
    corpus: str | Path | Corpus,
    output: str | Path,
    number: int,
    *,
    label_column: str = "cell_type",
    resume: bool = True,
    overwrite: bool = False,
    callbacks: Sequence[Any] = (),
) -> dict[str, float]:
    """Let a LangCell learn from a few cells of each class, by the texts of the classes.

    As released: see `FewShotObjective`; Adam at 1e-5, batch 12, 10 epochs stand in ``langcell_few_shot.yaml``. Labels
    that mean one cell type are one class; a label that the ontology does not know is its own text. The draw of cells,
    among training cells, depends on ``trainer.seed``. Held-out cells are for evaluation, before (``zero_shot_...``)
    and after.

    Parameters
    ----------
    config
        The configuration; keys of its section ``data`` are those of `FewShotSettings`.
    model
        Folder or repository of a LangCell.
    corpus
        Cells tokenized with the model's vocabulary.
    output
        Folder for the model, a LangCell like the one before.
    number
        Cells of each class. Of a class with fewer all are taken, which is said and recorded.
    label_column
        Column of the corpus that holds the classes.
    resume
        Resume from the last checkpoint in `output`, if there is one. A run that is finished is not done again.
    overwrite
        Delete what an earlier run wrote in `output`, and nothing else, and start from the beginning.
    callbacks
        Further callbacks of the trainer.

    Returns
    -------
    dict
        ``zero_shot_accuracy``, ``zero_shot_macro_f1``, ``eval_accuracy`` and ``eval_macro_f1`` of the held-out cells,
        with the losses; empty without such cells.

    Raises
    ------
    ValueError
        If there are fewer than two classes, no such column, corpus and model do not fit together, `output` holds
        another run, or a loss is not finite.
    """
    corpus = corpus if isinstance(corpus, Corpus) else Corpus.open(corpus)
    data = read_section(FewShotSettings, config.data, "data")
    check_keys(config.model, [], where(config.model, "model"))
    check_keys(config.finetuning, [], where(config.finetuning, "finetuning"))
    arguments = training_arguments(config, output)
    claim = training_output(
        config,
        corpus,
        arguments,
        output,
        "few-shot",
        base=model,
        resume=resume,
        overwrite=overwrite,
        labels=label_column,
        cells_of_each_class=number,
    )
    with claim as claimed:
        if claimed.record is not None:
            return finished_metrics(claimed)
        set_seed(arguments.seed)
        return _learn(claimed, data, number, label_column, callbacks)


def _learn(
    claimed: TrainingOutput, data: FewShotSettings, number: int, label_column: str, callbacks: Sequence[Any]
) -> dict[str, float]:
    arguments, corpus, model = claimed.arguments, claimed.corpus, str(claimed.base)
    loaded, processor = _load(model, corpus)
    classes = _Classes(data, corpus, label_column)
    train_names, held_out_names = classes.names("train"), classes.names("validation")
    expressed = cells_with_genes(corpus, ["train"])
    if expressed is not None:
        train_names = [name if e else None for name, e in zip(train_names, expressed, strict=True)]
    shots = draw_cells(train_names, number, arguments.seed)
    empty = 0 if expressed is None else int((~expressed).sum())
    train = CellDataset(corpus, "train", columns=[label_column], keep=shots.keep, without_genes=empty)
    held_out, asked = None, np.array([name is not None for name in held_out_names], dtype=bool)
    if asked.any():
        held_out = CellDataset(corpus, "validation", columns=[label_column], keep=asked)
    check_held_out(arguments, held_out, corpus, label_column)
    length = loaded.config.text_config.max_position_embeddings
    tokens = processor(text=classes.texts, return_tensors="pt", text_max_length=length)
    objective = FewShotObjective(loaded, tokens["text_input_ids"], tokens["text_attention_mask"], float(data.alpha))
    collator = rank_value_collator(
        processor.tokenizer,
        mask_fraction=0.0,
        seed=arguments.seed,
        max_length=loaded.config.cell_config.max_position_embeddings,
        labels=classes.class_of,
        label_column=label_column,
    )
    trainer = _Trainer(
        model=objective,
        args=arguments,
        train_dataset=train,
        eval_dataset=held_out,
        data_collator=collator,
        compute_metrics=ClassificationMetrics(),
        description="few-shot",
        optimizer_name=claimed.config.optimizer.get("name", "adamw"),
        callbacks=list(callbacks),
    )
    short = shots.short(number)
    say(
        trainer,
        f"{count_parameters(loaded):,} parameters; {len(train):,} cells of {len(classes.texts):,} classes, {number:,} "
        f"of each; {len(short):,} classes have fewer: {short or 'none'}; {0 if held_out is None else len(held_out):,} "
        f"held-out cells; {processor.texts_cut:,} texts cut\n{classes.candidates.report.summary()}",
    )
    say_empty_cells(trainer, train, held_out)

    def save(folder: str) -> None:
        if trainer.is_world_process_zero():
            loaded.save_pretrained(folder)
            processor.save_pretrained(folder)

    facts = {
        "base_model": model,
        "base_model_revision": cached_revision(model),
        "cells_of_each_class": number,
        "cells_drawn": {classes.candidates.names[int(c)]: n for c, n in shots.drawn.items()},
        "classes_with_fewer": {classes.candidates.names[int(c)]: n for c, n in short.items()},
        "texts": classes.texts,
        "texts_cut": processor.texts_cut,
        "label_column": label_column,
        "training_cells": len(train),
        "held_out_cells": 0 if held_out is None else len(held_out),
        "cells_without_class": train_names.count(None) + held_out_names.count(None),
    }
    return run_training(
        trainer,
        claimed,
        lambda: trainer.zero_shot | _evaluate(trainer, "eval"),
        lambda: facts,
        save,
    )


class _Trainer(CellTrainer):
    """Evaluates the model as it is before it learns, too."""

    zero_shot: dict[str, float]

    def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> Any:
        """Evaluate, then train."""
        self.zero_shot = _evaluate(self, "zero_shot")
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)


class _Classes:
    """Classes of a corpus's training cells, with their texts."""

    def __init__(self, data: FewShotSettings, corpus: Corpus, column: str):
        self.labels = {split: labels_of(corpus, split, column) for split in ("train", "validation")}
        counts = Counter(label for label in self.labels["train"] if label is not None)
        if not counts:
            raise ValueError(f"no training cell of {corpus.folder} has a label in {column!r}")
        self.candidates: Candidates = make_candidates(
            sorted(counts), open_ontology(str(data.ontology)), template=data.template
        )
        if len(self.candidates) < 2:
            raise ValueError(
                f"{column!r} has 1 class among the training cells ({self.candidates.names[0]}): few-shot learning "
                "needs two"
            )
        self.texts = [texts[0] for texts in self.candidates.texts]
        self.class_of = self.candidates.class_of(counts) | self.candidates.class_of(self.labels["validation"])

    def names(self, split: str) -> list[str | None]:
        """Return the class of each cell of a split, its number as text; None where it has none."""
        found = (self.class_of.get(label) if label is not None else None for label in self.labels[split])
        return [None if c is None else f"{c:06d}" for c in found]


def _load(model: str | Path, corpus: Corpus) -> tuple[LangCellModel, Any]:
    """Load a LangCell that knows texts, with its processor."""
    if not knows_texts(family_of(model).name):
        raise ValueError(f"{model} knows no texts: few-shot learning by texts takes a LangCell model")
    loaded, info = load_model(LangCellModel, model, check=False, output_loading_info=True)
    if info["missing_keys"] and not any(key.startswith("cell_model.") for key in info["missing_keys"]):
        raise ValueError(f"{model} holds no text encoder: it was saved from the cell encoder or a classifier alone")
    check_loaded(model, loaded, info)
    cellglot.register_auto_classes()
    processor: Any = load_processor(model)
    check_same_vocabulary(processor.tokenizer, corpus, model)
    check_vocabulary(loaded, corpus)
    return loaded, processor


def _evaluate(trainer: CellTrainer, prefix: str) -> dict[str, float]:
    if trainer.eval_dataset is None:
        return {}
    found = trainer.evaluate(metric_key_prefix=prefix)
    return {name: value for name, value in found.items() if name.rsplit("_", 1)[-1] in ("loss", "accuracy", "f1")}


def few_shot_on(
    config: TrainingConfig,
    model: str | Path,
    cells: Sequence[str | Path] | None,
    corpus: str | Path | Corpus | None,
    output: str | Path,
    number: int,
    **options: Any,
) -> dict[str, float]:
    """Learn from few cells of files, which are tokenized first, or of a corpus.

    Parameters
    ----------
    config, model, corpus, output, number, **options
        As for `few_shot`.
    cells
        Files of cells, where there is no corpus.
    """
    if corpus is None:
        if not cells:
            raise ValueError("pass labelled cells, or their tokens as a corpus")
        overwrite = options.get("overwrite", False)
        if not overwrite:
            check_no_other_model(output)
        corpus = corpus_for(model, cells, output, options.get("label_column", "cell_type"), overwrite=overwrite)
    return few_shot(config, model, corpus, output, number, **options)


__all__ = ["FewShotObjective", "FewShotOutput", "Shots", "draw_cells", "few_shot", "few_shot_on"]
