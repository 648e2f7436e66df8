"""Training on one set of cells, testing on sets of other laboratories: ``python -m cellglot.training.transfer_study``.

The tables of docs/experiments.md come from here.
"""

import argparse
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from anndata import AnnData
from scipy.sparse import csr_matrix, vstack

from cellglot.evaluation.baselines import log_counts, logistic_regression, majority
from cellglot.evaluation.embedding import run_model
from cellglot.tokenization.cells import Cells, read_cells
from cellglot.tokenization.corpus import Corpus
from cellglot.tokenization.gene_vocabulary import GeneVocabulary
from cellglot.training.classifiers import CLASSIFIERS
from cellglot.training.config import load_config
from cellglot.training.finetune import finetune
from cellglot.training.new_model import corpus_of_new_model


TRAIN_FILE, TRAIN_COLUMN = "cells/pbmc_facs.h5ad", "subpop"
B, MONOCYTE, STEM, NK, T = ("B cell",), ("CD14+",), ("CD34+",), ("NK cell",), ("T cell",)


@dataclass(frozen=True)
class TestSet:
    """Cells that no model is trained on.

    Parameters
    ----------
    name
        What the tables call it.
    file
        In the folder of data.
    column
        Column of labels.
    classes
        Label -> classes of the training cells that are right for it; cells of other labels are left out.
    """

    name: str
    file: str
    column: str
    classes: Mapping[str, tuple[str, ...]]


TEST_SETS = [
    TestSet(
        "3 chemistries",
        "cells/pbmc_3tech.h5ad",
        "cell_type",
        {"T/NK cells": T + NK, "Monocytes": MONOCYTE, "B cells": B},
    ),
    TestSet(
        "sorted",
        "cells/pbmc_sorted_all_genes.h5ad",
        "cell_type",
        {"B cells": B, "CD4 T cells": T, "CD8 T cells": T},
    ),
    TestSet(
        "765 genes",
        "cells/pbmc68k_reduced_counts.h5ad",
        "cell_type",
        {
            "CD14+ Monocyte": MONOCYTE,
            "CD19+ B": B,
            "CD34+": STEM,
            "CD56+ NK": NK,
            "CD4+/CD25 T Reg": T,
            "CD4+/CD45RA+/CD25- Naive T": T,
            "CD4+/CD45RO+ Memory": T,
            "CD8+ Cytotoxic T": T,
            "CD8+/CD45RA+ Naive Cytotoxic": T,
        },
    ),
    TestSet(
        "liver",
        "corpus/liver_heorgan_curatedatlas.h5ad",
        "cell_type",
        {
            "B Cell Liver": B,
            "Monocyte Liver": MONOCYTE,
            "NK/T Cell Liver": T + NK,
            "CD8 T Cell GZMK_high Liver": T,
            "CD8 T Cell TRBV4-2_high Liver": T,
            "T Cell LTB_high Liver": T,
            "T Cell MT1E_high Liver": T,
        },
    ),
    TestSet(
        "T cells, COVID",
        "corpus/tcell_covid_trex.h5ad",
        "cell_type",
        {"T cell (CD3+ sorted, as the package documentation states)": T},
    ),
]

PLAIN = [
    "data.initialize_gene_embeddings=false",
    "data.thin_to_median=null",
    "data.drop_tokens=null",
]
CLS = {"sccello": ["model.pooling=cls"], "langcell": ["model.cell_config.pooling=cls"], "exceiver": []}
# Name -> changes of the configuration that comes with the package.
SETTINGS: dict[str, list[str]] = {
    "default": [],
    "no thinning, no dropout of tokens": ["data.thin_to_median=null", "data.drop_tokens=null"],
    "no thinning": ["data.thin_to_median=null"],
    "no dropout of tokens": ["data.drop_tokens=null"],
    "a share of each cell's counts": ["data.thin_to_median=null", "data.thin_counts=[0.2, 1.0]"],
    "random gene embeddings": ["data.initialize_gene_embeddings=false"],
    "rate 1e-3": ["trainer.learning_rate=1e-3"],
}


def settings_of(model_type: str, name: str) -> list[str]:
    """Give the changes of the configuration that a name stands for.

    Parameters
    ----------
    model_type
        ``"exceiver"``, ``"langcell"`` or ``"sccello"``.
    name
        One of `SETTINGS`, ``"<cls>"`` or ``"plain"``, which is without all that the default adds.

    Raises
    ------
    ValueError
        If there is no such name.
    """
    if name == "plain":
        return PLAIN + CLS[model_type]
    if name == "<cls>":
        return CLS[model_type]
    if name not in SETTINGS:
        raise ValueError(f"no settings {name!r}: there are plain, <cls>, {', '.join(SETTINGS)}")
    return SETTINGS[name]


# -------------------------------------------------------------------- cells


