"""Fine-tuning on labels of cells or genes: ``python -m cellglot.training.finetune --config ... --model ... ...``."""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import EarlyStoppingCallback, PreTrainedModel, set_seed
from transformers.utils import logging

from cellglot.modeling.adapter_folders import cached_revision
from cellglot.modeling.adapters import is_adapter
from cellglot.modeling.loading import load_model, load_tokenizer
from cellglot.modeling.model_files import check_loaded
from cellglot.outputs import exit_on_sigterm
from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.tokenization.corpus.tokenize import tokenize_corpus
from cellglot.training.config import TrainingConfig, check_keys, load_config
from cellglot.training.finetuning.adapters import ADAPTERS, put_adapter
from cellglot.training.finetuning.cell_types import cell_type_task
from cellglot.training.finetuning.encoder_cache import EncoderMemory
from cellglot.training.finetuning.genes import gene_task, table_facts, write_gene_labels
from cellglot.training.finetuning.heads import CLASSIFIERS, TASKS, ClassifierKind, classifier_kind
from cellglot.training.finetuning.new_model import corpus_of_new_model, new_model
from cellglot.training.finetuning.tasks import Task
from cellglot.training.finetuning.trainer import FineTuner
from cellglot.training.finetuning.values import value_task
from cellglot.training.pretraining.recipe import with_expression_values
from cellglot.training.run import (
    check_held_out,
    check_same_vocabulary,
    check_vocabulary,
    end,
    final_metrics,
    finished_metrics,
    run_record,
    run_training,
    say,
    say_empty_cells,
    training_arguments,
    training_output,
)
from cellglot.training.runs.output import TrainingOutput, check_no_other_model
from cellglot.training.trainer import count_parameters
from cellglot.training.weight_average import WeightAverage


METHODS = ("full", "probe", *ADAPTERS)
SETTINGS = {
    "every run": ["split", "patience", "average_weights"],
    "cell-type": ["class_weights", "ontology", "unlikely_labels"],
    "gene": ["class_weights", "held_out_genes"],
    "regression": [],
    "lora": ["rank", "alpha", "dropout"],
    "dora": ["rank", "alpha", "dropout"],
}


