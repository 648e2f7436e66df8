"""Attention with explicit weights, and layers whose weights may be read without calling them."""

from typing import Any

import torch
from torch import nn


def works_alone(module: nn.Module) -> bool:
    """Whether this is a plain layer without adapter or hooks: its output depends on its parameters only.

    Hooks of `accelerate` also load weights that are offloaded.
    """
    return type(module) in (nn.LayerNorm, nn.Linear, nn.Embedding) and not is_hooked(module)


def is_hooked(module: nn.Module) -> bool:
    """Whether something else happens when a module is called."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def embedding_rows(embedding: nn.Module, number: int, device: torch.device) -> torch.Tensor:
    """Return the first rows of an embedding, plain, adapted or hooked; shape (number, size)."""
    if works_alone(embedding):
        return embedding.weight[:number]
    return embedding(torch.arange(number, device=device))


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend with explicit weights; the mask is True for keys to use, or is added to the logits."""
    logits = torch.matmul(query, key.transpose(-1, -2)) * scaling
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        logits = logits.masked_fill(~attention_mask, torch.finfo(logits.dtype).min)
    elif attention_mask is not None:
        logits = logits + attention_mask
    weights = nn.functional.softmax(logits, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


__all__ = ["eager_attention_forward", "embedding_rows", "is_hooked", "works_alone"]
