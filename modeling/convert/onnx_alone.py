"""The graph of a classifier without its weights, for `cellglot.modeling.graph_alone`."""

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import nn

from cellglot.modeling.convert.onnx import Batch, check_session, computed, prepared, strip, traced
from cellglot.modeling.gene_projections import GeneProjections
from cellglot.modeling.graph_alone import FACTS_FILE, GRAPH_FILE, WEIGHTS_FILE, digests, open_graph_alone
from cellglot.modeling.loaded_model import LoadedModel
from cellglot.modeling.modeling_exceiver import ExceiverCrossBlock, without_empty
from cellglot.modeling.onnx_network import OnnxError, needs
from cellglot.outputs import atomic, write_json


FEWEST = 8  # numbers of a weight that is left out of the graph
TOLERANCE = 1e-5  # of the largest value of an output, or of 1


def export_graph_alone(loaded: LoadedModel, batches: Sequence[Batch]) -> Path:
    """Write the graph of a classifier into its folder, after it returned PyTorch's values.

    Parameters
    ----------
    loaded
        A classifier from `cellglot.load_model`, of a folder with ``model.safetensors``.
    batches
        As for `cellglot.modeling.convert.onnx.export_graphs`.

    Returns
    -------
    Path
        The written graph.

    Raises
    ------
    OnnxError
        If the network cannot be exported, or the graph returns other values than PyTorch.
    ImportError
        If a package is missing; says which to install.
    """
    needs("onnx", "onnxscript", "onnxruntime")
    folder = Path(loaded.name)
    if loaded.purpose != "classes of cells" or not (folder / WEIGHTS_FILE).is_file():
        raise OnnxError(f"{folder} is not the folder of a classifier of cells")
    names = list(loaded.tokenizer.model_input_names)
    graph = prepared(loaded, names)
    expected = [computed(graph, batch, names) for batch in batches]
    for block in graph.modules():
        if isinstance(block, ExceiverCrossBlock):
            object.__setattr__(block, "from_genes", functools.partial(attend_by_table, block))
    proto = traced(graph, batches[0], names, loaded.name)
    proto.producer_name = "cellglot"
    strip(proto)
    weights = _without_weights(proto, folder / WEIGHTS_FILE)
    target = folder / GRAPH_FILE
    with atomic(target) as temporary:
        temporary.write_bytes(proto.SerializeToString())
        session = open_graph_alone(temporary, folder / WEIGHTS_FILE, weights)
        check_session(session, batches, expected, TOLERANCE, loaded.name)
    write_json(folder / FACTS_FILE, {"made_of": digests(folder), "weights": weights})
    return target


def attend_by_table(
    block: ExceiverCrossBlock,
    query_states: torch.Tensor,
    embedding: nn.Embedding,
    genes: torch.Tensor,
    expression: torch.Tensor,
    key_mask: torch.Tensor,
) -> torch.Tensor:
    """Attend as `ExceiverCrossBlock.from_genes`, by a table of the logits and values of all genes.

    Queries are the same for all cells, so that a gene's logits are rows of a table times a number, see
    `cellglot.modeling.gene_projections`. onnxruntime computes the table once, when it opens the graph.
    """
    attn, norm = block.cross_attn, block.norm_key_value
    table = GeneProjections(embedding.weight, norm, attn.k_proj, attn.v_proj)
    queries = attn.split_heads(attn.q_proj(block.norm_query(query_states)))[0] * attn.scaling
    keys, values = table.rows.chunk(2, dim=-1)
    heads, number, _ = queries.shape
    logits = torch.einsum("ghd,hqd->ghq", keys.unflatten(-1, (heads, -1)), queries).flatten(1)
    scale = expression * (table.variance[genes] * expression.square() + table.eps).rsqrt()
    states = nn.functional.embedding(genes, torch.cat([logits, values], dim=-1)) * scale.unsqueeze(-1)
    of_cells = states[..., : heads * number].transpose(1, 2).unflatten(1, (heads, number))
    hidden = of_cells.masked_fill(~key_mask[:, None, None, :], torch.finfo(of_cells.dtype).min)
    context = hidden.softmax(dim=-1) @ attn.split_heads(states[..., heads * number :])
    attended = context.transpose(1, 2).flatten(2) + table.in_common
    return block._finish(query_states, attn.o_proj(without_empty(attended, key_mask)))


def _without_weights(proto: Any, weights: str | os.PathLike) -> dict[str, tuple[str, bool]]:
    """Remove the weights from a graph; return the tensor of each in a file, and whether it is transposed there."""
    from onnx import TensorProto
    from onnx.numpy_helper import to_array

    tensors = {name: values.astype(np.float32) for name, values in load_file(weights).items()}
    found: dict[str, tuple[str, bool]] = {}
    for entry in proto.graph.initializer:
        values = to_array(entry)
        if values.dtype != np.float32 or values.size < FEWEST:
            continue
        for key, tensor in tensors.items():
            plain = tensor.shape == values.shape and np.array_equal(tensor, values)
            if plain or (tensor.T.shape == values.shape and np.array_equal(tensor.T, values)):
                found[entry.name] = key, not plain
                entry.ClearField("raw_data")
                entry.ClearField("float_data")
                entry.data_location = TensorProto.EXTERNAL
                place = entry.external_data.add()
                place.key, place.value = "location", WEIGHTS_FILE
                break
    return found


__all__ = ["export_graph_alone"]
