"""Fine-tuning on labels of cells or genes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback

from cellglot.modeling.adapter_folders import cached_revision
from cellglot.modeling.any_model import describe_model
from cellglot.modeling.loading import load_tokenizer
from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.training.choices import ADAPTERS, check_choices
from cellglot.training.config import TrainingConfig, read_section, where
from cellglot.training.families.family import TrainedFamily
from cellglot.training.families.records import FAMILIES, family_of
from cellglot.training.finetuning.cell_types import cell_type_task
from cellglot.training.finetuning.cells import corpus_for, corpus_of_new_model, divide_as_fits
from cellglot.training.finetuning.encoder_cache import EncoderMemory
from cellglot.training.finetuning.genes import gene_task, table_facts, write_gene_labels
from cellglot.training.finetuning.network import new_network, pretrained_network, set_gene_sums, what_learns
from cellglot.training.finetuning.settings import FinetuneSettings, finetune_settings
from cellglot.training.finetuning.several_labels import several_labels_task
from cellglot.training.finetuning.tasks import Task
from cellglot.training.finetuning.trainer import FineTuner
from cellglot.training.finetuning.values import value_task
from cellglot.training.run import (
    check_held_out,
    check_same_vocabulary,
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
from cellglot.training.trainer import count_parameters
from cellglot.training.weight_average import WeightAverage


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
    """Fine-tune a model on labels: see `cellglot.finetune`.

    Held-out cells (whole donors or data sets, if the metadata names them) are for evaluation. The classes are those of
    the training cells. Cells without a label are left out, held-out cells of other classes count as errors; the run
    prints and records both numbers.

    Parameters
    ----------
    config
        The configuration. Its section ``model`` changes fields of the model's configuration; keys of ``finetuning``
        are those of `FinetuneSettings`, keys of ``data`` those of the model's family.
    model
        Folder or repository of a pretrained model; None for a new model with the sizes of the section ``model``.
    label_column
        Column of the corpus with the classes or values.
    gene_labels
        For genes: gene -> class, which is saved as ``gene_labels.json`` with the result; or a file for
        `cellglot.training.data.labels.read_gene_labels`.
    callbacks
        Further callbacks of the trainer.

    Returns
    -------
    dict
        Metrics of the held-out cells, ``eval_accuracy`` and ``eval_macro_f1``, or ``eval_mse``, ``eval_r2`` and
        ``eval_pearson``, or ``eval_auprc`` and ``eval_auroc``; those of test cells begin with ``test``. Empty without
        such cells.
    """
    corpus = corpus if isinstance(corpus, Corpus) else Corpus.open(corpus)
    check_choices(task, method)
    family = _family(config.model, model, method)
    family.model_class(task)
    settings = finetune_settings(config.finetuning, task, method)
    data: Any = read_section(family.finetuning_data, config.data, "data")
    if model is not None and "initialize_gene_embeddings" in config.data:
        raise ValueError(
            f"{where(config.data, 'data')}.initialize_gene_embeddings is only for new models: remove this key"
        )
    arguments = training_arguments(config, output, **settings.of_trainer(config.trainer, task))
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
    return run_once(
        claim,
        lambda claimed: _learn(claimed, family, settings, data, task, method, label_column, gene_labels, callbacks),
    )


def _learn(
    claimed: TrainingOutput,
    family: TrainedFamily,
    settings: FinetuneSettings,
    data: Any,
    task: str,
    method: str,
    label_column: str,
    gene_labels: str | Path | Mapping[str, str] | None,
    callbacks: Sequence[Any],
) -> dict[str, float]:
    config, model, corpus, seed = claimed.config, claimed.base, claimed.corpus, claimed.arguments.seed
    tokenizer = None if model is None else load_tokenizer(model, family.tokenizer_class)
    if tokenizer is not None:
        check_same_vocabulary(tokenizer, corpus, str(model))
    prepared = _task(task, corpus, label_column, gene_labels, settings, seed)
    check_held_out(claimed.arguments, prepared.held_out, corpus, None if task == "gene" else label_column)
    if model is None:
        start = data.initialize_gene_embeddings
        network, tokenizer = new_network(
            family, task, config.model, corpus, seed, initialize_embeddings=start, **prepared.fields
        )
    else:
        network = pretrained_network(family, task, config.model, model, prepared.fields, method)
    check_vocabulary(network, corpus)
    set_gene_sums(network, tokenizer)
    tuned, frozen = what_learns(network, method, family.heads, settings.of_adapter(method))
    collator, eval_collator = family.collators(tokenizer, network.config, data, corpus, seed)
    memory = None
    if method == "probe" and task != "gene" and _is_same_every_epoch(collator):
        memory = EncoderMemory(getattr(network, family.encoder), family.head_reads)
    trainer = FineTuner(
        model=tuned,
        args=claimed.arguments,
        train_dataset=prepared.train,
        eval_dataset=prepared.held_out,
        data_collator=prepared.collator(collator, True),
        processing_class=None if method in ADAPTERS else tokenizer,
        compute_metrics=prepared.metrics,
        description="fine-tuning",
        optimizer_name=config.optimizer.get("name", "adamw"),
        callbacks=[*callbacks, *_callbacks(settings)],
        frozen=frozen,
        memory=memory,
    )
    trainer.eval_data_collator = prepared.collator(eval_collator, False)
    trained = sum(p.numel() for p in tuned.parameters() if p.requires_grad)
    say(trainer, f"{count_parameters(tuned):,} parameters, {trained:,} trained ({method}); {prepared.summary}")
    say_empty_cells(trainer, prepared.train, prepared.held_out, prepared.test)
    facts = {
        "task": task,
        "method": method,
        **_base_facts(claimed),
        "trained_parameters": trained,
        "adapter": settings.of_adapter(method),
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
            lambda: facts | _stopped(trainer, settings) | prepared.facts,
            save,
        )
    finally:
        if memory is not None:
            memory.release()


def _family(section: Mapping[str, Any], model: str | Path | None, method: str) -> TrainedFamily:
    """Return the family of a pretrained model, or of the new model of the section ``model``."""
    if model is not None:
        if describe_model(model).is_adapter:
            raise ValueError(
                f"{model} is an adapter: fine-tune its base model, or merge it first by "
                "cellglot.modeling.adapters.merge_adapter"
            )
        return family_of(model)
    if method != "full":
        raise ValueError(f"method {method!r} needs a pretrained model: pass one, or train a new one in full")
    return FAMILIES.of(section.get("type"), f"{where(section, 'model.type')}, without a pretrained model")


def _callbacks(settings: FinetuneSettings) -> list[Any]:
    stopping = [] if settings.patience is None else [EarlyStoppingCallback(settings.patience)]
    averaging = [] if settings.average_weights is None else [WeightAverage(settings.average_weights)]
    return [*stopping, *averaging]


def _task(
    task: str,
    corpus: Corpus,
    column: str,
    gene_labels: str | Path | Mapping[str, str] | None,
    settings: FinetuneSettings,
    seed: int,
) -> Task:
    if task == "gene":
        if gene_labels is None:
            raise ValueError("the task 'gene' needs a table of genes and their classes: --gene-labels")
        return gene_task(corpus, corpus.tokenizer().vocabulary, gene_labels, settings, seed)
    if gene_labels is not None:
        raise ValueError(f"a table of gene labels is for the task 'gene', not for {task!r}")
    prepare = {"regression": value_task, "multi-label": several_labels_task}.get(task, cell_type_task)
    return prepare(corpus, column, settings, seed)


def _is_same_every_epoch(collator: Any) -> bool:
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
        say(trainer, f"metrics that are undefined for these cells: {', '.join(undefined)}")
        task.facts["undefined_metrics"] = undefined
    return metrics


def _base_facts(claimed: TrainingOutput) -> dict[str, Any]:
    if claimed.base is None:
        return {}
    return {
        "base_model": str(claimed.base),
        "base_model_revision": cached_revision(claimed.base),
        "base_model_fingerprint": claimed.identity["parts"]["base model"]["weights"],
    }


def _stopped(trainer: FineTuner, settings: FinetuneSettings) -> dict[str, Any]:
    if settings.patience is None:
        return {}
    state = trainer.state
    return {"best_step": state.best_global_step, "best_metric": state.best_metric, "steps": state.global_step}


def config_name(model_type: str, method: str) -> str:
    """Return the name of the configuration that comes with the package for a family and a method."""
    return f"{model_type}_finetune.yaml" if method == "full" else f"{model_type}_finetune_adapter.yaml"


def finetune_on(
    config: TrainingConfig,
    model: str | Path | None,
    cells: Sequence[str | Path] | None,
    corpus: str | Path | Corpus | None,
    output: str | Path,
    **options: Any,
) -> dict[str, float]:
    """Run `finetune` on a corpus, or on files of cells, which are tokenized first.

    Parameters
    ----------
    cells
        Files of cells, used if `corpus` is None.
    """
    if corpus is None:
        overwrite = options.get("overwrite", False)
        column = None if options.get("task") == "gene" else options.get("label_column", "cell_type")
        if model is None:
            family = _family(config.model, None, "full")
            corpus = corpus_of_new_model(family.name, cells, output, column, overwrite=overwrite)
        else:
            corpus = corpus_for(model, cells, output, column, overwrite=overwrite)
            config = divide_as_fits(config, corpus)
    return finetune(config, model, corpus, output, **options)


__all__ = ["config_name", "finetune", "finetune_on"]
