"""Fine-tuning for cell classification: ``python -m cellglot.training.finetune --config ... --model ... ...``."""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedModel, set_seed
from transformers.utils import logging

from cellglot.tokenization.corpus import Corpus, tokenize_corpus
from cellglot.training.classifiers import ClassifierKind, Labels, classifier_kind
from cellglot.training.collators import class_name
from cellglot.training.config import TrainingConfig, check_keys, load_config
from cellglot.training.data import CellDataset
from cellglot.training.metrics import ClassificationMetrics
from cellglot.training.run import (
    check_held_out,
    check_same_vocabulary,
    check_vocabulary,
    end,
    run_trainer,
    save_run,
    say,
    training_arguments,
)
from cellglot.training.trainer import CellTrainer, count_parameters


def finetune(
    config: TrainingConfig,
    model: str | Path,
    corpus: str | Path | Corpus,
    output: str | Path,
    *,
    label_column: str = "cell_type",
    resume: bool = True,
    callbacks: Sequence[Any] = (),
) -> dict[str, float]:
    """Fine-tune all weights of a model to classify cells.

    Cells held out by the corpus (whole donors where the metadata has them) are for evaluation. Classes are those of
    the training cells; cells without a label are left out, held-out cells of other classes are left out of the
    metrics, and both are counted.

    Parameters
    ----------
    config
        The configuration; its section ``model`` changes fields of the model's own.
    model
        Folder or repository of a pretrained model.
    corpus
        Cells tokenized with the model's vocabulary.
    output
        Folder for the classifier, ready for the Hub.
    label_column
        Column of the corpus that holds the classes.
    resume
        Go on from the last checkpoint in `output`, if there is one.
    callbacks
        Further callbacks of the trainer.

    Returns
    -------
    dict
        ``eval_accuracy`` and ``eval_macro_f1`` of the held-out cells; empty without such cells.

    Raises
    ------
    ValueError
        If there are fewer than two classes, no such column, or corpus and model do not fit together.
    """
    corpus = corpus if isinstance(corpus, Corpus) else Corpus.open(corpus)
    kind = classifier_kind(model)
    tokenizer = kind.tokenizer_class.from_pretrained(model)
    check_same_vocabulary(tokenizer, corpus, model)
    arguments = training_arguments(config, output)
    set_seed(arguments.seed)
    train_labels = labels_of(corpus, "train", label_column)
    classes = sorted({label for label in train_labels if label is not None})
    if len(classes) < 2:
        raise ValueError(
            f"{label_column!r} has {len(classes)} classes among the training cells ({', '.join(classes) or 'none'}): "
            "classification needs two"
        )
    label2id = {label: i for i, label in enumerate(classes)}
    check_keys(config.data, list(kind.data_keys), "data")
    classifier = _load(kind, config, model, classes)
    check_vocabulary(classifier, corpus)
    train = _dataset(corpus, "train", label_column, label2id)
    held_out = None
    if any(label in label2id for label in labels_of(corpus, "validation", label_column)):
        held_out = _dataset(corpus, "validation", label_column, label2id)
    check_held_out(arguments, held_out, corpus)
    facts = _facts(corpus, label_column, label2id, train, held_out)
    collator, eval_collator = kind.collators(
        tokenizer, classifier.config, config, corpus, arguments.seed, Labels(label2id, label_column)
    )
    trainer = CellTrainer(
        model=classifier,
        args=arguments,
        train_dataset=train,
        eval_dataset=held_out,
        data_collator=collator,
        processing_class=tokenizer,
        compute_metrics=ClassificationMetrics(),
        description="fine-tuning",
        optimizer_name=config.optimizer.get("name", "adamw"),
        callbacks=list(callbacks),
    )
    trainer.eval_data_collator = eval_collator
    say(
        trainer,
        f"{count_parameters(classifier):,} parameters, {len(classes)} classes; {facts['training_cells']:,} cells for "
        f"training, {facts['held_out_cells']:,} held out by {corpus.manifest['split']['by']}; left out: "
        f"{facts['cells_without_label']:,} without label, {facts['held_out_cells_of_other_classes']:,} held-out cells "
        "of classes without training cells",
    )
    run_trainer(trainer, output, resume)
    metrics = trainer.evaluate() if held_out is not None else {}
    save_run(trainer, output, config, corpus, metrics, {"base_model": str(model)} | facts)
    return metrics