def finetune(
    config: TrainingConfig,
    model: str | Path | None,
    corpus: str | Path | Corpus,
    output: str | Path,
    *,
    task: str = "cell-type",
    method: str = "full",
    label_column: str = "cell_type",
    gene_labels: str | Path | Mapping[str, str] | None = None,
    resume: bool = True,
    overwrite: bool = False,
    callbacks: Sequence[Any] = (),
) -> dict[str, float]:
    """Fine-tune a model on labels.

    Held-out cells (whole donors or data sets where the metadata has them) are for evaluation. Classes are those of
    the training cells; cells without a label are left out, held-out cells of other classes count as errors, and both
    are counted.

    Parameters
    ----------
    config
        The configuration. Its section ``model`` changes fields of the model's own; keys of ``finetuning`` are
        ``split`` (``corpus`` or ``stratified``), ``patience`` (evaluations without improvement after which training
        stops; the best state is kept), ``average_weights`` (share of the last steps whose mean weights are kept),
        ``class_weights`` (``balanced``), ``ontology``, ``unlikely_labels`` (training
        cells that look like another class: ``keep``, ``leave_out``, ``unchecked``), ``held_out_genes``, and ``rank``,
        ``alpha`` and ``dropout`` of LoRA and DoRA.
    model
        Folder or repository of a pretrained model. None for a new one of the section ``model``.
    corpus
        Cells tokenized with the model's vocabulary.
    output
        Folder for the result: a model ready for the Hub, or an adapter.
    task
        ``"cell-type"`` (or any class of cells), ``"gene"`` or ``"regression"``.
    method
        ``"full"``: all weights learn. ``"probe"``: the head alone. ``"lora"``, ``"dora"``, ``"ia3"``: the head and an
        adapter.
    label_column
        Column of the corpus that holds classes or values.
    gene_labels
        For genes: gene -> class, which is written as ``gene_labels.json`` beside the result, or a file that
        `cellglot.training.data.labels.read_gene_labels` reads.
    resume
        Resume from the last checkpoint in `output`, if there is one. A run that is finished is not done again.
    overwrite
        Delete what an earlier run wrote in `output`, and nothing else, and start from the beginning.
    callbacks
        Further callbacks of the trainer.

    Returns
    -------
    dict
        Metrics of the held-out cells, ``eval_accuracy`` and ``eval_macro_f1`` or ``eval_mse``, ``eval_r2`` and
        ``eval_pearson``; those of test cells begin with ``test``. Empty without such cells.

    Raises
    ------
    ValueError
        If there are fewer than two classes, no such column, corpus, model, task and method do not fit together,
        `output` holds another run, or a loss is not finite.
    """
    corpus = corpus if isinstance(corpus, Corpus) else Corpus.open(corpus)
    kind = _kind(config, model, method)
    model_class = kind.model_class(task)
    settings = _settings(config, task, method)
    arguments = training_arguments(_with_early_stopping(config, settings, task), output)
    claim = training_output(
        config,
        corpus,
        arguments,
        output,
        "finetune",
        base=model,
        resume=resume,
        overwrite=overwrite,
        inputs=[] if gene_labels is None or isinstance(gene_labels, Mapping) else [gene_labels],
        task=task,
        method=method,
        labels=None if task == "gene" else label_column,
        gene_labels=None if gene_labels is None else table_facts(gene_labels)["sha256"],
    )
    with claim as claimed:
        if claimed.record is not None:
            return finished_metrics(claimed)
        set_seed(arguments.seed)
        tokenizer = None if model is None else load_tokenizer(model, kind.tokenizer_class)
        if tokenizer is not None:
            check_same_vocabulary(tokenizer, corpus, str(model))
        vocabulary = corpus.tokenizer().vocabulary
        prepared = _task(task, corpus, vocabulary, label_column, gene_labels, settings, arguments.seed)
        check_held_out(arguments, prepared.held_out, corpus, None if task == "gene" else label_column)
        keys = [*kind.data_keys, *(["initialize_gene_embeddings"] if model is None else [])]
        check_keys(config.data, keys, "data")
        if model is None:
            made, tokenizer = new_model(model_class, config, corpus, arguments.seed, **prepared.fields)
        else:
            made = _load(model_class, config, model, prepared.fields)
        check_vocabulary(made, corpus)
        tuned, frozen = _prepare(made, method, kind.heads[model_class], settings)
        collator, eval_collator = kind.collators(tokenizer, made.config, config, corpus, arguments.seed)
        memory = None
        if method == "probe" and task != "gene" and _gives_the_same_every_epoch(collator):
            memory = EncoderMemory(getattr(made, kind.encoder), kind.head_reads)
        trainer = FineTuner(
            model=tuned,
            args=arguments,
            train_dataset=prepared.train,
            eval_dataset=prepared.held_out,
            data_collator=prepared.collator(collator, True),
            processing_class=None if method in ADAPTERS else tokenizer,
            compute_metrics=prepared.metrics,
            description="fine-tuning",
            optimizer_name=config.optimizer.get("name", "adamw"),
            callbacks=[*callbacks, *_early_stopping(settings), *_averaging(settings)],
            frozen=frozen,
            memory=memory,
        )
        trainer.eval_data_collator = prepared.collator(eval_collator, False)
        trained = sum(p.numel() for p in tuned.parameters() if p.requires_grad)
        say(
            trainer,
            f"{count_parameters(tuned):,} parameters, {trained:,} of them learn ({method}); {prepared.summary}",
        )
        say_empty_cells(trainer, prepared.train, prepared.held_out, prepared.test)
        facts = {
            "task": task,
            "method": method,
            **({} if model is None else _base_facts(model, claimed)),
            "trained_parameters": trained,
            "adapter": {k: settings[k] for k in SETTINGS.get(method, []) if k in settings},
        }

        def save(folder: str) -> None:
            trainer.save_model(folder)
            if isinstance(gene_labels, Mapping) and trainer.is_world_process_zero():
                write_gene_labels(gene_labels, folder)

        try:
            return run_training(
                trainer,
                claimed,
                lambda: _evaluate(trainer, prepared),
                lambda metrics: run_record(
                    trainer, config, corpus, metrics, facts | _stopped(trainer, settings) | prepared.facts
                ),
                save,
            )
        finally:
            if memory is not None:
                memory.release()


