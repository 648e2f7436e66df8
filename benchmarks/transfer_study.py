"""Training on one set of cells, testing on sets of other laboratories: ``python -m transfer_study``.

This script writes the tables of docs/studies/transfer.md.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import vstack
from transfer_sets import (
    MARKER_SETS,
    TEST_SETS,
    TRAIN_COLUMN,
    TRAIN_FILE,
    Labelled,
    cells_of,
    held_out_cells,
    identical_cells,
    log_counts_on,
    open_marker_set,
    open_test_set,
    some_cells,
)

from cellglot.evaluation.benchmark.baselines import logistic_regression, majority
from cellglot.evaluation.embedding import class_names, run_model
from cellglot.modeling.loading import load_model, load_tokenizer
from cellglot.outputs import sha256, write_json
from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.tokenization.families import FAMILIES as INPUTS
from cellglot.tokenization.reading.cells import read_cells
from cellglot.tokenization.reading.labels import read_labels
from cellglot.training.config import configs_folder, load_config
from cellglot.training.data.expression import CorpusExpression
from cellglot.training.data.label_check import check_labels
from cellglot.training.families.records import FAMILIES
from cellglot.training.finetuning.cells import corpus_of_new_model
from cellglot.training.finetuning.finetune import finetune


RESULTS_FILE, DATA_FILE = "transfer_study.json", "study_data.json"

PLAIN = [
    "data.initialize_gene_embeddings=false",
    "data.thin_to_median=null",
    "data.drop_tokens=null",
]
CLS = {"sccello": ["model.pooling=cls"], "langcell": ["model.cell_config.pooling=cls"], "exceiver": []}
# Name -> changes of the configuration in the package.
SETTINGS: dict[str, list[str]] = {
    "default": [],
    "no thinning, no dropout of tokens": ["data.thin_to_median=null", "data.drop_tokens=null"],
    "no thinning": ["data.thin_to_median=null"],
    "no dropout of tokens": ["data.drop_tokens=null"],
    "a share of each cell's counts": ["data.thin_to_median=null", "data.thin_counts=[0.2, 1.0]"],
    "random gene embeddings": ["data.initialize_gene_embeddings=false"],
    "unlikely labels kept": ["finetuning.unlikely_labels=keep"],
    "rate 1e-3": ["trainer.learning_rate=1e-3"],
}


def settings_of(model_type: str, name: str) -> list[str]:
    """Return the changes of the configuration with a name.

    Parameters
    ----------
    model_type
        ``"exceiver"``, ``"langcell"`` or ``"sccello"``.
    name
        One of `SETTINGS`, ``"<cls>"`` or ``"plain"``, without all that the default adds.

    Raises
    ------
    ValueError
        If the name does not exist.
    """
    if name == "plain":
        return PLAIN + CLS[model_type]
    if name == "<cls>":
        return CLS[model_type]
    if name not in SETTINGS:
        raise ValueError(f"no settings {name!r}: there are plain, <cls>, {', '.join(SETTINGS)}")
    return SETTINGS[name]


# -------------------------------------------------------------------- scores


def scores(predicted: np.ndarray, test: Labelled) -> dict[str, Any]:
    """Return accuracy, its mean over labels, and the predicted classes of each label's cells."""
    right = np.array([p in classes for p, classes in zip(predicted, test.right, strict=True)])
    of_label = {label: right[test.labels == label] for label in sorted(set(test.labels))}
    return {
        "cells": len(right),
        "accuracy": float(right.mean()),
        "balanced_accuracy": float(np.mean([r.mean() for r in of_label.values()])),
        "taken_for": {label: _counted(predicted[test.labels == label]) for label in of_label},
    }


def _counted(values: np.ndarray) -> dict[str, int]:
    names, counts = np.unique(values.astype(str), return_counts=True)
    return {str(n): int(c) for n, c in zip(names, counts, strict=True)}


