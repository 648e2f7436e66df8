"""Cells to embeddings, streamed in bounded memory."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from cellglot.modeling.cell_pipeline import cells_with_genes
from cellglot.modeling.model_files import check_finite
from cellglot.progress import progress_bars
from cellglot.tokenization.count_matrix import open_counts
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
    report
        Counts what was matched and lost.
    **options
        ``genes``, ``layer``, ``gene_column``, ``min_coverage`` as for the tokenizer.

    Returns
    -------
    Iterator
        (numbers of the batch's cells, inputs of the model).
    """
    return tokenizer.batches(cells, batch_size, report, **options)


def run_model(
    model: Any,
    tokenizer: GeneExpressionTokenizer,
    cells: Any,
    output: str,
    **options: Any,
) -> np.ndarray:
    """Return one field of a model's output for every cell, in the order of the cells.

    Parameters
    ----------
    model, tokenizer
        Belonging together.
    cells
        Whatever the tokenizer takes; files are opened by `cellglot.tokenization.read_cells`.
    output
        The field: ``"pooler_output"``, ``"logits"``.
    **options
        As for `run_batches`.

    Returns
    -------
    numpy.ndarray
        Shape (cells, ...), float32; NaN for cells that express no gene of the model.
    """
    return run_batches(model, tokenizer, cells, lambda batch: {output: model(**batch)[output]}, **options)[output]


def run_batches(
    model: Any,
    tokenizer: GeneExpressionTokenizer,
    cells: Any,
    compute: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
    *,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    progress: bool = True,
    report: GeneReport | None = None,
    word: str = "embedding",
    **options: Any,
) -> dict[str, np.ndarray]:
    """Compute something of every cell with a model, batch by batch; what is held is the result.

    Parameters
    ----------
    cells
        Whatever the tokenizer takes; files are opened by `cellglot.tokenization.read_cells`.
    compute
        Inputs of the model for some cells -> name -> tensor with a row a cell.
    device
        Where to compute; by default CUDA, MPS or the CPU, whichever is there.
    report
        Counts what was matched and lost.
    **options
        As for `batches`.

    Returns
    -------
    dict
        Name -> array in the order of the cells, shape (cells, ...), float32; NaN for cells that express no gene of the
        model.
    """
    if model.config.vocab_size < tokenizer.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size:,} ids, but the model's vocab_size is "
            f"{model.config.vocab_size:,}: they do not belong together"
        )
    device = torch.device(device) if device is not None else default_device()
    counts = open_counts(cells, options.get("genes"), options.get("layer"))
    training, home = model.training, next(model.parameters()).device
    model.to(device).eval()
    results: dict[str, np.ndarray] = {}
    bars = progress_bars(shown=progress)
    try:
        with bars, torch.inference_mode():
            task = bars.add_task(word, total=counts.n_cells)
            for numbers, batch in batches(tokenizer, counts, batch_size, report, **options):
                empty = ~cells_with_genes(batch, tokenizer).cpu().numpy()
                for name, tensor in compute({k: v.to(device) for k, v in batch.items()}).items():
                    values = tensor.float().cpu().numpy()
                    _check_finite(model, name, values, ~empty, numbers)
                    if empty.any():
                        values = np.where(empty.reshape(-1, *[1] * (values.ndim - 1)), np.float32(np.nan), values)
                    if name not in results:
                        results[name] = np.zeros((counts.n_cells, *values.shape[1:]), dtype=np.float32)
                    results[name][numbers] = values
                bars.advance(task, len(numbers))
    finally:
        model.to(home).train(training)
    return results


def class_names(scores: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Name the best class of each cell; ``"no prediction"`` for cells that express no gene of the model.

    Parameters
    ----------
    scores
        Logits or probabilities, shape (cells, classes); NaN where there are none.
    """
    best = np.where(np.isnan(scores[:, 0]), len(classes), scores.argmax(axis=1))
    return np.array([*classes, "no prediction"], dtype=object)[best]


def _check_finite(model: Any, name: str, values: np.ndarray, known: np.ndarray, numbers: np.ndarray) -> None:
    """Refuse results that are not numbers, but for those of cells without a known gene."""
    if np.isfinite(values).all():
        return
    bad = known & ~np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    if bad.any():
        source = getattr(getattr(model, "config", None), "name_or_path", "") or type(model).__name__
        dtype = next(model.parameters()).dtype
        check_finite(source, model)
        raise ValueError(
            f"{source}: {name.replace('_', ' ')} of {int(bad.sum()):,} of {len(bad):,} cells at once is not finite "
            f"(NaN or infinity), first that of cell {int(numbers[bad][0]):,}. The weights are finite: "
            + (
                f"{str(dtype).removeprefix('torch.')} overflows, use float32"
                if dtype == torch.float16
                else "the statistics of the tokenizer or the values of these cells are too large"
            )
        )


def embed_cells(model: Any, tokenizer: GeneExpressionTokenizer, cells: Any, **options: Any) -> np.ndarray:
    """Embed cells: the model's pooler output, shape (cells, size), NaN for those without a gene of the model.

    Options are those of `run_model`.
    """
    return run_model(model, tokenizer, cells, "pooler_output", **options)


__all__ = ["batches", "class_names", "default_device", "embed_cells", "run_batches", "run_model"]