# -------------------------------------------------------------------- what is asked for


def _kind(config: TrainingConfig, model: str | Path | None, method: str) -> ClassifierKind:
    if method not in METHODS:
        raise ValueError(f"method {method!r}: it is one of {', '.join(METHODS)}")
    if model is not None:
        if is_adapter(model):
            raise ValueError(
                f"{model} is an adapter: fine-tune its base model, or merge it first by "
                "cellglot.modeling.adapters.merge_adapter"
            )
        return classifier_kind(model)
    if method != "full":
        raise ValueError(f"method {method!r} needs a pretrained model: pass one, or train a new one in full")
    return CLASSIFIERS[_new_type(config)]


def _new_type(config: TrainingConfig) -> str:
    found = config.model.get("type")
    if found not in CLASSIFIERS:
        raise ValueError(f"model.type {found!r}: without a pretrained model it is one of {', '.join(CLASSIFIERS)}")
    return found


def _settings(config: TrainingConfig, task: str, method: str) -> dict[str, Any]:
    """Check the section ``finetuning``; settings of other tasks may stand there and mean nothing."""
    of_tasks = [name for other in TASKS for name in SETTINGS[other]]
    known = [*SETTINGS["every run"], *of_tasks, *SETTINGS.get(method, [])]
    check_keys(config.finetuning, known, f"finetuning ({task}, {method}): setting")
    patience = config.finetuning.get("patience")
    if patience is not None and (isinstance(patience, bool) or not isinstance(patience, int) or patience < 1):
        raise ValueError(f"finetuning.patience {patience!r}: it is a whole number of evaluations from 1 on")
    if patience is not None and config.finetuning.get("average_weights") is not None:
        raise ValueError("finetuning.patience keeps the best state, average_weights a mean: set one of them to null")
    _averaging(config.finetuning)
    return dict(config.finetuning)


def _with_early_stopping(config: TrainingConfig, settings: Mapping[str, Any], task: str) -> TrainingConfig:
    """Let the trainer keep the best state where training is to stop early."""
    if settings.get("patience") is None:
        return config
    if config.trainer.get("eval_strategy", "no") in ("no", False):
        raise ValueError("finetuning.patience counts evaluations: set trainer.eval_strategy to epoch or steps")
    best = "eval_mse" if task == "regression" else "eval_macro_f1"
    added = {
        "load_best_model_at_end": True,
        "metric_for_best_model": best,
        "greater_is_better": task != "regression",
    }
    return dataclasses.replace(config, trainer=added | config.trainer)


def _early_stopping(settings: Mapping[str, Any]) -> list[Any]:
    patience = settings.get("patience")
    return [] if patience is None else [EarlyStoppingCallback(early_stopping_patience=patience)]


def _averaging(settings: Mapping[str, Any]) -> list[Any]:
    share = settings.get("average_weights")
    return [] if share is None else [WeightAverage(share)]


def _task(
    task: str,
    corpus: Corpus,
    vocabulary: Any,
    column: str,
    gene_labels: str | Path | Mapping[str, str] | None,
    settings: Mapping[str, Any],
    seed: int,
) -> Task:
    if task == "gene":
        if gene_labels is None:
            raise ValueError("the task 'gene' needs a table of genes and their classes: --gene-labels")
        return gene_task(corpus, vocabulary, gene_labels, settings, seed)
    if gene_labels is not None:
        raise ValueError(f"a table of gene labels is for the task 'gene', not for {task!r}")
    return (value_task if task == "regression" else cell_type_task)(corpus, column, settings, seed)


