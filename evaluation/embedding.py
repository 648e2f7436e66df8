"""Cells to embeddings, streamed in bounded memory."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cellglot.tokenization.count_matrix import open_counts
from cellglot.tokenization.gene_encoding import TokenRows
from cellglot.tokenization.gene_report import GeneReport
from cellglot.tokenization.tokenization_gene_expression import GeneExpressionTokenizer


def default_device() -> torch.device:
    """CUDA where there is one, else Apple's MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def batches(
    tokenizer: GeneExpressionTokenizer, cells: Any, batch_size: int, report: GeneReport | None = None, **options: Any
) -> Iterator[tuple[np.ndarray, dict[str, torch.Tensor]]]:
    """Tokenize cells into padded batches of similar length.

    Parameters
    ----------
    tokenizer
        The model's tokenizer.
    cells
        Whatever the tokenizer takes.
    batch_size
        Cells in a batch.
    report
        Counts what was matched and lost.
    **options
        ``genes``, ``layer``, ``gene_column``, ``min_coverage`` as for the tokenizer.

    Yields
    ------
    cells : numpy.ndarray
        Numbers of the batch's cells.
    batch : dict
        Inputs of the model.
    """
    counts = open_counts(cells, options.get("genes"), options.get("layer"))
    columns = tokenizer.gene_columns(counts, options.get("gene_column"))
    report = columns.match.report() if report is None else report
    report.__dict__.update(columns.match.report().__dict__)
    first = 0
    for encoded in _runs(tokenizer.iterate(counts, columns, report), 16 * batch_size):
        order = np.argsort(-np.concatenate([np.diff(rows.indptr) for rows in encoded]), kind="stable")
        rows = [_one(part, cell) for part in encoded for cell in range(len(part))]
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            width = max(1, max(len(rows[i].tokens) for i in chosen))
            arrays = tokenizer._padded([rows[i] for i in chosen], width)
            yield first + chosen, {name: torch.from_numpy(array) for name, array in arrays.items()}
        first += len(order)
    tokenizer.check_coverage(report, options.get("min_coverage"))


def _runs(parts: Iterator[TokenRows], n_cells: int) -> Iterator[list[TokenRows]]:
    waiting: list[TokenRows] = []
    for part in parts:
        waiting.append(part)
        if sum(len(p) for p in waiting) >= n_cells:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


def _one(rows: TokenRows, cell: int) -> TokenRows:
    low, stop = rows.indptr[cell], rows.indptr[cell + 1]
    values = None if rows.values is None else rows.values[low:stop]
    return TokenRows(rows.tokens[low:stop], values, np.array([0, stop - low]), rows.tokens_cut[cell : cell + 1])


def run_model(
    model: Any,
    tokenizer: GeneExpressionTokenizer,
    cells: Any,
    output: str,
    *,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    progress: bool = True,
    report: GeneReport | None = None,
    **options: Any,
) -> np.ndarray:
    """Give one field of a model's output for every cell, in the order of the cells.

    Parameters
    ----------
    model, tokenizer
        Belonging together.
    cells
        Whatever the tokenizer takes; files are opened by `cellglot.tokenization.read_cells`.
    output
        The field: ``"pooler_output"``, ``"logits"``.
    batch_size
        Cells at once.
    device
        Where to compute; by default CUDA, MPS or the CPU, whichever is there.
    progress
        Show a bar.
    report
        Counts what was matched and lost.
    **options
        As for `batches`.

    Returns
    -------
    numpy.ndarray
        Shape (cells, ...), float32.

    Raises
    ------
    ValueError
        If the tokenizer has more ids than the model.
    """
    if model.config.vocab_size < tokenizer.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size:,} ids, but the model's vocab_size is "
            f"{model.config.vocab_size:,}: they do not belong together"
        )
    device = torch.device(device) if device is not None else default_device()
    n_cells = open_counts(cells, options.get("genes"), options.get("layer")).n_cells
    training, home = model.training, next(model.parameters()).device
    model.to(device).eval()
    result: np.ndarray | None = None
    bars = Progress(
        TextColumn("embedding "),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("cells"),
        TimeElapsedColumn(),
        disable=not progress,
    )
    try:
        with bars, torch.inference_mode():
            task = bars.add_task("embedding", total=n_cells)
            for numbers, batch in batches(tokenizer, cells, batch_size, report, **options):
                values = model(**{k: v.to(device) for k, v in batch.items()})[output].float().cpu().numpy()
                if result is None:
                    result = np.zeros((n_cells, *values.shape[1:]), dtype=np.float32)
                result[numbers] = values
                bars.advance(task, len(numbers))
    finally:
        model.to(home).train(training)
    assert result is not None
    return result


def embed_cells(model: Any, tokenizer: GeneExpressionTokenizer, cells: Any, **options: Any) -> np.ndarray:
    """Embed cells: the model's pooler output, shape (cells, size). Options are those of `run_model`."""
    return run_model(model, tokenizer, cells, "pooler_output", **options)


__all__ = ["batches", "default_device", "embed_cells", "run_model"]
