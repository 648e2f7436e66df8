"""LangCell's zero-shot annotation the straightforward way, as in the released notebook, with the same weights.

Cells are encoded once, and texts once; then the text encoder runs on each (cell, text) pair, one text with all cells
at a time, padded, with explicit attention weights. With `fused`, attention is PyTorch's fused kernel.
"""

import torch
from torch import nn

from cellglot.modeling import LangCellModel


def attend(
    block: nn.Module, states: torch.Tensor, others: torch.Tensor, bias: torch.Tensor, fused: bool
) -> torch.Tensor:
    """Multi-head attention of `states` onto `others`."""
    query, key, value = (
        projection(x).unflatten(-1, (-1, block.head_dim)).transpose(1, 2)
        for projection, x in ((block.q_proj, states), (block.k_proj, others), (block.v_proj, others))
    )
    if fused:
        context = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    else:
        weights = (query @ key.transpose(-1, -2) / block.head_dim**0.5 + bias).softmax(dim=-1)
        context = weights @ value
    return block.o_proj(context.transpose(1, 2).flatten(2))


def feed_forward(layer: nn.Module, states: torch.Tensor) -> torch.Tensor:
    """Linear, activation, linear, with residual and layer norm."""
    return layer.norm_feed_forward(states + layer.fc2(layer.activation(layer.fc1(states))))


def bias_of(mask: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """Return what is added to logits, shape (rows, 1, 1, tokens)."""
    hidden = (mask == 0)[:, None, None, :]
    return torch.zeros(hidden.shape, dtype=states.dtype).masked_fill(hidden, torch.finfo(states.dtype).min)


def encode_cells(model: LangCellModel, input_ids: torch.Tensor, mask: torch.Tensor, fused: bool) -> torch.Tensor:
    """Return hidden states of cells."""
    encoder = model.cell_model
    states = encoder.embeddings(input_ids)
    bias = bias_of(mask, states)
    for layer in encoder.layers:
        states = layer.norm_attention(states + attend(layer.self_attn, states, states, bias, fused))
        states = feed_forward(layer, states)
    return states


def encode_texts(
    model: LangCellModel,
    input_ids: torch.Tensor,
    mask: torch.Tensor,
    fused: bool,
    cells: torch.Tensor | None = None,
    cell_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return hidden states of texts; text i reads cell i where there are cells."""
    encoder = model.text_model
    states = encoder.embeddings(input_ids)
    bias = bias_of(mask, states)
    for layer in encoder.layers:
        states = layer.norm_attention(states + attend(layer.self_attn, states, states, bias, fused))
        if cells is not None:
            cell_bias = bias_of(cell_mask, states)
            states = layer.norm_cross_attention(states + attend(layer.cross_attn, states, cells, cell_bias, fused))
        states = feed_forward(layer, states)
    return states


@torch.no_grad()
def annotate(
    model: LangCellModel,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    text_input_ids: torch.Tensor,
    text_attention_mask: torch.Tensor,
    alpha: float = 0.1,
    text_features: torch.Tensor | None = None,
    fused: bool = False,
) -> torch.Tensor:
    """Return the scores, shape (cells, classes)."""
    cells = encode_cells(model, input_ids, attention_mask, fused)
    cell_features = nn.functional.normalize(model.cell_model.projection(cells[:, 0]), dim=-1)
    if text_features is None:
        texts = encode_texts(model, text_input_ids, text_attention_mask, fused)
        text_features = nn.functional.normalize(model.text_model.projection(texts[:, 0]), dim=-1)
    similarity = (cell_features @ text_features.T / model.config.tau).softmax(dim=-1)
    matching = []
    for text in range(len(text_input_ids)):
        rows = (text_input_ids[text].expand(len(cells), -1), text_attention_mask[text].expand(len(cells), -1))
        states = encode_texts(model, *rows, fused, cells, attention_mask)
        matching.append(model.matching_head(states[:, 0]).softmax(dim=-1)[:, 1])
    return alpha * similarity + (1 - alpha) * torch.stack(matching, dim=1).softmax(dim=-1)
