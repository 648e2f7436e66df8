"""The cells of the transfer study: those for training, and those of other laboratories with the right classes."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from anndata import AnnData
from scipy.sparse import csr_matrix, vstack

from cellglot.evaluation.benchmark.baselines import log_counts
from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.tokenization.gene_vocabulary import GeneVocabulary
from cellglot.tokenization.reading.cells import Cells, read_cells
from cellglot.tokenization.reading.labels import read_labels


TRAIN_FILE, TRAIN_COLUMN = "cells/pbmc_facs.h5ad", "subpop"
B, MONOCYTE, STEM, NK, T = ("B cell",), ("CD14+",), ("CD34+",), ("NK cell",), ("T cell",)


@dataclass(frozen=True)
class TestSet:
    """Labelled cells for a test.

    Parameters
    ----------
    name
        Name in the tables.
    file
        Path in the folder of data.
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


@dataclass(frozen=True)
class MarkerSet:
    """Cells without labels, of which those are used that marker genes identify clearly."""

    name: str
    file: str


MARKER_SETS = [
    MarkerSet("blood A", "corpus/pbmcA_mudan_unlabelled.h5ad"),
    MarkerSet("blood, v3, 10k", "corpus/pbmc_10k_protein_v3_scvi_200.h5ad"),
    MarkerSet("blood, v3, 5k", "corpus/pbmc_5k_protein_v3_scvi_200.h5ad"),
    MarkerSet("blood, ECCITE-seq", "corpus/pbmc_ecciteseq_citefuse.h5ad"),
]
MARKERS = {
    "B": ["CD79A", "CD79B", "MS4A1", "CD19", "BANK1"],
    "monocyte": ["CD14", "S100A12", "FCN1", "VCAN", "CST3", "LYZ", "S100A8", "S100A9"],
    "T": ["CD3D", "CD3E", "CD3G", "TRAC", "TRBC2", "IL7R", "CD2"],
    "NK": ["NCAM1", "KLRF1", "KLRD1", "FGFBP2", "GNLY", "SPON2", "NKG7"],
}


@dataclass
class Labelled:
    """Raw counts of labelled cells, with the classes that are right for each."""

    name: str
    cells: AnnData
    labels: np.ndarray
    right: list[tuple[str, ...]]


def open_test_set(test: TestSet, data: Path) -> Labelled:
    """Read the cells of a test set that have one of its labels."""
    cells = read_cells(data / test.file).to_anndata()
    labels = read_labels(cells.obs[test.column]).texts
    kept = np.array([label in test.classes for label in labels], dtype=bool)
    return Labelled(test.name, cells[kept].copy(), labels[kept], [test.classes[label] for label in labels[kept]])


def open_marker_set(test: MarkerSet, data: Path, vocabulary: GeneVocabulary) -> Labelled:
    """Read cells and label them by the mean log expression of `MARKERS` in the vocabulary; unclear cells are left out.

    B cells and monocytes express their own markers and none of the others. Cells with markers of T or NK cells that
    are not clearly one of the two may be either.
    """
    cells = read_cells(data / test.file).to_anndata()
    symbols = [vocabulary.symbol(gene) for gene in vocabulary.genes]
    logs = log_counts_on(vocabulary, cells).tocsc()
    columns = {name: [i for i, symbol in enumerate(symbols) if symbol in genes] for name, genes in MARKERS.items()}
    b, monocyte, t, nk = (np.asarray(logs[:, columns[name]].mean(axis=1)).ravel() for name in MARKERS)
    lymphoid = np.maximum(t, nk)
    neither = np.maximum(b, monocyte) < 0.4
    rules = [
        ("B", B, (b > 1.0) & (np.maximum(lymphoid, monocyte) < 0.6)),
        ("monocyte", MONOCYTE, (monocyte > 1.8) & (np.maximum(lymphoid, b) < 0.6)),
        ("T", T, (t > 0.8) & (nk < 0.7) & neither),
        ("NK", NK, (nk > 1.3) & (t < 0.35) & neither),
        ("T or NK", T + NK, (lymphoid > 1.0) & neither),
    ]
    labels = np.full(cells.n_obs, "", dtype=object)
    for name, _, fits in rules:
        labels[fits & (labels == "")] = name
    right = {name: classes for name, classes, _ in rules}
    kept = np.flatnonzero(labels != "")
    return Labelled(test.name, cells[kept].copy(), labels[kept], [right[label] for label in labels[kept]])


def held_out_cells(corpus: Corpus, data: Path, thinned: bool) -> Labelled:
    """Return the held-out cells of the training file, or (`thinned`) 30% of their counts on 40% of the genes."""
    cells = cells_of(corpus, "validation", data)
    if thinned:
        random = np.random.default_rng(0)
        counts = csr_matrix(cells.X)
        counts.data = random.binomial(counts.data.astype(np.int64), 0.3).astype(np.float32)
        counts.eliminate_zeros()
        cells.X = counts
        cells = cells[:, random.random(cells.n_vars) < 0.4].copy()
    labels = read_labels(cells.obs["cell_type"]).texts
    known = np.array([label is not None for label in labels], dtype=bool)
    cells, labels = cells[known].copy(), labels[known]
    return Labelled("held out, thinned" if thinned else "held out", cells, labels, [(label,) for label in labels])


def cells_of(corpus: Corpus, split: str, data: Path) -> AnnData:
    """Read the cells of the training file that are in a split of its corpus."""
    shards = [pq.read_table(s, columns=["cell_index"])["cell_index"].to_numpy() for s in corpus.shards(split)]
    cells = read_cells(data / TRAIN_FILE, rename={TRAIN_COLUMN: "cell_type"}).to_anndata()
    return cells[np.sort(np.concatenate(shards))].copy()


def counts_on(vocabulary: GeneVocabulary, cells: Cells) -> csr_matrix:
    """Return counts in the columns of a vocabulary, shape (cells, genes); genes that the cells lack are 0."""
    match = vocabulary.resolve(cells.counts.index, cells.counts.columns)
    column = np.full(vocabulary.vocab_size, -1)
    column[vocabulary.gene_token_ids] = np.arange(len(vocabulary.genes))
    known = np.flatnonzero(match.known)
    ones = np.ones(len(known), dtype=np.float32)
    spread = csr_matrix((ones, (known, column[match.token_ids[known]])), (len(match.known), len(vocabulary.genes)))
    return vstack([csr_matrix(chunk) @ spread for chunk in cells.chunks()], format="csr")


def log_counts_on(vocabulary: GeneVocabulary, cells: AnnData) -> csr_matrix:
    """Return log1p of counts per 10,000 in the columns of a vocabulary, shape (cells, genes)."""
    return log_counts(read_cells(AnnData(counts_on(vocabulary, read_cells(cells)))))


def identical_cells(vocabulary: GeneVocabulary, one: Cells, other: Cells) -> int:
    """Count the cells of `other` that have the same counts as a cell of `one` on all genes measured in both."""
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


def some_cells(tests: Sequence[Labelled], most: int) -> list[Labelled]:
    """Draw at most `most` cells of each set, always the same ones."""
    random = np.random.default_rng(0)
    drawn = []
    for test in tests:
        n = len(test.labels)
        at = np.sort(random.choice(n, min(most, n), replace=False))
        drawn.append(Labelled(test.name, test.cells[at].copy(), test.labels[at], [test.right[i] for i in at]))
    return drawn
