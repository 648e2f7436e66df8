"""Pretraining: ``accelerate launch -m cellglot.training.pretrain --config exceiver_small.yaml ...``."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import set_seed

from cellglot.tokenization.corpus import Corpus
from cellglot.training.config import TrainingConfig, check_keys, load_config
from cellglot.training.pretrain_exceiver import exceiver_recipe
from cellglot.training.pretrain_langcell import langcell_recipe
from cellglot.training.pretrain_sccello import sccello_recipe
from cellglot.training.recipe import Recipe
from cellglot.training.run import (
    check_held_out,
    check_vocabulary,
    end,
    final_metrics,
    run_trainer,
    save_run,
    say,
    training_arguments,
)
from cellglot.training.trainer import CellTrainer


RECIPES: dict[str, Callable[..., Recipe]] = {
    "exceiver": exceiver_recipe,
    "langcell": langcell_recipe,
    "sccello": sccello_recipe,
}


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
        Metrics of the held-out cells, named ``eval_...`` as in the model's recipe; empty without such cells.

    Raises
    ------
    ValueError
        If configuration, corpus and model do not fit together.
    """
    corpus = corpus if isinstance(corpus, Corpus) else Corpus.open(corpus)
    kind = config.model.get("type")
    if kind not in RECIPES:
        raise ValueError(f"model.type {kind!r}: the models to pretrain are {', '.join(RECIPES)}")
    check_keys(config.finetuning, [], "finetuning")
    arguments = training_arguments(config, output)
    set_seed(arguments.seed)
    recipe = RECIPES[kind](config, corpus, arguments)
    check_vocabulary(recipe.model, corpus)
    check_held_out(arguments, recipe.held_out, corpus)
    trainer = CellTrainer(
        model=recipe.model,
        args=arguments,
        train_dataset=recipe.train,
        eval_dataset=recipe.held_out,
        data_collator=recipe.collator,
        processing_class=recipe.processing_class,
        compute_metrics=recipe.metrics,
        summarize=recipe.summarize,
        description="pretraining",
        optimizer_name=config.optimizer.get("name", "adamw"),
        callbacks=list(callbacks),
    )
    say(trainer, recipe.summary)
    run_trainer(trainer, output, resume)
    metrics = final_metrics(trainer) if recipe.held_out is not None else {}
    save_run(trainer, output, config, corpus, metrics, recipe.facts)
    return metrics


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


if __name__ == "__main__":
    main()