# -------------------------------------------------------------------- the model


def _load(
    model_class: type[PreTrainedModel], config: TrainingConfig, model: str | Path, fields: dict[str, Any]
) -> PreTrainedModel:
    changes = {k: v for k, v in config.model.items() if k != "type"}
    check_keys(changes, list(model_class.config_class.__dataclass_fields__), "model")
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # the table of weights that are new; said in one line instead
    try:
        made, info = load_model(
            model_class,
            model,
            check=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **fields,
            **changes,
        )
        made.config.validate()
    except StrictDataclassError as error:
        raise ValueError(f"model: {error}") from error
    finally:
        logging.set_verbosity(verbosity)
    encoder = CLASSIFIERS[model_class.config_class.model_type].encoder
    check_loaded(model, made, info, new=[name for name, _ in made.named_children() if name != encoder])
    other = {name for name, *_ in info["mismatched_keys"]}
    new = sorted({name.split(".")[0] for name in {*info["missing_keys"], *other}})
    print(f"{model}: all weights loaded" + (f", new are those of {', '.join(new)}" if new else ""), flush=True)
    return made


def _prepare(
    model: PreTrainedModel, method: str, heads: tuple[str, ...], settings: Mapping[str, Any]
) -> tuple[Any, list[nn.Module]]:
    """Return the model that learns, and the modules of it that are frozen and run as in evaluation."""
    if method in ADAPTERS:
        sizes = {k: settings[k] for k in SETTINGS.get(method, []) if k in settings}
        return put_adapter(model, method, heads, sizes), []
    if method == "full":
        return model, []
    model.requires_grad_(False)
    for name in heads:
        model.get_submodule(name).requires_grad_(True)
    frozen = [m for name, m in model.named_children() if name not in heads and any(True for _ in m.parameters())]
    return model, frozen


def _gives_the_same_every_epoch(collator: Any) -> bool:
    return collator.thinning is None and not getattr(collator, "num_masked", 0)


# -------------------------------------------------------------------- results


def _evaluate(trainer: FineTuner, task: Task) -> dict[str, float]:
    metrics = final_metrics(trainer) if task.held_out is not None else {}
    if task.test is not None:
        metrics |= trainer.evaluate(task.test, metric_key_prefix="test")
    undefined = [
        f"{part}_{name}"
        for part, cells in (("eval", task.held_out), ("test", task.test))
        for name in task.metric_names
        if cells is not None and f"{part}_{name}" not in metrics
    ]
    if undefined:
        say(trainer, f"undefined for these cells, and left out: {', '.join(undefined)}")
        task.facts["undefined_metrics"] = undefined
    return metrics


def _base_facts(model: str | Path, claimed: TrainingOutput) -> dict[str, Any]:
    return {
        "base_model": str(model),
        "base_model_revision": cached_revision(model),
        "base_model_fingerprint": claimed.identity["parts"]["base model"]["weights"],
    }


