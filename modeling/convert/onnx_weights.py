"""Weights of an ONNX graph in fewer bits: float16, and 8 bits."""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from cellglot.modeling.onnx_network import OnnxError


FEW_WEIGHTS = 1024  # smaller tensors keep float32


def store_half(proto: Any, source: str) -> None:
    """Store weights as float16, and compute with them in float32.

    Runtimes without kernels for float16 (CPUs, browsers) would convert at every operation; a stored weight is
    converted once, when the graph is loaded. Rows of an embedding are converted after they were selected.

    Parameters
    ----------
    proto
        An ``onnx.ModelProto``, which is changed.
    source
        Name of the model in messages.

    Raises
    ------
    OnnxError
        If a weight is too large for float16.
    """
    from onnx import TensorProto, helper, numpy_helper

    graph, most = proto.graph, np.finfo(np.float16).max
    halved = set()
    for tensor in graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.size < FEW_WEIGHTS:
            continue
        if np.abs(values).max() > most:
            raise OnnxError(f"{source}: weights of more than {most:,.0f} overflow in float16; use float32")
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), tensor.name))
        halved.add(tensor.name)
    nodes, cast = [], set()
    for node in graph.node:
        if node.op_type == "Gather" and node.input[0] in halved:
            selected = f"{node.output[0]}_float16"
            whole = helper.make_node("Cast", [selected], [node.output[0]], to=TensorProto.FLOAT)
            node.output[0] = selected
            nodes += [node, whole]
            continue
        for place, name in enumerate(node.input):
            if name in halved:
                if name not in cast:
                    nodes.append(helper.make_node("Cast", [name], [f"{name}_float32"], to=TensorProto.FLOAT))
                    cast.add(name)
                node.input[place] = f"{name}_float32"
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    _note_types(graph, halved, TensorProto.FLOAT16)


def quantized(proto: Any) -> Any:
    """Return the graph with weights of 8 bits.

    Products of matrices are computed in integers, with a scale for each column of unsigned weights: sums of signed
    ones overflow on older processors. A row of an embedding has a scale of its own: with one for all genes, as the
    quantiser has, many more cells get another label. Heads, which are products of one row a cell, keep float32.

    Parameters
    ----------
    proto
        An ``onnx.ModelProto``; its embeddings are changed.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    _store_rows(proto)
    with tempfile.TemporaryDirectory() as folder, _quiet_root():
        path = Path(folder, "model.onnx")
        quantize_dynamic(
            proto,
            path,
            weight_type=QuantType.QUInt8,
            per_channel=True,
            op_types_to_quantize=["MatMul"],
            extra_options={"MatMulConstBOnly": True},
        )
        return onnx.load_model(path)


def _store_rows(proto: Any) -> None:
    """Store embeddings as 8 bits with a scale for each row, and compute with the selected rows in float32."""
    from onnx import TensorProto, helper, numpy_helper

    graph = proto.graph
    uses: dict[str, set[tuple[str, int]]] = {}
    for node in graph.node:
        for place, name in enumerate(node.input):
            uses.setdefault(name, set()).add((node.op_type, place))
    tables, scales = set(), []
    for tensor in graph.initializer:
        values = numpy_helper.to_array(tensor)
        selected_only = uses.get(tensor.name) == {("Gather", 0)} and values.dtype == np.float32 and values.ndim == 2
        if not selected_only or values.size < FEW_WEIGHTS:
            continue
        scale = np.maximum(np.abs(values).max(axis=1, keepdims=True) / 127, np.finfo(np.float32).tiny)
        tensor.CopyFrom(numpy_helper.from_array(np.rint(values / scale).astype(np.int8), tensor.name))
        scales.append(numpy_helper.from_array(scale, _scale_of(tensor.name)))
        tables.add(tensor.name)
    graph.initializer.extend(scales)
    nodes = []
    for node in graph.node:
        nodes.append(node)
        if node.op_type == "Gather" and node.input[0] in tables:
            (table, rows), found = node.input, node.output[0]
            selected, scale, whole = (f"{found}_{name}" for name in ("int8", "scale", "float32"))
            node.output[0] = selected
            nodes += [
                helper.make_node("Gather", [_scale_of(table), rows], [scale], axis=0),
                helper.make_node("Cast", [selected], [whole], to=TensorProto.FLOAT),
                helper.make_node("Mul", [whole, scale], [found]),
            ]
    del graph.node[:]
    graph.node.extend(nodes)
    _note_types(graph, tables, TensorProto.INT8)


def _scale_of(table: str) -> str:
    return f"{table}_scale"


def _note_types(graph: Any, names: set[str], number: int) -> None:
    """Note the type of weights where the graph lists types of values."""
    for value in graph.value_info:
        if value.name in names:
            value.type.tensor_type.elem_type = number


@contextmanager
def _quiet_root() -> Iterator[None]:
    """Hide advice that the quantiser gives by the root logger."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


__all__ = ["quantized", "store_half"]
