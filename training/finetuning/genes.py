"""Fine-tuning for classes of genes."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.tokenization.gene_vocabulary import GeneVocabulary
from cellglot.training.data.dataset import CellDataset
from cellglot.training.data.label_collators import GeneClassCollator, balanced_weights
from cellglot.training.data.labels import gene_classes, read_gene_labels
from cellglot.training.data.splits import divide, draw_by_stratum
from cellglot.training.finetuning.settings import FinetuneSettings
from cellglot.training.finetuning.tasks import BOTH, Task, common_facts
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

    Genes are held out, not only cells: a gene has the same class in every cell, and a model would know it by its name.
    A share of every class's genes (``finetuning.held_out_genes``, 0.2) is never learned from; metrics are those of
    these genes in the held-out cells.

    Parameters
    ----------
    table
        Gene -> class, or a file that `read_gene_labels` reads.
    settings
        Section ``finetuning`` of the configuration.
    seed
        Of the draw of genes, and of the division of cells.
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
            f"{len(found):,} of {len(given):,} genes of the table are in the model's vocabulary, of {len(classes)} "
            f"classes ({', '.join(classes) or 'none'}): classification needs two"
        )
    label2id = {name: i for i, name in enumerate(classes)}
    numbers = np.array([label2id[name] for name in names])
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
        fields={
            "id2label": dict(enumerate(classes)),
            "label2id": label2id,
            "problem_type": None,
            "label_cl_ids": None,
            "target_mean": None,
            "target_std": None,
        },
        division=division,
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
            **common_facts(division, {"training": train, "held_out": held_out, "test": test}),
        },
        summary=f"{len(classes):,} classes; {int((~away).sum()):,} genes to learn from in {len(train):,} cells, "
        f"{int(away.sum()):,} held out in {0 if held_out is None else len(held_out):,} cells held out by "
        f"{division.by}; left out: {unknown:,} genes that are not in the vocabulary, or other names of one that is",
    )


def table_facts(table: str | Path | Mapping[str, str]) -> dict[str, str]:
    """Name the table of genes and its checksum; that of a mapping is the file of `write_gene_labels`.

    Parameters
    ----------
    table
        Gene -> class, or a file.
    """
    named, content = (
        (GENE_LABELS_FILE, _as_json(table).encode())
        if isinstance(table, Mapping)
        else (Path(table).name, Path(table).read_bytes())
    )
    return {"file": named, "sha256": hashlib.sha256(content).hexdigest()}


def _as_json(labels: Mapping[str, str]) -> str:
    return json.dumps(dict(labels), indent=1) + "\n"


def write_gene_labels(labels: Mapping[str, str], folder: str | Path) -> None:
    """Write gene -> class as a file that ``--gene-labels`` takes, ``gene_labels.json``.

    Parameters
    ----------
    labels
        Gene -> class.
    """
    Path(folder, GENE_LABELS_FILE).write_text(_as_json(labels), encoding="utf-8")


__all__ = ["GENE_LABELS_FILE", "gene_task", "table_facts", "write_gene_labels"]
