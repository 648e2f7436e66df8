"""Cells to embeddings, streamed in bounded memory."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from cellglot.modeling.cell_pipeline import cells_with_genes
from cellglot.modeling.loaded_model import without_adapter
from cellglot.modeling.model_files import check_finite
from cellglot.progress import progress_bars
from cellglot.tokenization.count_matrix import open_counts
from cellglot.tokenization.gene_report import GeneReport
from cellglot.tokenization.tokenization_gene_expression import GeneExpressionTokenizer


def default_device() -> torch.device:
    """Return CUDA if available, else Apple's MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


@contextmanager
def evaluated_on(model: Any, device: str | torch.device | None) -> Iterator[torch.device]:
    """Move a model to a device and to evaluation mode; restore both at the end."""
    device = torch.device(device) if device is not None else default_device()
    training, first = model.training, next(model.parameters(), None)
    home = torch.device("cpu") if first is None else first.device  # onnxruntime computes on the CPU
    model.to(device).eval()
    try:
        yield device
    finally:
        model.to(home).train(training)


def run_model(model: Any, tokenizer: GeneExpressionTokenizer, cells: Any, output: str, **options: Any) -> np.ndarray:
    """Return one field of a model's output for every cell, in the order of the cells.

    Parameters
    ----------
    output
        The field: ``"pooler_output"``, ``"logits"``.
    model, tokenizer, cells, **options
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
    **options: Any,
) -> dict[str, np.ndarray]:
    """Compute values for every cell with a model, batch by batch; only the results stay in memory.

    Parameters
    ----------
    cells
        AnnData, opened cells or counts, as for the tokenizer.
    compute
        Function of the model's inputs for some cells; returns name -> tensor with one row per cell.
    **options
        ``batch_size``; ``device``, by default CUDA, MPS or the CPU, in this order; ``progress``, whether to show a
        bar, with its ``word``; ``report``, which counts the matched and lost genes; and ``genes``, ``layer``,
        ``gene_column``, ``min_coverage`` as for the tokenizer.

    Returns
    -------
    dict
        Name -> array in the order of the cells, shape (cells, ...), float32; NaN for cells that express no gene of the
        model.

    Raises
    ------
    ValueError
        If the tokenizer does not match the model, or a result is not finite.
    """
    results: dict[str, np.ndarray] = {}
    for n_cells, numbers, found in stream_batches(model, tokenizer, cells, compute, **options):
        for name, values in found.items():
            if name not in results:
                results[name] = np.zeros((n_cells, *values.shape[1:]), dtype=np.float32)
            results[name][numbers] = values
    return results


def stream_batches(
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
) -> Iterator[tuple[int, np.ndarray, dict[str, np.ndarray]]]:
    """Yield what `run_batches` returns batch by batch: number of all cells, numbers of the batch's cells, values."""
    if model.config.vocab_size < tokenizer.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size:,} ids, but the model's vocab_size is "
            f"{model.config.vocab_size:,}: use the model's own tokenizer"
        )
    counts = open_counts(cells, options.get("genes"), options.get("layer"))
    bars = progress_bars(shown=progress)
    with evaluated_on(model, device) as place, bars:
        task = bars.add_task(word, total=counts.n_cells)
        shared = {
            k: v.to(place) for k, v in measured_genes(model, tokenizer, counts, options.get("gene_column")).items()
        }
        for numbers, batch in tokenizer.batches(counts, batch_size, report, **options):
            empty, found = ~cells_with_genes(batch, tokenizer).cpu().numpy(), {}
            with torch.inference_mode():
                tensors = compute({k: v.to(place) for k, v in batch.items()} | shared)
            for name, tensor in tensors.items():
                values = tensor.float().cpu().numpy()
                _check_finite(model, name, values, ~empty, numbers)
                if empty.any():
                    values = np.where(empty.reshape(-1, *[1] * (values.ndim - 1)), np.float32(np.nan), values)
                found[name] = values
            yield counts.n_cells, numbers, found
            bars.advance(task, len(numbers))


def measured_genes(
    model: Any, tokenizer: GeneExpressionTokenizer, counts: Any, gene_column: str | None = None
) -> dict[str, torch.Tensor]:
    """Return the genes of a file as an input of a model that imputes the others, empty for other models."""
    sums = getattr(without_adapter(model), "gene_sums", None)
    imputes = sums is not None and sums.imputation is not None
    if not imputes and "measured_genes" not in getattr(model, "inputs", ()):  # of a graph of onnxruntime
        return {}
    return {"measured_genes": torch.from_numpy(tokenizer.measured_genes(counts, gene_column=gene_column))}


def class_names(scores: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Return the name of each cell's best class; ``"no prediction"`` for cells that express no gene of the model.

    Parameters
    ----------
    scores
        Logits or probabilities, shape (cells, classes); rows of NaN for cells without a prediction.
    """
    best = np.where(np.isnan(scores[:, 0]), len(classes), scores.argmax(axis=1))
    return np.array([*classes, "no prediction"], dtype=object)[best]


def _check_finite(model: Any, name: str, values: np.ndarray, known: np.ndarray, numbers: np.ndarray) -> None:
    """Refuse results that are not finite, except for cells without a known gene."""
    if np.isfinite(values).all():
        return
    bad = known & ~np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    if bad.any():
        source = getattr(getattr(model, "config", None), "name_or_path", "") or type(model).__name__
        dtype = next((weight.dtype for weight in model.parameters()), torch.float32)
        check_finite(source, model)
        raise ValueError(
            f"{source}: {name.replace('_', ' ')} of {int(bad.sum()):,} of {len(bad):,} cells of a batch is not finite "
            f"(NaN or infinity), first that of cell {int(numbers[bad][0]):,}. The weights are finite: "
            + (
                f"{str(dtype).removeprefix('torch.')} overflows, use float32"
                if dtype == torch.float16
                else "the statistics of the tokenizer or the values of these cells are too large"
            )
        )


def embed_cells(model: Any, tokenizer: GeneExpressionTokenizer, cells: Any, **options: Any) -> np.ndarray:
    """Embed cells: the model's pooler output, shape (cells, size), NaN for cells without a gene of the model.

    Options are those of `run_batches`.
    """
    return run_model(model, tokenizer, cells, "pooler_output", **options)


__all__ = [
    "class_names",
    "default_device",
    "embed_cells",
    "evaluated_on",
    "measured_genes",
    "run_batches",
    "run_model",
    "stream_batches",
]
