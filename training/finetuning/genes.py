"""Fine-tuning for classes of genes."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cellglot.outputs import sha256
from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.tokenization.gene_vocabulary import GeneVocabulary
from cellglot.training.data.dataset import CellDataset
from cellglot.training.data.label_collators import GeneClassCollator, balanced_weights
from cellglot.training.data.labels import gene_classes, read_gene_labels
from cellglot.training.data.splits import divide, draw_by_stratum
from cellglot.training.finetuning.settings import FinetuneSettings
from cellglot.training.finetuning.tasks import BOTH, Task, common_facts, head_fields, n_cells
from cellglot.training.metrics import GeneClassMetrics


GENE_LABELS_FILE = "gene_labels.json"


def gene_task(
    corpus: Corpus,
    vocabulary: GeneVocabulary,
    table: str | Path | Mapping[str, str],
    settings: FinetuneSettings,
    seed: int,
) -> Task:
    """Prepare the classification of genes in their cells.

    Genes are held out, too: a gene has the same class in every cell, so a model could learn its name. A share of the
    genes of each class (``finetuning.held_out_genes``, 0.2) is not used for training; the metrics are those of these
    genes in the held-out cells.

    Parameters
    ----------
    table
        Gene -> class, or a file for `read_gene_labels`.
    """
    given = dict(table) if isinstance(table, Mapping) else read_gene_labels(table)
    found = gene_classes(given, vocabulary)
    tokens = np.array(sorted(found), dtype=np.int64)
    names = [found[token] for token in tokens.tolist()]
    away = draw_by_stratum(names, settings.held_out_genes, seed)
    counts = Counter(name for name, out in zip(names, away, strict=True) if not out)
    classes = sorted(counts)
    if len(classes) < 2:
        raise ValueError(
            f"{len(found):,} of {len(given):,} genes of the table are in the vocabulary of the model, with "
            f"{len(classes)} classes ({', '.join(classes) or 'none'}): classification needs two"
        )
    numbers = np.array([classes.index(name) for name in names])
    to_learn, to_test = (np.full(vocabulary.vocab_size, -100, dtype=np.int64) for _ in range(2))
    to_learn[tokens[~away]], to_test[tokens[away]] = numbers[~away], numbers[away]
    division = divide(corpus, settings.split, [0] * sum(map(corpus.n_cells, BOTH)), seed)
    train, held_out, test = (
        CellDataset(corpus, part.splits, keep=part.chosen, without_genes=part.without_genes)
        if part is not None and used and part.chosen.any()
        else None
        for part, used in ((division.train, True), (division.held_out, away.any()), (division.test, away.any()))
    )
    if train is None:
        raise ValueError(f"no training cell of {corpus.folder} expresses a gene of the vocabulary")
    weights = balanced_weights(np.array([counts[c] for c in classes])) if settings.balanced else None

    def collator(cells: Any, training: bool) -> GeneClassCollator:
        return GeneClassCollator(cells, to_learn if training else to_test, weights if training else None)

    unknown = len(given) - len(found)
    return Task(
        fields=head_fields(classes, None),
        train=train,
        held_out=held_out,
        test=test,
        collator=collator,
        metrics=GeneClassMetrics(len(classes)),
        metric_names=("accuracy", "macro_f1", "token_accuracy", "token_macro_f1"),
        facts={
            "gene_labels": table_facts(table),
            "classes": classes,
            "genes_of_each_class": {name: counts[name] for name in classes},
            "held_out_genes": {vocabulary.symbol(vocabulary.tokens[t]): found[t] for t in tokens[away].tolist()},
            "genes_not_in_the_vocabulary": unknown,
            **common_facts(division, train, held_out, test),
        },
        summary=f"{len(classes):,} classes; {int((~away).sum()):,} genes for training in {len(train):,} cells, "
        f"{int(away.sum()):,} genes held out in {n_cells(held_out):,} cells held out by {division.by}; left out: "
        f"{unknown:,} genes that are not in the vocabulary, or are second names of a gene",
    )


def table_facts(table: str | Path | Mapping[str, str]) -> dict[str, str]:
    """Return name and checksum of the table of genes; for a mapping, those of the file of `write_gene_labels`."""
    if isinstance(table, Mapping):
        return {"file": GENE_LABELS_FILE, "sha256": hashlib.sha256(_as_json(table).encode()).hexdigest()}
    return {"file": Path(table).name, "sha256": sha256(table)}


def _as_json(labels: Mapping[str, str]) -> str:
    return json.dumps(dict(labels), indent=1) + "\n"


def write_gene_labels(labels: Mapping[str, str], folder: str | Path) -> None:
    """Write gene -> class to ``gene_labels.json``, a file for ``--gene-labels``."""
    Path(folder, GENE_LABELS_FILE).write_text(_as_json(labels), encoding="utf-8")


__all__ = ["GENE_LABELS_FILE", "gene_task", "table_facts", "write_gene_labels"]
