"""Few-shot learning of LangCell, by the texts of classes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cellglot.modeling.adapter_folders import cached_revision
from cellglot.modeling.families import knows_texts
from cellglot.modeling.loading import load_model, load_processor
from cellglot.modeling.model_files import check_loaded
from cellglot.modeling.modeling_langcell import LangCellModel
from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.training.config import TrainingConfig, check_keys, read_section, where
from cellglot.training.data.rank_value_collator import rank_value_collator
from cellglot.training.families.records import family_of
from cellglot.training.finetuning.cells import corpus_for
from cellglot.training.finetuning.few_shot_objective import FewShotObjective
from cellglot.training.finetuning.few_shot_task import FewShotSettings, few_shot_task
from cellglot.training.finetuning.trainer import FineTuner
from cellglot.training.run import (
    check_held_out,
    check_same_vocabulary,
    check_vocabulary,
    run_once,
    run_training,
    say,
    say_empty_cells,
    training_arguments,
    training_output,
)
from cellglot.training.runs.output import TrainingOutput
from cellglot.training.trainer import CellTrainer, count_parameters


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
    """Train a LangCell on a few cells of each class, by the texts of the classes.

    The settings of ``langcell_few_shot.yaml`` are those of the released code: Adam at 1e-5, batch 12, 10 epochs. Cells
    are drawn from the training cells by ``trainer.seed``. Held-out cells are for evaluation, before training
    (``zero_shot_...``) and after it.

    Parameters
    ----------
    config
        The configuration; the keys of its section ``data`` are those of `FewShotSettings`.
    model
        Folder or repository of a LangCell.
    corpus
        Cells tokenized with the model's vocabulary.
    output
        Folder for the model, again a LangCell.
    number
        Cells of each class. All cells of a class with fewer are taken; the run prints and records these classes.
    label_column
        Column of the corpus with the classes.
    resume, overwrite, callbacks
        As for `finetune`.

    Returns
    -------
    dict
        ``zero_shot_accuracy``, ``zero_shot_macro_f1``, ``eval_accuracy`` and ``eval_macro_f1`` of the held-out cells,
        with the losses; empty without such cells.

    Raises
    ------
    ValueError
        If there are fewer than two classes, the column does not exist, corpus and model do not fit together, `output`
        contains another run, or a loss is not finite.
    """
    corpus = corpus if isinstance(corpus, Corpus) else Corpus.open(corpus)
    data = read_section(FewShotSettings, config.data, "data")
    check_keys(config.model, [], where(config.model, "model"))
    check_keys(config.finetuning, [], where(config.finetuning, "finetuning"))
    claim = training_output(
        config,
        corpus,
        training_arguments(config, output),
        output,
        "few-shot",
        base=model,
        resume=resume,
        overwrite=overwrite,
        labels=label_column,
        cells_of_each_class=number,
    )
    return run_once(claim, lambda claimed: _learn(claimed, data, number, label_column, callbacks))


def _learn(
    claimed: TrainingOutput, data: FewShotSettings, number: int, label_column: str, callbacks: Sequence[Any]
) -> dict[str, float]:
    arguments, corpus, model = claimed.arguments, claimed.corpus, str(claimed.base)
    loaded, processor = _load(model, corpus)
    task, texts = few_shot_task(corpus, label_column, number, data, arguments.seed)
    check_held_out(arguments, task.held_out, corpus, label_column)
    length = loaded.config.text_config.max_position_embeddings
    tokens = processor(text=texts, return_tensors="pt", text_max_length=length)
    cells = rank_value_collator(
        processor.tokenizer,
        mask_fraction=0.0,
        seed=arguments.seed,
        max_length=loaded.config.cell_config.max_position_embeddings,
    )
    trainer = _FewShotTrainer(
        model=FewShotObjective(loaded, tokens["text_input_ids"], tokens["text_attention_mask"], float(data.alpha)),
        args=arguments,
        train_dataset=task.train,
        eval_dataset=task.held_out,
        data_collator=task.collator(cells, True),
        compute_metrics=task.metrics,
        description="few-shot",
        optimizer_name=claimed.config.optimizer.get("name", "adamw"),
        callbacks=list(callbacks),
    )
    cut = processor.texts_cut
    say(trainer, f"{count_parameters(loaded):,} parameters; {cut:,} texts cut to {length:,} tokens; {task.summary}")
    say_empty_cells(trainer, task.train, task.held_out)

    def save(folder: str) -> None:
        if trainer.is_world_process_zero():
            loaded.save_pretrained(folder)
            processor.save_pretrained(folder)

    facts = {"base_model": model, "base_model_revision": cached_revision(model), "texts_cut": cut}
    return run_training(
        trainer,
        claimed,
        lambda: trainer.zero_shot | _evaluate(trainer, "eval"),
        lambda: facts | task.facts,
        save,
    )


class _FewShotTrainer(FineTuner):
    """Also evaluates the model before training."""

    zero_shot: dict[str, float]

    def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> Any:
        """Evaluate, then train."""
        self.zero_shot = _evaluate(self, "zero_shot")
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)


def _load(model: str | Path, corpus: Corpus) -> tuple[LangCellModel, Any]:
    """Load a LangCell with its text encoder, and its processor."""
    if not knows_texts(family_of(model).name):
        raise ValueError(f"{model} knows no texts: few-shot learning by texts needs a LangCell model")
    loaded, info = load_model(LangCellModel, model, check=False, output_loading_info=True)
    if info["missing_keys"] and not any(key.startswith("cell_model.") for key in info["missing_keys"]):
        raise ValueError(
            f"{model} has no text encoder: it was saved from the cell encoder or a classifier alone. Use the folder "
            "of the pretrained LangCell"
        )
    check_loaded(model, loaded, info)
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
    """Run `few_shot` on a corpus, or on files of cells, which are tokenized first.

    Parameters
    ----------
    cells
        Files of cells, used if `corpus` is None.
    """
    if corpus is None:
        column = options.get("label_column", "cell_type")
        corpus = corpus_for(model, cells, output, column, overwrite=options.get("overwrite", False))
    return few_shot(config, model, corpus, output, number, **options)


__all__ = ["few_shot", "few_shot_on"]
