"""Pretraining of a model on a corpus."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.training.config import TrainingConfig, check_keys, read_section, where
from cellglot.training.families.records import FAMILIES
from cellglot.training.run import (
    check_held_out,
    check_vocabulary,
    final_metrics,
    run_once,
    run_training,
    say,
    say_empty_cells,
    training_arguments,
    training_output,
)
from cellglot.training.runs.output import TrainingOutput
from cellglot.training.trainer import CellTrainer


def pretrain(
    config: TrainingConfig,
    corpus: str | Path | Corpus,
    output: str | Path,
    *,
    resume: bool = True,
    overwrite: bool = False,
    callbacks: Sequence[Any] = (),
) -> dict[str, float]:
    """Pretrain a model on a corpus: see `cellglot.pretrain`.

    Parameters
    ----------
    callbacks
        Further callbacks of the trainer.
    """
    corpus = corpus if isinstance(corpus, Corpus) else Corpus.open(corpus, contents=None)
    family = FAMILIES.of(config.model.get("type"), where(config.model, "model.type"))
    data: Any = read_section(family.pretraining_data, config.data, "data")
    check_keys(config.finetuning, [], where(config.finetuning, "finetuning"))
    arguments = training_arguments(config, output)
    claim = training_output(config, corpus, arguments, output, "pretrain", resume=resume, overwrite=overwrite)

    def train(claimed: TrainingOutput) -> dict[str, float]:
        recipe = family.recipe(config.model, data, claimed.corpus, arguments.seed)
        check_vocabulary(recipe.model, claimed.corpus)
        check_held_out(arguments, recipe.held_out, claimed.corpus)
        trainer = CellTrainer(
            model=recipe.model,
            args=arguments,
            train_dataset=recipe.train,
            eval_dataset=recipe.held_out,
            data_collator=recipe.collator,
            processing_class=recipe.processing_class,
            compute_metrics=recipe.metrics,
            summarize=recipe.summarize,
            pack_cells=recipe.pack_cells,
            description="pretraining",
            optimizer_name=config.optimizer.get("name", "adamw"),
            callbacks=list(callbacks),
        )
        say(trainer, recipe.summary)
        facts = recipe.facts | {"cells_without_genes": say_empty_cells(trainer, recipe.train, recipe.held_out)}
        return run_training(
            trainer,
            claimed,
            lambda: final_metrics(trainer) if recipe.held_out is not None else {},
            lambda: facts,
        )

    return run_once(claim, train)
