"""What all training runs share: arguments, checks, the loop, the record."""

import dataclasses
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
import transformers
from huggingface_hub.dataclasses import strict
from transformers import TrainingArguments, set_seed

import cellglot
from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.tokenization.tokenization_gene_expression import GeneExpressionTokenizer
from cellglot.training.arguments import CellTrainingArguments
from cellglot.training.config import TrainingConfig, check_keys, read_section, where
from cellglot.training.data.dataset import CellDataset
from cellglot.training.runs.finite import check_weights
from cellglot.training.runs.identity import FILES, read_identity, recorded_corpus, run_identity
from cellglot.training.runs.output import RUN_FILE, TrainingOutput
from cellglot.training.runs.stopping import EvaluationStopped, StopRequest
from cellglot.training.runs.work import summary
from cellglot.training.trainer import LOWER_RATE, CellTrainer
from cellglot.training.weight_average import WeightAverage


OPTIMIZERS = ("adamw", "adam")


@strict
@dataclasses.dataclass(kw_only=True)
class OptimizerSettings:
    """Keys of the section ``optimizer``.

    Parameters
    ----------
    name
        ``adamw``, or ``adam`` with weight decay added to gradients, as published for Exceiver.
    """

    name: str = "adamw"

    def __post_init__(self) -> None:
        """Refuse other optimizers."""
        if self.name not in OPTIMIZERS:
            raise ValueError(f"name {self.name!r}: it is one of {', '.join(OPTIMIZERS)}")


def check_vocabulary(model: Any, corpus: Corpus) -> None:
    """Refuse a corpus with token ids at or beyond the model's vocabulary."""
    if corpus.manifest["vocab_size"] > model.config.vocab_size:
        raise ValueError(
            f"{corpus.folder} has token ids up to {corpus.manifest['vocab_size'] - 1:,}, but the model's vocab_size "
            f"is {model.config.vocab_size:,}: tokenize with the model's own vocabulary (--vocabulary MODEL)"
        )


def check_same_vocabulary(tokenizer: GeneExpressionTokenizer, corpus: Corpus, model: str | Path) -> None:
    """Refuse a corpus whose genes have other ids, medians, means or standard deviations than a model's."""
    a, b = tokenizer.vocabulary, corpus.tokenizer().vocabulary
    statistics: tuple[tuple[Any, Any], ...] = ((a.medians, b.medians), (a.means, b.means), (a.stds, b.stds))
    if a.token_ids != b.token_ids or not all(np.array_equal(x, y) for x, y in statistics):
        raise ValueError(
            f"{corpus.folder} was tokenized with another vocabulary than {model}: tokenize with --vocabulary {model}"
        )


def training_arguments(config: TrainingConfig, output: str | Path, **defaults_of_run: Any) -> TrainingArguments:
    """Return the trainer's arguments: those of the configuration, else of the run, else our defaults."""
    given = dict(config.trainer)
    fields = {f.name: f.type for f in dataclasses.fields(CellTrainingArguments) if f.name != "output_dir"}
    name = where(config.trainer, "trainer")
    check_keys(given, list(fields), name)
    read_section(OptimizerSettings, config.optimizer, "optimizer")
    for key in ("eval_strategy", "save_strategy", "logging_strategy"):
        if given.get(key) is False:  # YAML reads an unquoted no as false
            given[key] = "no"
    for key, value in given.items():
        _check_type(f"{name}.{key}", value, fields[key])
    defaults: dict[str, Any] = {
        "report_to": "none",
        "remove_unused_columns": False,
        "batch_eval_metrics": True,
        "label_names": ["labels"],
        "save_total_limit": 2,
        "logging_steps": 50,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "logging_nan_inf_filter": False,  # a loss that is not finite stops the training
    }
    given["enable_jit_checkpoint"] = False  # SIGTERM always saves a checkpoint
    return CellTrainingArguments(output_dir=str(output), **(defaults | defaults_of_run | given))


def _check_type(name: str, value: Any, wanted: Any) -> None:
    """Refuse a value of the wrong type, for fields of the trainer with a plain type."""
    kinds = set(get_args(wanted) or (wanted,))
    if not kinds <= {bool, int, float, str, type(None)}:
        return
    fits = isinstance(value, tuple(kinds | ({int} if float in kinds else set())))
    if not fits or (isinstance(value, bool) and bool not in kinds):
        names = " or ".join(sorted(k.__name__ for k in kinds - {type(None)}))
        raise ValueError(f"{name} {value!r} is of type {type(value).__name__}: it has to be {names}")


def check_held_out(
    arguments: TrainingArguments, held_out: CellDataset | None, corpus: Corpus, label_column: str | None = None
) -> None:
    """Refuse to evaluate during training if there are no cells to evaluate on."""
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
        f"none of the {corpus.n_cells('validation'):,} held-out cells{named} of {corpus.folder} has a label in "
        f"{label_column!r}, so there is nothing to evaluate on: remove cells without a label from the file, hold out "
        "other cells (cellglot tokenize with another --seed, then --corpus), or set trainer.eval_strategy=no"
    )


