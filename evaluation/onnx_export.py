"""Export of a model to ONNX with the check of its graphs: on made cells of several shapes, and on real ones."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cellglot.evaluation.embedding import run_batches
from cellglot.modeling.adapter_folders import weight_files, weights_fingerprint
from cellglot.modeling.convert.onnx import export_graphs
from cellglot.modeling.loaded_model import LoadedModel, without_adapter
from cellglot.modeling.masked_genes import cell_encoder
from cellglot.modeling.onnx_network import OnnxNetwork


MADE_SHAPES = ((3, 40), (1, 1), (2, 700), (5, 2500))  # cells, genes with counts
LOST_LABELS = 0.02  # share of cells with another label above which a warning is due
DEFAULT_CELLS = "700 blood cells of scanpy (10x Genomics' PBMC 68k)"


@dataclass
class GraphLoss:
    """How far a graph's results are from those of PyTorch, on the same cells.

    Parameters
    ----------
    dtype
        Type of the stored weights.
    file
        The graph.
    n_cells
        Number of compared cells; 0 without cells.
    equal_labels
        Share of cells whose best class is the same; None without classes.
    score_difference
        Largest difference of a score (softmax of the logits); None without classes.
    cosine
        Smallest cosine of a cell's embeddings by both; None without cells.
    """

    dtype: str
    file: Path
    n_cells: int = 0
    equal_labels: float | None = None
    score_difference: float | None = None
    cosine: float | None = None

    @property
    def loses_labels(self) -> bool:
        """Whether more than 2% of the cells get another label."""
        return self.equal_labels is not None and self.equal_labels < 1 - LOST_LABELS

    def __str__(self) -> str:
        size = f"{self.file}: {self.dtype}, {self.file.stat().st_size / 1e6:.1f} MB"
        if not self.n_cells:
            return size
        found = (
            []
            if self.equal_labels is None
            else [f"the same label for {self.equal_labels:.2%} of {self.n_cells:,} cells"]
        )
        found += [] if self.score_difference is None else [f"scores differ by at most {self.score_difference:.2g}"]
        found += [] if self.cosine is None else [f"embeddings have a cosine of at least {self.cosine:.5f}"]
        return f"{size}; {', '.join(found)}"


@dataclass
class OnnxExport:
    """Graphs that were written.

    Parameters
    ----------
    graphs
        What each one loses against PyTorch.
    cells
        Cells on which they were compared, in words; None if no real cells fit the model.
    """

    graphs: list[GraphLoss] = field(default_factory=list)
    cells: str | None = None

    def warnings(self) -> list[str]:
        """Return a sentence for each graph that gives other labels to more than 2% of the cells."""
        return [
            f"WARNING: with {loss.dtype} weights {1 - (loss.equal_labels or 0):.1%} of {loss.n_cells:,} cells get "
            "another label: use float16 or float32"
            for loss in self.graphs
            if loss.loses_labels
        ]

    def summary(self) -> str:
        """Return the warnings, then a line for each graph."""
        on = "" if self.cells is None else f" and on {self.cells}"
        lines = [*self.warnings(), *map(str, self.graphs)]
        return "\n".join([*lines, f"compared with PyTorch on made cells of {len(MADE_SHAPES)} shapes{on}"])


def export_onnx(
    loaded: LoadedModel, folder: str | os.PathLike, dtypes: Sequence[str] = ("float32",), cells: Any = None
) -> OnnxExport:
    """Write the graphs of a model, and compare them with PyTorch.

    Parameters
    ----------
    loaded
        From `cellglot.load_model`.
    folder
        The graphs are written to ``onnx/`` in it.
    dtypes
        As for `cellglot.modeling.convert.onnx.export_graphs`.
    cells
        Opened cells on which results are compared, too. By default 700 blood cells, if they fit the model.

    Raises
    ------
    OnnxError
        As `export_graphs`.
    """
    own = weight_files(loaded.name)
    fingerprint = weights_fingerprint(loaded.name) if own else None
    written = export_graphs(loaded, folder, list(made_batches(loaded.tokenizer)), dtypes, fingerprint)
    graphs = [GraphLoss(dtype, path) for dtype, path in zip(dtypes, written, strict=True)]
    return OnnxExport(graphs, _compare(loaded, graphs, cells))


def made_batches(tokenizer: Any) -> Iterable[dict[str, torch.Tensor]]:
    """Yield inputs of cells with random genes and counts, of several shapes, with padding."""
    rng = np.random.default_rng(0)
    special = set(tokenizer.all_special_ids)
    ids = [number for number in range(tokenizer.vocab_size) if number not in special]
    names = tokenizer.convert_ids_to_tokens(ids)
    for cells, genes in MADE_SHAPES:
        chosen = rng.permutation(len(names))[:genes]
        counts = rng.poisson(2.0, (cells, len(chosen))).astype(np.float32)
        counts[-1, len(chosen) // 2 :] = 0
        counts[:, 0] = 1
        yield dict(tokenizer(counts, genes=[names[i] for i in chosen], min_coverage=0.0, return_tensors="pt"))


def _compare(loaded: LoadedModel, graphs: list[GraphLoss], cells: Any) -> str | None:
    """Compare graphs on cells, and return what cells these are; None if none fit."""
    from cellglot.tokenization.tokenization_gene_expression import GeneCoverageError

    opened = _blood_cells() if cells is None else cells
    try:
        expected = _results(loaded.network, loaded, opened)
    except GeneCoverageError:
        if cells is not None:
            raise
        return None
    for loss in graphs:
        found = _results(OnnxNetwork(loss.file, without_adapter(loaded.network).config), loaded, opened)
        _measure(loss, expected, found)
    return DEFAULT_CELLS if cells is None else f"the cells of {cells.name}"


def _blood_cells() -> Any:
    import warnings

    import scanpy

    from cellglot.tokenization.reading.cells import read_cells

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the format in which scanpy stores them
        return read_cells(scanpy.datasets.pbmc68k_reduced())


def _results(network: Any, loaded: LoadedModel, cells: Any) -> dict[str, np.ndarray]:
    """Return embeddings of cells, and scores if there are classes of cells."""
    seen: list[torch.Tensor] = []
    hook = cell_encoder(network).register_forward_hook(lambda *passed: seen.append(passed[-1].pooler_output))
    scored = loaded.purpose == "classes of cells"
    run = network if scored else cell_encoder(network)

    def compute(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        scores = run(**batch)
        return {"embedding": seen.pop()} | ({"scores": scores.logits.float().softmax(dim=-1)} if scored else {})

    try:
        return run_batches(run, loaded.tokenizer, cells, compute, device="cpu", progress=False)
    finally:
        hook.remove()


def _measure(loss: GraphLoss, expected: dict[str, np.ndarray], found: dict[str, np.ndarray]) -> None:
    known = ~np.isnan(expected["embedding"]).any(axis=1)
    a, b = (of["embedding"][known].astype(np.float64) for of in (expected, found))
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    loss.n_cells = int(known.sum())
    loss.cosine = float(((a * b).sum(axis=1) / np.maximum(lengths, 1e-300)).min(initial=1.0))
    if "scores" in expected:
        a, b = expected["scores"][known], found["scores"][known]
        loss.equal_labels = float((a.argmax(axis=1) == b.argmax(axis=1)).mean()) if len(a) else 1.0
        loss.score_difference = float(np.abs(a - b).max(initial=0))


__all__ = ["GraphLoss", "OnnxExport", "export_onnx", "made_batches"]