def baseline_scores(corpus: Corpus, data: Path, tests: Sequence[Labelled]) -> dict[str, dict[str, Any]]:
    """Score the most frequent class, and logistic regression on log counts of the genes of the training file.

    The regression also without training cells that look like another class, as for the models.
    """
    vocabulary = corpus.tokenizer().vocabulary
    train = cells_of(corpus, "train", data)
    labels = read_labels(train.obs["cell_type"]).texts
    classes, known = pd.factorize(labels, sort=True)[0], np.array([label is not None for label in labels], dtype=bool)
    parts = [log_counts_on(vocabulary, train), *(log_counts_on(vocabulary, test.cells) for test in tests)]
    features = vstack(parts, format="csr")
    is_train = np.append(known, np.zeros(features.shape[0] - len(labels), dtype=bool))
    every = np.concatenate([np.where(known, labels, ""), np.full(features.shape[0] - len(labels), "", dtype=object)])
    is_test = np.arange(features.shape[0]) >= len(labels)
    likely = is_train.copy()
    likely[: len(labels)] = known & ~check_labels(CorpusExpression(corpus), classes).unlikely
    regression = logistic_regression(features, every, likely, is_test)
    regression.name += ", no unlikely labels"
    ends = np.cumsum([len(test.labels) for test in tests])[:-1]
    found = {}
    for result in (
        majority(every, is_train, is_test),
        logistic_regression(features, every, is_train, is_test),
        regression,
    ):
        pieces = np.split(result.predicted, ends)
        found[result.name] = {test.name: scores(piece, test) for piece, test in zip(pieces, tests, strict=True)}
    return found


def model_scores(
    model_type: str, changes: Sequence[str], seed: int, corpus: Corpus, tests: Sequence[Labelled], output: Path
) -> dict[str, Any]:
    """Train a new model with the package's configuration and changes (``section.key=value``), and score it."""
    changes = [*changes, f"trainer.seed={seed}", "trainer.save_strategy=no"]
    config = load_config(f"{model_type}_small_finetune.yaml", [*changes, "trainer.eval_strategy=no"])
    started = time.monotonic()
    finetune(config, None, corpus, output, label_column=TRAIN_COLUMN, overwrite=True)
    seconds = time.monotonic() - started
    model: Any = load_model(FAMILIES[model_type].model_class("cell-type"), output)
    tokenizer = load_tokenizer(output, FAMILIES[model_type].tokenizer_class)
    classes = [model.config.id2label[i] for i in range(model.config.num_labels)]
    found: dict[str, Any] = {"changes": changes, "seconds_of_training": round(seconds, 1), "tests": {}}
    for test in tests:
        logits = run_model(model, tokenizer, test.cells, "logits", progress=False, min_coverage=0.0)
        found["tests"][test.name] = scores(class_names(logits, classes), test)
    return found


# -------------------------------------------------------------------- the run


def earlier_results(output: Path, data: Path, most: int | None, overwrite: bool = False) -> dict[str, Any]:
    """Read the rows of an earlier run on the same cells, which are not computed again; record which cells these are.

    Parameters
    ----------
    output
        Folder of the study; ``study_data.json`` has digests of its cells and configurations.
    data
        Folder of the cells.
    most
        Number of cells to score of each set, None for all.
    overwrite
        Ignore earlier rows and compute them again.

    Raises
    ------
    ValueError
        If the rows are of other cells or configurations, or this is unknown; the message has the differences.
    """
    files = [TRAIN_FILE, *(test.file for test in TEST_SETS), *(test.file for test in MARKER_SETS)]
    now: dict[str, Any] = {file: sha256(data / file) for file in files if (data / file).is_file()}
    now |= {path.name: sha256(path) for path in sorted(configs_folder().glob("*_small_finetune.yaml"))}
    now["--most"] = most
    record, noted = output / RESULTS_FILE, output / DATA_FILE
    results = json.loads(record.read_text(encoding="utf-8")) if record.exists() and not overwrite else {}
    way_out = "Choose another folder with --output, or compute all rows again with --overwrite"
    if results and not noted.exists():
        raise ValueError(f"{record} does not record which cells its rows are from. {way_out}")
    there = json.loads(noted.read_text(encoding="utf-8")) if results else now
    changed = [name for name in sorted(there.keys() | now.keys()) if there.get(name) != now.get(name)]
    if changed:
        said = (f"{name}: {str(there.get(name))[:12]} there, {str(now.get(name))[:12]} now" for name in changed)
        raise ValueError(f"{record} is a study that differs in {'; '.join(said)}. {way_out}")
    write_json(noted, now)
    return results


