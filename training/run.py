"""What every training run has in common: arguments, checks, the loop, the record."""

import dataclasses
import json
import platform
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
import transformers
from transformers import TrainingArguments

import cellglot
from cellglot.tokenization.corpus import Corpus
from cellglot.tokenization.tokenization_gene_expression import GeneExpressionTokenizer
from cellglot.training.config import TrainingConfig, check_keys
from cellglot.training.data import CellDataset
from cellglot.training.trainer import CellTrainer, last_checkpoint
from cellglot.training.weight_average import WeightAverage


RUN_FILE = "training_run.json"


def check_vocabulary(model: Any, corpus: Corpus) -> None:
    """Refuse a corpus with token ids at or beyond the model's vocabulary.

    Raises
    ------
    ValueError
        If the corpus has more ids than the model.
    """
    if corpus.manifest["vocab_size"] > model.config.vocab_size:
        raise ValueError(
            f"{corpus.folder} has token ids up to {corpus.manifest['vocab_size'] - 1:,}, but the model's vocab_size "
            f"is {model.config.vocab_size:,}: tokenize with the model's own vocabulary (--vocabulary MODEL)"
        )


def check_same_vocabulary(tokenizer: GeneExpressionTokenizer, corpus: Corpus, model: str | Path) -> None:
    """Refuse a corpus whose genes have other ids, medians, means or standard deviations than a model's.

    Raises
    ------
    ValueError
        If it is so; says how to tokenize.
    """
    a, b = tokenizer.vocabulary, corpus.tokenizer().vocabulary
    statistics: tuple[tuple[Any, Any], ...] = ((a.medians, b.medians), (a.means, b.means), (a.stds, b.stds))
    if a.token_ids != b.token_ids or not all(np.array_equal(x, y) for x, y in statistics):
        raise ValueError(
            f"{corpus.folder} was tokenized with another vocabulary than {model}: tokenize with --vocabulary {model}"
        )


def training_arguments(config: TrainingConfig, output: str | Path) -> TrainingArguments:
    """Make the trainer's arguments, with our defaults where the configuration is silent."""
    given = dict(config.trainer)
    fields = {f.name: f.type for f in dataclasses.fields(TrainingArguments) if f.name != "output_dir"}
    check_keys(given, list(fields), "trainer")
    check_keys(config.optimizer, ["name"], "optimizer")
    for name in ("eval_strategy", "save_strategy", "logging_strategy"):
        if given.get(name) is False:  # YAML reads a bare no as false
            given[name] = "no"
    for name, value in given.items():
        _check_type(name, value, fields[name])
    defaults: dict[str, Any] = {
        "report_to": "none",
        "remove_unused_columns": False,
        "batch_eval_metrics": True,
        "label_names": ["labels"],
        "save_total_limit": 2,
        "logging_steps": 50,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    return TrainingArguments(output_dir=str(output), **(defaults | given))


def _check_type(name: str, value: Any, wanted: Any) -> None:
    """Refuse a value of another type than a trainer's field of plain type has."""
    kinds = set(get_args(wanted) or (wanted,))
    if not kinds <= {bool, int, float, str, type(None)}:
        return
    fits = isinstance(value, tuple(kinds | ({int} if float in kinds else set())))
    if not fits or (isinstance(value, bool) and bool not in kinds):
        names = " or ".join(sorted(k.__name__ for k in kinds - {type(None)}))
        raise ValueError(f"trainer.{name} {value!r} is of type {type(value).__name__}: it has to be {names}")


def check_held_out(
    arguments: TrainingArguments, held_out: CellDataset | None, corpus: Corpus, label_column: str | None = None
) -> None:
    """Refuse to evaluate during training where there are no cells to evaluate on.

    Raises
    ------
    ValueError
        If the trainer is to evaluate and the corpus holds no cells out, or none with a label in `label_column`.
    """
    if held_out is not None or arguments.eval_strategy == "no":
        return
    if label_column is None or not corpus.n_cells("validation"):
        raise ValueError(
            f"{corpus.folder} has no held-out cells to evaluate on: set trainer.eval_strategy=no, or tokenize with "
            "a larger --validation-fraction"
        )
    groups = sorted(g for g, split in corpus.manifest["split"]["held_out"].items() if split == "validation")
    named = f" ({', '.join(groups[:5])}{', ...' if len(groups) > 5 else ''})" if groups else ""
    raise ValueError(
        f"none of the {corpus.n_cells('validation'):,} held-out cells{named} has a label in {label_column!r}, so that "
        "there is none to evaluate on: leave cells without a label out of the file, hold others out (cellglot "
        "tokenize with another --seed, then --corpus), or set trainer.eval_strategy=no"
    )


def run_trainer(trainer: CellTrainer, output: str | Path, resume: bool) -> None:
    """Train, from the last checkpoint if there is one, and save the model."""
    checkpoint = last_checkpoint(output) if resume else None
    if checkpoint is not None:
        say(trainer, f"going on from {checkpoint}")
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(str(output))


def final_metrics(trainer: CellTrainer) -> dict[str, float]:
    """Give the held-out cells' metrics of the model that was saved, evaluated now unless the last step did."""
    evaluated = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    averaged = any(isinstance(callback, WeightAverage) for callback in trainer.callback_handler.callbacks)
    last_is_saved = not averaged and not trainer.args.load_best_model_at_end
    if last_is_saved and evaluated and evaluated[-1]["step"] == trainer.state.global_step:
        return {name: value for name, value in evaluated[-1].items() if name != "step"}
    return trainer.evaluate()


def say(trainer: CellTrainer, text: str) -> None:
    """Print on the main process alone."""
    if trainer.is_world_process_zero():
        print(text, flush=True)


def save_run(
    trainer: CellTrainer,
    output: str | Path,
    config: TrainingConfig,
    corpus: Corpus,
    metrics: dict[str, float],
    facts: dict[str, Any],
) -> None:
    """Write the record of a run: configuration, corpus, software, metrics and the log of losses."""
    if not trainer.is_world_process_zero():
        return
    record = {
        "cellglot": cellglot.__version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": str(trainer.args.device),
        "processes": trainer.args.world_size,
        "config": dataclasses.asdict(config),
        "corpus": {
            "tokenizer": corpus.manifest["tokenizer"],
            "vocab_size": corpus.manifest["vocab_size"],
            "split": corpus.manifest["split"],
            "files": [{k: f[k] for k in ("name", "n_cells", "counts_in")} for f in corpus.manifest["files"]],
        },
        **facts,
        "metrics": metrics,
        "log": trainer.state.log_history,
    }
    Path(output, RUN_FILE).write_text(json.dumps(record, indent=1, default=str), encoding="utf-8")


def end(metrics: dict[str, float]) -> None:
    """Leave the group of processes, and print the metrics on the main one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        rank = torch.distributed.get_rank()
        torch.distributed.destroy_process_group()
        if rank:
            return
    for name, value in metrics.items():
        print(f"{name}: {value:.4f}")
