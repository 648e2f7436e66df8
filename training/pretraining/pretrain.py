"""Pretraining of a model on a corpus."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import set_seed

from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.training.config import TrainingConfig, check_keys, read_section, where
from cellglot.training.families.records import FAMILIES
from cellglot.training.run import (
    check_held_out,
    check_vocabulary,
    final_metrics,
    finished_metrics,
    run_training,
    say,
    say_empty_cells,
    training_arguments,
    training_output,
)
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
    """Pretrain a model on a corpus.

    Parameters
    ----------
    corpus
        Folder that ``cellglot tokenize`` made.
    output
        Folder for the model (weights, configuration, tokenizer, code: ready for the Hub), checkpoints and the
        record of the run.
    resume
        Resume from the last checkpoint in `output`, if there is one. A run that is finished is not done again.
    overwrite
        Delete what an earlier run wrote in `output`, and nothing else, and start from the beginning.
    callbacks
        Further callbacks of the trainer.

    Returns
    -------
    dict
        Metrics of the held-out cells, named ``eval_...`` as in the model's recipe; empty without such cells.

    Raises
    ------
    ValueError
        If configuration, corpus and model do not fit together, `output` holds another run, or a loss is not finite.
    """
    corpus = corpus if isinstance(corpus, Corpus) else Corpus.open(corpus)
    family = FAMILIES.of(config.model.get("type"), where(config.model, "model.type"))
    data: Any = read_section(family.pretraining_data, config.data, "data")
    check_keys(config.finetuning, [], where(config.finetuning, "finetuning"))
    arguments = training_arguments(config, output)
    claim = training_output(config, corpus, arguments, output, "pretrain", resume=resume, overwrite=overwrite)
    with claim as claimed:
        if claimed.record is not None:
            return finished_metrics(claimed)
        set_seed(arguments.seed)
        recipe = family.recipe(config.model, data, corpus, arguments.seed)
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
        facts = recipe.facts | {"cells_without_genes": say_empty_cells(trainer, recipe.train, recipe.held_out)}
        return run_training(
            trainer,
            claimed,
            lambda: final_metrics(trainer) if recipe.held_out is not None else {},
            lambda: facts,
        )
