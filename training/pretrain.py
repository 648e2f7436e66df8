"""Pretraining: ``accelerate launch -m cellglot.training.pretrain --config exceiver_small.yaml ...``."""

import argparse
import dataclasses
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import TrainingArguments, set_seed

import cellglot
from cellglot.modeling.configuration_exceiver import ExceiverConfig
from cellglot.modeling.modeling_exceiver import ExceiverForMaskedExpression
from cellglot.tokenization.corpus import Corpus
from cellglot.tokenization.tokenization_exceiver import ExceiverTokenizer
from cellglot.training.collators import ExceiverCollator
from cellglot.training.config import TrainingConfig, check_keys, load_config
from cellglot.training.data import CellDataset
from cellglot.training.gene_embeddings import initialize_gene_embeddings
from cellglot.training.metrics import MaskedExpressionMetrics
from cellglot.training.trainer import CellTrainer, count_parameters, last_checkpoint


RUN_FILE = "training_run.json"


def pretrain(
    config: TrainingConfig,
    corpus: str | Path | Corpus,
    output: str | Path,
    *,
    resume: bool = True,
    callbacks: Sequence[Any] = (),
) -> dict[str, float]:
    """Pretrain a model on a corpus.

    Parameters
    ----------
    config
        The configuration.
    corpus
        Folder that ``cellglot tokenize`` made.
    output
        Folder for the model (weights, configuration, tokenizer, code: ready for the Hub), checkpoints and the
        record of the run.
    resume
        Go on from the last checkpoint in `output`, if there is one.
    callbacks
        Further callbacks of the trainer.

    Returns
    -------
    dict
        Metrics of the held-out cells: ``eval_masked_mse``, ``eval_explained_variance``; empty without such cells.

    Raises
    ------
    ValueError
        If configuration, corpus and model do not fit together.
    """
    corpus = corpus if isinstance(corpus, Corpus) else Corpus.open(corpus)
    if config.model.get("type") != ExceiverConfig.model_type:
        raise ValueError(f"model.type {config.model.get('type')!r}: the models to pretrain are exceiver")
    tokenizer = corpus.tokenizer()
    if not isinstance(tokenizer, ExceiverTokenizer):
        raise ValueError(
            f"{corpus.folder} was tokenized by {type(tokenizer).__name__}, Exceiver reads ExceiverTokenizer: "
            "cellglot tokenize --tokenizer exceiver"
        )
    arguments = training_arguments(config, output)
    set_seed(arguments.seed)
    model = _new_model(config, tokenizer)
    check_vocabulary(model, corpus)
    if config.data.get("initialize_gene_embeddings", False):
        initialize_gene_embeddings(model.get_input_embeddings(), corpus, arguments.seed)
    num_masked = _num_masked(config, corpus)
    train = CellDataset(corpus, "train", least_tokens=2 * num_masked)
    held_out = None
    if corpus.n_cells("validation"):
        held_out = CellDataset(corpus, "validation", least_tokens=2 * num_masked)
    check_held_out(arguments, held_out, corpus)
    trainer = CellTrainer(
        model=model,
        args=arguments,
        train_dataset=train,
        eval_dataset=held_out,
        data_collator=ExceiverCollator(tokenizer.pad_token_id, num_masked, seed=arguments.seed),
        processing_class=tokenizer,
        compute_metrics=MaskedExpressionMetrics(),
        description="pretraining",
        optimizer_name=config.optimizer.get("name", "adamw"),
        callbacks=list(callbacks),
    )
    say(
        trainer,
        f"{count_parameters(model):,} parameters; {len(train):,} cells for training and "
        f"{0 if held_out is None else len(held_out):,} held out; {num_masked:,} genes masked in each; left out for "
        f"having fewer than {2 * num_masked:,} expressed genes: {train.left_out:,} and "
        f"{0 if held_out is None else held_out.left_out:,}",
    )
    run_trainer(trainer, output, resume)
    metrics = trainer.evaluate() if held_out is not None else {}
    save_run(
        trainer,
        output,
        config,
        corpus,
        metrics,
        {"num_masked": num_masked, "cells_left_out": train.left_out, "training_cells": len(train)},
    )
    return metrics