def _load(kind: ClassifierKind, config: TrainingConfig, model: str | Path, classes: list[str]) -> PreTrainedModel:
    changes = {k: v for k, v in config.model.items() if k != "type"}
    check_keys(changes, list(kind.model_class.config_class.__dataclass_fields__), "model")
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # the table of weights that are new; said in one line instead
    try:
        classifier, info = kind.model_class.from_pretrained(
            model,
            id2label=dict(enumerate(classes)),
            label2id={label: i for i, label in enumerate(classes)},
            output_loading_info=True,
            **changes,
        )
        classifier.config.validate()
    except StrictDataclassError as error:
        raise ValueError(f"model: {error}") from error
    finally:
        logging.set_verbosity(verbosity)
    new = sorted({name.split(".")[0] for name in info["missing_keys"]})
    print(f"{model}: all weights loaded" + (f", new are those of {', '.join(new)}" if new else ""), flush=True)
    return classifier


def labels_of(corpus: Corpus, split: str, column: str) -> list[str | None]:
    """Read the labels of a split's cells, None for cells without one.

    Raises
    ------
    ValueError
        If there is no such column; names those that there are.
    """
    import pyarrow.parquet as pq

    labels: list[str | None] = []
    for shard in corpus.shards(split):
        names = pq.read_schema(shard).names
        if column not in names:
            others = [n for n in names if n not in ("input_ids", "expression_values", "length", "split")]
            raise ValueError(f"no column {column!r} in {corpus.folder}; there are {', '.join(others)}")
        labels += [class_name(value) for value in pq.read_table(shard, columns=[column])[column].to_pylist()]
    return labels


def _dataset(corpus: Corpus, split: str, column: str, label2id: dict[str, int]) -> CellDataset:
    keep = np.array([label in label2id for label in labels_of(corpus, split, column)])
    return CellDataset(corpus, split, columns=[column], least_tokens=1, keep=keep)


def _facts(
    corpus: Corpus, column: str, label2id: dict[str, int], train: CellDataset, held_out: CellDataset | None
) -> dict[str, Any]:
    train_labels, other_labels = labels_of(corpus, "train", column), labels_of(corpus, "validation", column)
    unknown = Counter(label for label in other_labels if label is not None and label not in label2id)
    return {
        "label_column": column,
        "classes": list(label2id),
        "training_cells": len(train),
        "held_out_cells": 0 if held_out is None else len(held_out),
        "cells_without_label": train_labels.count(None) + other_labels.count(None),
        "cells_without_genes": train.left_out + (0 if held_out is None else held_out.left_out),
        "held_out_cells_of_other_classes": sum(unknown.values()),
        "other_classes": dict(unknown),
    }


def corpus_for(
    model: str | Path, cells: Sequence[str | Path], output: str | Path, label_column: str, **options: Any
) -> Corpus:
    """Tokenize cells with a model's own tokenizer, as training data beside the model to be.

    Parameters
    ----------
    model
        Folder or repository of the model.
    cells
        Files of cells.
    output
        Folder of the model to be; tokens go into its folder ``corpus``.
    label_column
        Column of obs that holds the classes.
    **options
        Of `tokenize_corpus`.
    """
    tokenizer = classifier_kind(model).tokenizer_class.from_pretrained(model)
    schema = "cell_type" if label_column == "cell_type" else None
    extra = [] if schema else [label_column]
    return tokenize_corpus(cells, Path(output) / "corpus", tokenizer=tokenizer, obs_columns=extra, **options)


def main(arguments: Sequence[str] | None = None) -> None:
    """Fine-tune from the command line."""
    parser = argparse.ArgumentParser(prog="cellglot.training.finetune", description=__doc__.split(":")[0])
    parser.add_argument(
        "--config", required=True, help="YAML file; training/configs holds those that come with cellglot"
    )
    parser.add_argument("--model", required=True, help="folder or repository of a pretrained model")
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--cells", nargs="+", help="files of cells")
    data.add_argument("--corpus", help="folder that cellglot tokenize made with the model's vocabulary")
    parser.add_argument("--labels", default="cell_type", help="column that holds the classes")
    parser.add_argument("--output", required=True, help="folder for the classifier and its checkpoints")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change a setting")
    parser.add_argument("--no-resume", action="store_true", help="start anew even if there is a checkpoint")
    given = parser.parse_args(arguments)
    try:
        config = load_config(given.config, given.set)
        corpus = given.corpus or corpus_for(given.model, given.cells, given.output, given.labels)
        metrics = finetune(
            config, given.model, corpus, given.output, label_column=given.labels, resume=not given.no_resume
        )
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    end(metrics)


if __name__ == "__main__":
    main()
