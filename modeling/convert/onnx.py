"""Networks to ONNX graphs: one file for each type of weights, compared with PyTorch before it is kept."""

import copy
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cellglot.modeling.convert.onnx_weights import quantized, store_half
from cellglot.modeling.loaded_model import LoadedModel, without_adapter
from cellglot.modeling.masked_genes import cell_encoder
from cellglot.modeling.onnx_network import (
    FOLDER,
    MEASURED,
    ONNX_FILES,
    OnnxError,
    check_weights_type,
    graph_facts,
    input_names,
    needs,
    open_graph,
)


OPSET = 20  # has GELU as one operation; what onnxruntime-web runs, too
LARGEST = (1 << 31) - (1 << 20)  # bytes: a graph with its weights is one file of less than 2 GiB
TOLERANCES = {"float32": 1e-4, "float16": 1e-2}  # of the largest value of an output, or of 1
FACTS = "cellglot"  # key of the metadata
NEWTON_STEPS, REFINEMENTS = 28, 3  # for eigenvalues up to a million

Batch = Mapping[str, torch.Tensor]


class _Graph(nn.Module):
    """The part of a network that is exported: inputs of cells to embeddings, and scores if there is a head."""

    def __init__(self, network: nn.Module, names: Sequence[str], with_logits: bool):
        super().__init__()
        self.network, self.names, self.with_logits = network, list(names), with_logits

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return logits, if there is a head, and the cell embedding, shape (cells, size)."""
        batch = dict(zip(self.names, inputs, strict=True))
        encoder = cell_encoder(self.network)
        if not self.with_logits:
            return (encoder(**batch).pooler_output.float(),)
        pooled: list[torch.Tensor] = []
        hook = encoder.register_forward_hook(lambda *passed: pooled.append(passed[-1].pooler_output))
        try:
            logits = self.network(**batch).logits
        finally:
            hook.remove()
        return logits.float(), pooled[0].float()


def export_graphs(
    loaded: LoadedModel,
    folder: str | os.PathLike,
    batches: Sequence[Batch],
    dtypes: Sequence[str] = ("float32",),
    fingerprint: str | None = None,
) -> list[Path]:
    """Write the graphs of a model to ``onnx/`` of a folder, after each returned PyTorch's values.

    Inputs of a graph are those of the model's tokenizer, with a dynamic number of cells and genes, and for a model
    that imputes genes ``measured_genes``, bool, shape (vocabulary,), from the tokenizer's method. Outputs are
    ``logits``, if the network has a head for classes or values, and ``embedding``, the cell embedding.

    Parameters
    ----------
    loaded
        From `cellglot.load_model`. It does not change.
    folder
        The graphs are written to its folder ``onnx``, with the names that transformers.js knows.
    batches
        Inputs of the model, of several shapes, on which graphs and network are compared; the first one is traced and
        should have several cells and genes.
    dtypes
        Types of the stored weights: ``"float32"``; ``"float16"``, half the size, computed in float32; ``"int8"``,
        products of matrices and rows of embeddings in 8 bits.
    fingerprint
        `weights_fingerprint` of the model's folder, by which another model's graph is recognised.

    Returns
    -------
    list of Path
        The written files, in the order of `dtypes`.

    Raises
    ------
    OnnxError
        If the network cannot be exported, a graph returns other values than PyTorch, or it is too large.
    ImportError
        If a package is missing; says which to install.
    """
    needs("onnx", "onnxscript", "onnxruntime")
    for dtype in dtypes:
        check_weights_type(dtype)
    names = input_names(without_adapter(loaded.network).config, loaded.tokenizer)
    graph = prepared(loaded, names)
    if MEASURED in names:
        graph.network.gene_sums.imputation.solve = solve_by_products
        batches = list(_with_measured_genes(batches, len(loaded.tokenizer)))
    expected = [computed(graph, batch, names) for batch in batches]
    facts = graph_facts(without_adapter(loaded.network).config, names) | {"fingerprint": fingerprint}
    proto = traced(graph, batches[0], names, loaded.name)
    written = []
    for dtype in dtypes:
        path = Path(folder, FOLDER, ONNX_FILES[dtype])
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(proto, path, dtype, facts | {"dtype": dtype}, loaded.name)
        try:
            check_graph(path, batches, expected, TOLERANCES.get(dtype), loaded.name)
        except OnnxError:
            path.unlink(missing_ok=True)
            raise
        written.append(path)
    return written


def _with_measured_genes(batches: Sequence[Batch], vocab_size: int) -> Iterator[Batch]:
    """Yield batches with the genes that were measured: theirs, and some others, or all."""
    random = np.random.default_rng(0)
    for number, batch in enumerate(batches):
        measured = torch.from_numpy(random.random(vocab_size) < (0.5 if number % 2 == 0 else 1.0))
        measured[batch["input_ids"].flatten()] = True
        yield {**batch, MEASURED: measured}


def solve_by_products(matrix: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Solve linear equations by products of matrices alone, for runtimes without a solver.

    By Newton's iteration for the inverse (Ben-Israel and Cohen 1966), whose result is then refined.

    Parameters
    ----------
    matrix
        Symmetric, with eigenvalues of 1 or more, shape (factors, factors).
    right
        Shape (factors, sums).
    """
    twice = 2 * torch.eye(len(matrix), dtype=matrix.dtype)
    inverse = (twice / 2) / matrix.abs().sum(dim=1).max()
    for _ in range(NEWTON_STEPS):
        inverse = inverse @ (twice - matrix @ inverse)
    solved = inverse @ right
    for _ in range(REFINEMENTS):
        solved = solved + inverse @ (right - matrix @ solved)
    return solved


