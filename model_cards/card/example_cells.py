"""Example cells for the outputs on a card and for the test of the published copy."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cellglot.tokenization.reading.cells import read_cells
from cellglot.tokenization.reading.labels import label_text, read_labels
from cellglot.tokenization.tokenization_gene_expression import GeneCoverageError, GeneExpressionTokenizer


MOST_GENES = 100
N_CELLS = 3
BLOOD = "blood cells of healthy donors (10x Genomics' PBMC 68k, CC BY 4.0; 700 of them come with scanpy)"


@dataclass
class ExampleCells:
    """A few cells.

    Parameters
    ----------
    names
        Of the cells, with their labels.
    labels
        Cell types in the file; empty without a column of cell types.
    cells
        Gene -> count of each cell, for its `MOST_GENES` genes with the highest counts.
    """

    names: list[str]
    labels: list[str]
    cells: list[dict[str, int]]
    source: str


def example_cells(tokenizer: GeneExpressionTokenizer, file: str | Path | None = None) -> ExampleCells:
    """Return the first cells of distinct types from a file, by default from the blood cells of scanpy.

    Raises
    ------
    ValueError
        If the genes of the cells are not in the tokenizer's vocabulary.
    """
    with _opened(file) as cells:
        labels = cells.metadata(only=["cell_type"]).get("cell_type")
        names, counts = cells.names(), cells.counts
        rows = _different(None if labels is None else read_labels(labels).texts.tolist(), cells.n_cells)
        genes = [str(gene) for gene in counts.index]
        taken = [_counts(counts, row, genes) for row in rows]
        kinds = [] if labels is None else [label_text(labels.iloc[row]) or "without a label" for row in rows]
        called = [str(names[row]) for row in rows]
        if kinds:
            called = [f"{kind} ({name})" for kind, name in zip(kinds, called, strict=True)]
    found = ExampleCells(called, kinds, taken, BLOOD if file is None else f"cells of {Path(file).name}")
    _check(tokenizer, found, file)
    return found


def _opened(file: str | Path | None) -> Any:
    if file is not None:
        return read_cells(file)
    import scanpy

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the format in which scanpy stores them
        return read_cells(scanpy.datasets.pbmc68k_reduced(), rename={"bulk_labels": "cell_type"})


def _different(labels: list[str | None] | None, n_cells: int) -> list[int]:
    """Return the rows of the first cells of distinct labels, then of the first cells."""
    first = list(range(n_cells)) if labels is None else [labels.index(label) for label in dict.fromkeys(labels)]
    rows = [*first, *(row for row in range(n_cells) if row not in first[:N_CELLS])]
    return sorted(rows[:N_CELLS])


def _counts(counts: Any, row: int, genes: list[str]) -> dict[str, int]:
    read = counts.rows(row, row + 1)
    order = np.argsort(-np.asarray(read.data), kind="stable")[:MOST_GENES]
    return {genes[int(read.indices[i])]: round(float(read.data[i])) for i in sorted(order)}


def _check(tokenizer: GeneExpressionTokenizer, found: ExampleCells, file: str | Path | None) -> None:
    genes = sorted({gene for cell in found.cells for gene in cell})
    matrix = np.array([[cell.get(gene, 0) for gene in genes] for cell in found.cells], dtype=np.float32)
    try:
        tokenizer(matrix, genes=genes)
    except GeneCoverageError as error:
        what = "the example blood cells" if file is None else str(file)
        raise ValueError(f"{what} do not match the model ({error}): pass a file of its cells with --cells") from error


def as_input(cell: Mapping[str, int]) -> str:
    """Return a cell as text, genes with the highest counts first: ``{"LYZ": 12, "CD74": 9}``."""
    ordered = sorted(cell.items(), key=lambda item: (-item[1], item[0]))
    return "{" + ", ".join(f'"{gene}": {count}' for gene, count in ordered) + "}"


__all__ = ["BLOOD", "ExampleCells", "MOST_GENES", "as_input", "example_cells"]