def training_output(
    config: TrainingConfig,
    corpus: Corpus,
    arguments: TrainingArguments,
    output: str | Path,
    verb: str,
    *,
    base: str | Path | None = None,
    resume: bool = True,
    overwrite: bool = False,
    inputs: Sequence[str | Path | None] = (),
    **parts: Any,
) -> TrainingOutput:
    """Return the output of a run, to be entered before any work; parameters as for its class and `run_identity`."""
    named = [getattr(config, section).get(key) for section, keys in FILES.items() for key in keys]
    read = [*inputs, *(str(name) for name in named if name is not None)]
    return TrainingOutput(
        output,
        "pretrain" if verb == "pretrain" else "finetune",
        arguments,
        lambda: run_identity(verb, config, corpus, arguments, base=base, **parts),
        config=config,
        corpus=corpus,
        base=base,
        trainer_of=lambda other: training_arguments(other, output),
        inputs=read,
        resume=resume,
        overwrite=overwrite,
    )


def run_once(output: TrainingOutput, train: Callable[[TrainingOutput], dict[str, float]]) -> dict[str, float]:
    """Train and return the metrics; if the folder contains this run, finished, only return its metrics."""
    with output:
        if output.record is None:
            set_seed(output.arguments.seed)
            return train(output)
        if output.arguments.process_index == 0:
            print(
                f"{output.folder} contains this run, finished: there is nothing to do. To train again: --overwrite "
                "(overwrite=True), or another folder",
                flush=True,
            )
        return dict(output.record.get("metrics") or {})


def run_training(
    trainer: CellTrainer,
    output: TrainingOutput,
    evaluate: Callable[[], dict[str, float]],
    facts: Callable[[], dict[str, Any]],
    save: Callable[[str], None] | None = None,
) -> dict[str, float]:
    """Train, from the last checkpoint if there is one, evaluate, and write the model and its record.

    SIGTERM and SIGINT stop the run: it writes a checkpoint, but no model.

    Parameters
    ----------
    evaluate
        Returns the metrics of the trained model.
    facts
        Returns further entries of ``training_run.json``.
    save
        Writes the model to a folder, by default as the trainer does; every process calls it.

    Raises
    ------
    ValueError
        If the loss or weights are not finite. Only earlier checkpoints are kept.
    KeyboardInterrupt, SystemExit
        After a signal, when the checkpoint is written.
    """
    trainer.identity = output.identity | {"order": getattr(trainer.train_dataset, "order", "cells")}
    output.begin()
    if output.checkpoint is not None:
        name = Path(output.checkpoint).name
        say(trainer, f"resuming from {output.checkpoint}, going on at step {name.rpartition('-')[2]}")
        before = (read_identity(output.checkpoint) or {}).get("order", "cells")
        if before != trainer.identity["order"]:
            say(
                trainer,
                "the checkpoint is of an earlier version, which read cells in another order: in this epoch some cells "
                "are seen twice and others are not",
            )
    with StopRequest() as stop:
        trainer.stop = stop
        try:
            trainer.train(resume_from_checkpoint=output.checkpoint)
            metrics = {} if trainer.stopping else evaluate()
        except EvaluationStopped:
            trainer.stopping = True
            if trainer.state.global_step:
                trainer.save_stopped()
        if trainer.stopping:
            at = f"after step {trainer.state.global_step:,}" if trainer.state.global_step else "before the first step"
            say(trainer, f"stopped {at}; the same command resumes from there")
            stop.end()
        check_weights(trainer.model, "the trained model", LOWER_RATE)
        record = _record(trainer, output, metrics, facts())
        output.finish(save or trainer.save_model, finite(record))
        if not trainer.stopping:
            say(trainer, f"trained on {summary(record['work'])}")
    return metrics


def finite(value: Any) -> Any:
    """Return the same JSON with None for numbers that are not finite."""
    if isinstance(value, Mapping):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def final_metrics(trainer: CellTrainer) -> dict[str, float]:
    """Return the metrics of held-out cells for the saved model; evaluate it unless the last step did."""
    evaluated = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    averaged = any(isinstance(callback, WeightAverage) for callback in trainer.callback_handler.callbacks)
    last_is_saved = not averaged and not trainer.args.load_best_model_at_end
    if last_is_saved and evaluated and evaluated[-1]["step"] == trainer.state.global_step:
        return {name: value for name, value in evaluated[-1].items() if name != "step"}
    return trainer.evaluate()


def say(trainer: CellTrainer, text: str) -> None:
    """Print on the main process only."""
    if trainer.is_world_process_zero():
        print(text, flush=True)


def _record(
    trainer: CellTrainer, output: TrainingOutput, metrics: dict[str, float], facts: dict[str, Any]
) -> dict[str, Any]:
    return {
        "cellglot": cellglot.__version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": str(trainer.args.device),
        "processes": trainer.args.world_size,
        "config": dataclasses.asdict(output.config),
        "corpus": recorded_corpus(output.corpus)
        | {"digest": output.identity.get("parts", {}).get("corpus", {}).get("content")},
        "work": trainer.work.record(trainer),
        **facts,
        "metrics": metrics,
        "log": trainer.state.log_history,
    }


def say_empty_cells(trainer: CellTrainer, *parts: CellDataset | None) -> int:
    """Print how many cells express no gene of the vocabulary, and return this number."""
    given = [part for part in parts if part is not None]
    empty, cells = sum(p.without_genes for p in given), sum(p.chosen for p in given)
    if empty:
        say(
            trainer,
            f"{empty:,} of {cells:,} cells express no gene of the vocabulary and are left out: an unfiltered file?",
        )
    return empty


def leave_group() -> None:
    """Leave the process group of a distributed run, if there is one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


__all__ = [
    "RUN_FILE",
    "check_held_out",
    "check_same_vocabulary",
    "check_vocabulary",
    "final_metrics",
    "leave_group",
    "run_once",
    "run_training",
    "say",
    "say_empty_cells",
    "training_arguments",
    "training_output",
]