def output_names(with_logits: bool) -> list[str]:
    """Return the names of a graph's outputs."""
    return ["logits", "embedding"] if with_logits else ["embedding"]


def prepared(loaded: LoadedModel, names: Sequence[str]) -> _Graph:
    """Return a copy of the network for export: float32 on the CPU, adapters merged, attention with plain products."""
    network = copy.deepcopy(loaded.network).cpu().float().eval()
    if hasattr(network, "merge_and_unload"):
        network = network.merge_and_unload()
    network = without_adapter(network)
    network.set_attn_implementation("eager")
    with_logits = loaded.purpose in ("classes of cells", "a value of cells", "classes of genes")
    return _Graph(network, names, with_logits).eval()


def computed(graph: _Graph, batch: Batch, names: Sequence[str]) -> list[np.ndarray]:
    """Return the outputs of a network for a batch."""
    with torch.inference_mode():
        return [values.numpy() for values in graph(*(batch[name] for name in names))]


def traced(graph: _Graph, batch: Batch, names: Sequence[str], source: str) -> Any:
    """Trace the network, and return the graph as an ``onnx.ModelProto``."""
    cells, genes = torch.export.Dim("cells"), torch.export.Dim("genes", max=_most_tokens(graph.network))
    shapes = tuple({} if name == MEASURED else {0: cells, 1: genes} for name in names)
    with torch.no_grad(), _quiet():
        try:
            program = torch.onnx.export(
                graph,
                tuple(batch[name] for name in names),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(names),
                dynamic_shapes=(shapes,),
                verbose=False,
            )
        except Exception as error:  # noqa: BLE001 - whatever a network of another family does
            cause = _first_line(error)
            raise OnnxError(f"{source}: {type(graph.network).__name__} cannot be exported to ONNX: {cause}") from error
    assert program is not None
    _rename(program.model, output_names(graph.with_logits))
    proto = program.model_proto
    if proto.ByteSize() > LARGEST:
        raise OnnxError(f"{source} is too large for one ONNX file: {proto.ByteSize() / 2**30:.1f} GiB of at most 2")
    return proto


def _most_tokens(network: Any) -> int:
    config = network.config
    return getattr(getattr(config, "cell_config", config), "max_position_embeddings", None) or config.vocab_size