def _stopped(trainer: FineTuner, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Say which step's weights were kept."""
    if settings.get("patience") is None:
        return {}
    state = trainer.state
    return {"best_step": state.best_global_step, "best_metric": state.best_metric, "steps": state.global_step}


def corpus_for(
    model: str | Path, cells: Sequence[str | Path], output: str | Path, label_column: str | None, **options: Any
) -> Corpus:
    """Tokenize cells with a model's own tokenizer, as training data beside the model to be.

    Parameters
    ----------
    model
        Folder or repository of the model.
    output
        Folder of the model to be; tokens go into its folder ``corpus``.
    label_column
        Column of obs that holds classes or values, None for none.
    **options
        Of `tokenize_corpus`.
    """
    tokenizer = load_tokenizer(model, classifier_kind(model).tokenizer_class)
    extra = [] if label_column in (None, "cell_type") else [label_column]
    tokenizer = with_expression_values(tokenizer)
    return tokenize_corpus(cells, Path(output) / "corpus", tokenizer=tokenizer, obs_columns=extra, **options)


def divide_as_fits(config: TrainingConfig, corpus: Corpus) -> TrainingConfig:
    """Let cells be divided by class where the corpus, made for this fine-tuning, knows no donors or data sets.

    Not for a new model, whose gene statistics are those of the corpus's own training cells.

    Parameters
    ----------
    config
        The configuration; what it says itself counts.
    corpus
        From `corpus_for`.
    """
    if corpus.manifest["split"]["by"] != "cell":
        return config
    return dataclasses.replace(config, finetuning={"split": "stratified"} | config.finetuning)


def config_name(model_type: str, method: str) -> str:
    """Return the configuration that comes with the package for a model and a method.

    Parameters
    ----------
    model_type
        ``"exceiver"``, ``"langcell"`` or ``"sccello"``.
    method
        As for `finetune`.
    """
    return f"{model_type}_finetune.yaml" if method == "full" else f"{model_type}_finetune_adapter.yaml"


def main(arguments: Sequence[str] | None = None) -> None:
    """Fine-tune from the command line."""
    parser = argparse.ArgumentParser(prog="cellglot.training.finetuning.finetune", description=__doc__.split(":")[0])
    parser.add_argument(
        "--config", required=True, help="YAML file; training/configs holds those that come with cellglot"
    )
    parser.add_argument("--model", help="folder or repository of a pretrained model; without it a new one is made")
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--cells", nargs="+", help="files of cells")
    data.add_argument("--corpus", help="folder that cellglot tokenize made with the model's vocabulary")
    parser.add_argument("--task", choices=TASKS, default="cell-type", help="what to predict (default %(default)s)")
    parser.add_argument("--method", choices=METHODS, default="full", help="what learns (default %(default)s)")
    parser.add_argument("--labels", default="cell_type", help="column that holds the classes or values")
    parser.add_argument("--gene-labels", help="table of genes and classes, for --task gene")
    parser.add_argument("--output", required=True, help="folder for the model or adapter and its checkpoints")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change a setting")
    parser.add_argument("--no-resume", action="store_true", help="start again even if there is a checkpoint")
    parser.add_argument("--overwrite", action="store_true", help="delete what an earlier run wrote, and start again")
    given = parser.parse_args(arguments)
    exit_on_sigterm()
    try:
        metrics = finetune_on(
            load_config(given.config, given.set),
            given.model,
            given.cells,
            given.corpus,
            given.output,
            task=given.task,
            method=given.method,
            label_column=given.labels,
            gene_labels=given.gene_labels,
            resume=not given.no_resume,
            overwrite=given.overwrite,
        )
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    end(metrics)


def finetune_on(
    config: TrainingConfig,
    model: str | Path | None,
    cells: Sequence[str | Path] | None,
    corpus: str | Path | Corpus | None,
    output: str | Path,
    **options: Any,
) -> dict[str, float]:
    """Fine-tune on files of cells, which are tokenized first, or on a corpus.

    Parameters
    ----------
    config, model, corpus, output, **options
        As for `finetune`.
    cells
        Files of cells, where there is no corpus.

    Raises
    ------
    ValueError
        If there are neither cells nor a corpus.
    """
    if corpus is None:
        if not cells:
            raise ValueError("pass labelled cells, or their tokens as a corpus")
        overwrite = options.get("overwrite", False)
        if not overwrite:
            check_no_other_model(output)
        column = None if options.get("task") == "gene" else options.get("label_column", "cell_type")
        if model is None:
            extra = [] if column in (None, "cell_type") else [column]
            corpus = corpus_of_new_model(_new_type(config), cells, output, extra, overwrite=overwrite)
        else:
            corpus = corpus_for(model, cells, output, column, overwrite=overwrite)
            config = divide_as_fits(config, corpus)
    return finetune(config, model, corpus, output, **options)


if __name__ == "__main__":
    main()


__all__ = ["METHODS", "config_name", "corpus_for", "divide_as_fits", "finetune", "finetune_on"]