@dataclass
class Labelled:
    """Cells with what is right for each.

    Parameters
    ----------
    name
        Of the set.
    cells
        Raw counts of the cells that have a label.
    labels
        Label of each cell.
    right
        Classes that are right for each cell.
    """

    name: str
    cells: AnnData
    labels: np.ndarray
    right: list[tuple[str, ...]]


def open_test_set(test: TestSet, data: Path) -> Labelled:
    """Read the cells of a test set that have one of its labels."""
    cells = read_cells(data / test.file).to_anndata()
    labels = cells.obs[test.column].astype(str).to_numpy(dtype=object)
    kept = np.isin(labels, list(test.classes))
    return Labelled(test.name, cells[kept].copy(), labels[kept], [test.classes[label] for label in labels[kept]])


def held_out_cells(corpus: Corpus, data: Path, thinned: bool) -> Labelled:
    """Give the cells of the training file that the corpus holds out, or the same with fewer counts and genes.

    Parameters
    ----------
    corpus
        Of the training file.
    data
        Folder of data.
    thinned
        Keep 30% of counts and 40% of genes, both drawn at random.
    """
    cells = _cells_of(corpus, "validation", data)
    if thinned:
        random = np.random.default_rng(0)
        counts = csr_matrix(cells.X)
        counts.data = random.binomial(counts.data.astype(np.int64), 0.3).astype(np.float32)
        counts.eliminate_zeros()
        cells.X = counts
        cells = cells[:, random.random(cells.n_vars) < 0.4].copy()
    labels = cells.obs["cell_type"].astype(str).to_numpy(dtype=object)
    return Labelled("held out, thinned" if thinned else "held out", cells, labels, [(label,) for label in labels])


def _cells_of(corpus: Corpus, split: str, data: Path) -> AnnData:
    shards = [pq.read_table(s, columns=["cell_index"])["cell_index"].to_numpy() for s in corpus.shards(split)]
    cells = read_cells(data / TRAIN_FILE, rename={TRAIN_COLUMN: "cell_type"}).to_anndata()
    return cells[np.sort(np.concatenate(shards))].copy()


def counts_on(vocabulary: GeneVocabulary, cells: Cells) -> csr_matrix:
    """Give counts in the columns of a vocabulary, shape (cells, genes); genes that the cells lack are 0."""
    match = vocabulary.resolve(cells.counts.index, cells.counts.columns)
    column = np.full(vocabulary.vocab_size, -1)
    column[vocabulary.gene_token_ids] = np.arange(len(vocabulary.genes))
    known = np.flatnonzero(match.known)
    ones = np.ones(len(known), dtype=np.float32)
    spread = csr_matrix((ones, (known, column[match.token_ids[known]])), (len(match.known), len(vocabulary.genes)))
    return vstack([csr_matrix(chunk) @ spread for chunk in cells.chunks()], format="csr")


def identical_cells(vocabulary: GeneVocabulary, one: Cells, other: Cells) -> int:
    """Count the cells of `other` whose counts on all genes that both measured are those of a cell of `one`."""
    first, second = (match.token_ids[match.known] for match in (_match(vocabulary, cells) for cells in (one, other)))
    both = np.isin(vocabulary.gene_token_ids, np.intersect1d(first, second))
    rows = [_digests(counts_on(vocabulary, cells)[:, both]) for cells in (one, other)]
    return sum(row in set(rows[0]) for row in rows[1])


def _match(vocabulary: GeneVocabulary, cells: Cells) -> Any:
    return vocabulary.resolve(cells.counts.index, cells.counts.columns)


def _digests(counts: csr_matrix) -> list[bytes]:
    counts.sort_indices()
    ends = zip(counts.indptr, counts.indptr[1:], strict=False)
    return [
        hashlib.blake2b(counts.indices[a:b].tobytes() + counts.data[a:b].astype(np.int64).tobytes()).digest()
        for a, b in ends
    ]


# -------------------------------------------------------------------- scores


def scores(predicted: np.ndarray, test: Labelled) -> dict[str, Any]:
    """Give accuracy, its mean over labels, and what each label's cells were taken for."""
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
    """Score the most frequent class, and logistic regression on log counts of the training file's genes."""
    vocabulary = corpus.tokenizer().vocabulary
    train = _cells_of(corpus, "train", data)
    labels = train.obs["cell_type"].astype(str).to_numpy(dtype=object)
    parts = [_log(vocabulary, train), *(_log(vocabulary, test.cells) for test in tests)]
    features = vstack(parts, format="csr")
    is_train = np.arange(features.shape[0]) < len(labels)
    every = np.concatenate([labels, np.full(features.shape[0] - len(labels), "", dtype=object)])
    ends = np.cumsum([len(test.labels) for test in tests])[:-1]
    found = {}
    for result in (
        majority(every, is_train, ~is_train),
        logistic_regression(features, every, is_train, ~is_train),
    ):
        pieces = np.split(result.predicted, ends)
        found[result.name] = {test.name: scores(piece, test) for piece, test in zip(pieces, tests, strict=True)}
    return found


