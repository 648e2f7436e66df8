"""Annotation of cells by a classifier that onnxruntime computes. PyTorch is not imported."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from cellglot.evaluation.annotation.classified import Classes, ClassifiedCells, check_coverage, classified
from cellglot.modeling.annotation_calibration import AnnotationCalibration
from cellglot.modeling.graph_alone import GraphAlone
from cellglot.progress import progress_bars
from cellglot.tokenization.corpus.concurrency import ahead
from cellglot.tokenization.count_matrix import open_counts
from cellglot.tokenization.gene_report import GeneReport


MOST_CELLS = 20_000  # above, PyTorch takes less time with its import, and may use a GPU
BATCHES_AHEAD = 4  # tokenized while the graph computes


def classify_by_graph(
    graph: GraphAlone,
    tokenizer: Any,
    cells: Any,
    *,
    calibration: AnnotationCalibration | None = None,
    set_coverage: float | None = None,
    batch_size: int = 64,
    progress: bool = True,
    **options: Any,
) -> ClassifiedCells:
    """Classify cells as `cellglot.evaluation.annotation.by_classifier.classify_cells` does, within rounding.

    Parameters
    ----------
    graph, tokenizer
        The model.
    cells, calibration, set_coverage, batch_size, progress
        As for `classify_cells`.
    **options
        ``gene_column`` and ``min_coverage``, as for the tokenizer.

    Raises
    ------
    ValueError
        If no cell expresses a gene of the vocabulary, the calibration does not fit, or a result is not finite.
    """
    classes = Classes(str(graph.folder), graph.classes, graph.cell_types)
    check_coverage(calibration, set_coverage, classes)
    report = GeneReport()
    counts = open_counts(cells)
    if graph.imputes:
        graph.open(tokenizer.measured_genes(counts, gene_column=options.get("gene_column")))
    found = _computed(graph, tokenizer, counts, report, batch_size, progress, options)
    n_genes = np.zeros(counts.n_cells, dtype=np.float32)
    results: dict[str, np.ndarray] = {}
    for numbers, genes, values in found:
        n_genes[numbers] = genes
        for name, rows in values.items():
            if name not in results:
                results[name] = np.zeros((counts.n_cells, rows.shape[1]), dtype=np.float32)
            results[name][numbers] = rows
    n_genes[n_genes == 0] = np.nan
    logits, embedding = results["logits"], results["embedding"]
    return classified(cells, classes, logits, embedding, n_genes, report, calibration, set_coverage)


def _computed(
    graph: GraphAlone,
    tokenizer: Any,
    counts: Any,
    report: GeneReport,
    batch_size: int,
    progress: bool,
    options: dict[str, Any],
) -> Iterator[tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]]:
    """Yield numbers of cells, their numbers of genes, and outputs, NaN for cells without a gene of the model."""
    special = [token for token in tokenizer.all_special_ids if token is not None]
    batches = tokenizer.batches(counts, batch_size, report, return_tensors="np", **options)
    bars = progress_bars(shown=progress)
    with bars:
        task = bars.add_task("annotating", total=counts.n_cells)
        for numbers, batch in ahead(batches, BATCHES_AHEAD):
            genes = (batch["attention_mask"].astype(bool) & ~np.isin(batch["input_ids"], special)).sum(axis=1)
            values = graph(batch)
            for name, rows in values.items():
                rows[genes == 0] = np.nan
                bad = ~np.isfinite(rows).all(axis=1) & (genes > 0)
                if bad.any():
                    raise ValueError(
                        f"{graph.folder}: {name} of cell {int(numbers[bad][0]):,} is not finite: the values of this "
                        "cell are too large"
                    )
            yield numbers, genes, values
            bars.advance(task, len(numbers))


__all__ = ["MOST_CELLS", "classify_by_graph"]