def _new_model(config: TrainingConfig, tokenizer: ExceiverTokenizer) -> ExceiverForMaskedExpression:
    sizes = {k: v for k, v in config.model.items() if k != "type"}
    check_keys(sizes, [f.name for f in dataclasses.fields(ExceiverConfig)], "model")
    if sizes.setdefault("vocab_size", tokenizer.vocab_size) != tokenizer.vocab_size:
        raise ValueError(
            f"model.vocab_size is {sizes['vocab_size']:,}, the corpus has {tokenizer.vocab_size:,} ids: leave it out"
        )
    try:
        model = ExceiverForMaskedExpression(ExceiverConfig(**sizes))
    except StrictDataclassError as error:
        raise ValueError(f"model: {error}") from error
    model.exceiver.set_background_values(tokenizer.background_values)
    return model


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


def _num_masked(config: TrainingConfig, corpus: Corpus) -> int:
    check_keys(config.data, ["mask_fraction", "initialize_gene_embeddings"], "data")
    fraction = mask_fraction(config, 0.15)
    num_masked = int(fraction * corpus.manifest["median_length"])
    if num_masked < 1:
        raise ValueError(
            f"data.mask_fraction {fraction} of a median of {corpus.manifest['median_length']:g} expressed genes masks "
            "no gene"
        )
    return num_masked


def mask_fraction(config: TrainingConfig, default: float) -> float:
    """Give the share of the median cell's genes to mask.

    Raises
    ------
    ValueError
        If it is no share from 0 to below 1.
    """
    fraction = config.data.get("mask_fraction", default)
    if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 <= fraction < 1:
        raise ValueError(f"data.mask_fraction {fraction!r}: it is a share of a cell's genes, from 0 to below 1")
    return fraction


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


def check_held_out(arguments: TrainingArguments, held_out: CellDataset | None, corpus: Corpus) -> None:
    """Refuse to evaluate during training where there are no cells to evaluate on.

    Raises
    ------
    ValueError
        If the trainer is to evaluate and the corpus holds no cells out.
    """
    if held_out is None and arguments.eval_strategy != "no":
        raise ValueError(
            f"{corpus.folder} has no held-out cells to evaluate on: set trainer.eval_strategy=no, or tokenize with "
            "a larger --validation-fraction"
        )


def run_trainer(trainer: CellTrainer, output: str | Path, resume: bool) -> None:
    """Train, from the last checkpoint if there is one, and save the model."""
    checkpoint = last_checkpoint(output) if resume else None
    if checkpoint is not None:
        say(trainer, f"going on from {checkpoint}")
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(str(output))


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


def main(arguments: Sequence[str] | None = None) -> None:
    """Pretrain from the command line."""
    parser = argparse.ArgumentParser(prog="cellglot.training.pretrain", description=__doc__.split(":")[0])
    parser.add_argument(
        "--config", required=True, help="YAML file; training/configs holds those that come with cellglot"
    )
    parser.add_argument("--corpus", required=True, help="folder that cellglot tokenize made")
    parser.add_argument("--output", required=True, help="folder for the model and its checkpoints")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change a setting")
    parser.add_argument("--no-resume", action="store_true", help="start anew even if there is a checkpoint")
    given = parser.parse_args(arguments)
    try:
        metrics = pretrain(
            load_config(given.config, given.set), given.corpus, given.output, resume=not given.no_resume
        )
    except (ValueError, FileNotFoundError) as error:
        parser.exit(2, f"error: {error}\n")
    end(metrics)


def end(metrics: dict[str, float]) -> None:
    """Leave the group of processes, and print the metrics on the main one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        rank = torch.distributed.get_rank()
        torch.distributed.destroy_process_group()
        if rank:
            return
    for name, value in metrics.items():
        print(f"{name}: {value:.4f}")


if __name__ == "__main__":
    main()