def _log(vocabulary: GeneVocabulary, cells: AnnData) -> csr_matrix:
    counts = counts_on(vocabulary, read_cells(cells))
    return log_counts(read_cells(AnnData(counts)))


def some_cells(tests: Sequence[Labelled], most: int) -> list[Labelled]:
    """Draw at most so many cells of each set, the same ones every time."""
    random = np.random.default_rng(0)
    drawn = []
    for test in tests:
        n = len(test.labels)
        at = np.sort(random.choice(n, min(most, n), replace=False))
        drawn.append(Labelled(test.name, test.cells[at].copy(), test.labels[at], [test.right[i] for i in at]))
    return drawn


def model_scores(
    model_type: str, changes: Sequence[str], seed: int, corpus: Corpus, tests: Sequence[Labelled], output: Path
) -> dict[str, Any]:
    """Train a new model by the configuration that comes with the package, with some changes, and score it.

    Parameters
    ----------
    model_type
        As for `settings_of`.
    changes
        Of that configuration, ``section.key=value``.
    seed
        Of everything drawn.
    corpus
        Cells to train on.
    tests
        Cells to score.
    output
        Folder for the model.
    """
    changes = [*changes, f"trainer.seed={seed}", "trainer.save_strategy=no"]
    config = load_config(f"{model_type}_small_finetune.yaml", [*changes, "trainer.eval_strategy=no"])
    started = time.monotonic()
    finetune(config, None, corpus, output, label_column=TRAIN_COLUMN, resume=False)
    seconds = time.monotonic() - started
    model: Any = CLASSIFIERS[model_type].model_class("cell-type").from_pretrained(output)
    tokenizer = CLASSIFIERS[model_type].tokenizer_class.from_pretrained(output)
    classes = np.array([model.config.id2label[i] for i in range(model.config.num_labels)], dtype=object)
    found: dict[str, Any] = {"changes": changes, "seconds_of_training": round(seconds, 1), "tests": {}}
    for test in tests:
        logits = run_model(model, tokenizer, test.cells, "logits", progress=False, min_coverage=0.0)
        found["tests"][test.name] = scores(classes[logits.argmax(axis=1)], test)
    return found


# -------------------------------------------------------------------- the run


def table(results: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Write results as Markdown: a row a method, accuracy / mean over labels for each set of cells.

    Parameters
    ----------
    results
        Row -> set -> scores.
    """
    names = list(next(iter(results.values())))
    lines = ["| | " + " | ".join(names) + " |", "| --- |" + " --- |" * len(names)]
    for row, tests in results.items():
        pairs = (f"{tests[n]['accuracy']:.3f} / {tests[n]['balanced_accuracy']:.3f}" for n in names)
        lines.append(f"| {row} | " + " | ".join(pairs) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study from the command line."""
    parser = argparse.ArgumentParser(prog="cellglot.training.transfer_study", description=__doc__.split(":")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the folders cells and corpus")
    parser.add_argument("--output", type=Path, required=True, help="folder for models and transfer_study.json")
    parser.add_argument("--models", nargs="*", default=sorted(CLASSIFIERS), choices=sorted(CLASSIFIERS))
    parser.add_argument("--settings", nargs="*", default=["default"], help=f"of plain, <cls>, {', '.join(SETTINGS)}")
    parser.add_argument("--set", nargs="*", default=[], metavar="SECTION.KEY=VALUE", help="changes beside these")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--most", type=int, help="score at most so many cells of each set")
    parser.add_argument("--baselines", action="store_true", help="also score the baselines, and count identical cells")
    given = parser.parse_args(arguments)
    for name in given.settings:
        settings_of("sccello", name)
    given.output.mkdir(parents=True, exist_ok=True)
    record = given.output / "transfer_study.json"
    results = json.loads(record.read_text()) if record.exists() else {}
    corpora: dict[str, Corpus] = {}
    tests = [open_test_set(test, given.data) for test in TEST_SETS]

    def corpus_of(kind: str) -> Corpus:
        name = "exceiver" if kind == "exceiver" else "rank-value"
        if name not in corpora:
            corpora[name] = corpus_of_new_model(
                kind, [given.data / TRAIN_FILE], given.output / name, [TRAIN_COLUMN], processes=1, progress=False
            )
        return corpora[name]

    def every(kind: str) -> list[Labelled]:
        sets = [held_out_cells(corpus_of(kind), given.data, thinned) for thinned in (False, True)] + tests
        return sets if given.most is None else some_cells(sets, given.most)

    def note(row: str, found: dict[str, Any]) -> None:
        results[row] = found
        record.write_text(json.dumps(results, indent=1), encoding="utf-8")
        print(table({row: found["tests"]}), flush=True)

    if given.baselines:
        vocabulary = corpus_of("exceiver").tokenizer().vocabulary
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