def _rename(model: Any, outputs: Sequence[str]) -> None:
    """Name the outputs of a graph, and every value within it by its number: names of operations may collide."""
    number, ends = 0, {id(value) for value in model.graph.outputs}
    for node in model.graph:
        for value in node.outputs:
            if id(value) not in ends:
                value.name = f"value_{number}"
                number += 1
    for value, name in zip(model.graph.outputs, outputs, strict=True):
        value.name = name


def _first_line(error: BaseException) -> str:
    """Return what the innermost cause of an error of the exporter says, in a line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide what the exporter says of packages and operations that are not used."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


# -------------------------------------------------------------------- types of weights


def _write(proto: Any, path: Path, dtype: str, facts: Mapping[str, Any], source: str) -> None:
    import onnx

    result = onnx.ModelProto()
    result.CopyFrom(proto)
    result.producer_name = "cellglot"
    strip(result)
    if dtype == "float16":
        store_half(result, source)
    if dtype == "int8":
        result = quantized(result)
    entry = result.metadata_props.add()
    entry.key, entry.value = FACTS, json.dumps(dict(facts))
    onnx.checker.check_model(result)
    onnx.save_model(result, path)


def strip(proto: Any) -> None:
    """Remove what the exporter notes of each operation: stack traces with the paths of this machine."""
    for message in (proto, proto.graph, *proto.graph.node, *proto.graph.value_info, *proto.graph.initializer):
        for name in ("metadata_props", "doc_string"):
            if name in message.DESCRIPTOR.fields_by_name:
                message.ClearField(name)
    for function in proto.functions:
        for message in (function, *function.node):
            message.ClearField("metadata_props")
            message.ClearField("doc_string")


# -------------------------------------------------------------------- comparison


def check_graph(
    path: Path,
    batches: Sequence[Batch],
    expected: Sequence[Sequence[np.ndarray]],
    tolerance: float | None,
    source: str,
) -> float:
    """Run a graph, and refuse one that returns other values than PyTorch, as `check_session`."""
    return check_session(open_graph(path), batches, expected, tolerance, source)


def check_session(
    session: Any,
    batches: Sequence[Batch],
    expected: Sequence[Sequence[np.ndarray]],
    tolerance: float | None,
    source: str,
) -> float:
    """Run an opened graph, and refuse one that returns other values than PyTorch.

    Parameters
    ----------
    session
        The graph in onnxruntime.
    batches
        Inputs.
    expected
        What the network returns for each of them: the values of each output.
    tolerance
        Largest difference, as a share of the output's largest value, or of 1 if that is smaller. None to allow any
        finite value.
    source
        Name of the model in messages.

    Returns
    -------
    float
        The largest difference.

    Raises
    ------
    OnnxError
        If the values differ by more, or are not finite.
    """
    largest = 0.0
    names = [output.name for output in session.get_outputs()]
    for batch, values in zip(batches, expected, strict=True):
        found = session.run(names, {entry.name: batch[entry.name].numpy() for entry in session.get_inputs()})
        for name, a, b in zip(names, values, found, strict=True):
            shape = tuple(next(iter(batch.values())).shape)
            if a.shape != b.shape or not np.isfinite(b[np.isfinite(a)]).all():
                raise OnnxError(
                    f"{source}: the ONNX graph returns {name} that are not finite for inputs of shape {shape}"
                )
            finite = a[np.isfinite(a)]
            scale = max(1.0, float(np.abs(finite).max(initial=0)))
            difference = float(np.abs(finite - b[np.isfinite(a)]).max(initial=0)) / scale
            largest = max(largest, difference)
            if tolerance is not None and difference > tolerance:
                raise OnnxError(
                    f"{source}: the ONNX graph returns other {name} than PyTorch for inputs of shape {shape}: "
                    f"{difference:.1e} of {scale:.3g}, allowed are {tolerance:.0e}. It was not kept"
                )
    return largest


__all__ = [
    "OPSET",
    "TOLERANCES",
    "check_graph",
    "check_session",
    "computed",
    "export_graphs",
    "output_names",
    "prepared",
    "solve_by_products",
    "strip",
    "traced",
]