def table(results: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Return results (row -> set -> scores) as Markdown: a row a method, accuracy / mean over labels for each set."""
    names = list(next(iter(results.values())))
    lines = ["| | " + " | ".join(names) + " |", "| --- |" + " --- |" * len(names)]
    for row, tests in results.items():
        pairs = (f"{tests[n]['accuracy']:.3f} / {tests[n]['balanced_accuracy']:.3f}" for n in names)
        lines.append(f"| {row} | " + " | ".join(pairs) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study from the command line."""
    parser = argparse.ArgumentParser(prog="transfer_study", description=__doc__.split(":")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the folders cells and corpus")
    parser.add_argument("--output", type=Path, required=True, help="folder for models and transfer_study.json")
    parser.add_argument("--models", nargs="*", default=sorted(FAMILIES), choices=sorted(FAMILIES))
    parser.add_argument("--settings", nargs="*", default=["default"], help=f"of plain, <cls>, {', '.join(SETTINGS)}")
    parser.add_argument("--set", nargs="*", default=[], metavar="SECTION.KEY=VALUE", help="further changes")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--most", type=int, help="maximum number of cells to score of each set")
    parser.add_argument("--overwrite", action="store_true", help="compute the rows of an earlier run again")
    parser.add_argument("--baselines", action="store_true", help="also score the baselines, and count identical cells")
    given = parser.parse_args(arguments)
    for name in given.settings:
        settings_of("sccello", name)
    given.output.mkdir(parents=True, exist_ok=True)
    record = given.output / RESULTS_FILE
    try:
        results = earlier_results(given.output, given.data, given.most, given.overwrite)
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    corpora: dict[str, Corpus] = {}

    def corpus_of(kind: str) -> Corpus:
        name = INPUTS[kind].kind
        if name not in corpora:
            corpora[name] = corpus_of_new_model(
                kind, [given.data / TRAIN_FILE], given.output / name, TRAIN_COLUMN, processes=1, progress=False
            )
        return corpora[name]

    vocabulary = corpus_of("exceiver").tokenizer().vocabulary
    tests = [open_test_set(test, given.data) for test in TEST_SETS]
    tests += [open_marker_set(test, given.data, vocabulary) for test in MARKER_SETS]

    def every(kind: str) -> list[Labelled]:
        sets = [held_out_cells(corpus_of(kind), given.data, thinned) for thinned in (False, True)] + tests
        return sets if given.most is None else some_cells(sets, given.most)

    def note(row: str, found: dict[str, Any]) -> None:
        results[row] = found
        write_json(record, results)
        print(table({row: found["tests"]}), flush=True)

    if given.baselines:
        train = read_cells(given.data / TRAIN_FILE)
        for test in tests:
            same = identical_cells(vocabulary, train, read_cells(test.cells))
            print(f"{test.name}: {same} of {len(test.labels):,} cells are cells of the training file")
        for row, found in baseline_scores(corpus_of("exceiver"), given.data, every("exceiver")).items():
            note(row, {"tests": found})
    for name in given.settings:
        for kind in given.models:
            for seed in given.seeds:
                row = ", ".join([kind, name, *given.set, f"seed {seed}"])
                if row not in results:
                    changes = [*settings_of(kind, name), *given.set]
                    note(row, model_scores(kind, changes, seed, corpus_of(kind), every(kind), given.output / "model"))
    print(table({row: found["tests"] for row, found in results.items()}))


if __name__ == "__main__":
    main()
