"""Layers whose weights are read past their `forward`, as long as nothing but the weights shapes their output."""

import torch
from torch import nn


def works_alone(module: nn.Module) -> bool:
    """Whether this is a plain layer, neither adapted nor hooked: nothing but its parameters shapes its output.

    Hooks also bring weights that are kept elsewhere, as those of `accelerate` do when a model does not fit.
    """
    hooked = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    return type(module) in (nn.LayerNorm, nn.Linear, nn.Embedding) and not hooked


def embedding_rows(embedding: nn.Module, number: int, device: torch.device) -> torch.Tensor:
    """Return the first rows of an embedding, shape (number, size): its weight, or what it gives for these ids.

    Parameters
    ----------
    embedding
        Plain, adapted or hooked.
    """
    if works_alone(embedding):
        return embedding.weight[:number]
    return embedding(torch.arange(number, device=device))


__all__ = ["embedding_rows", "works_alone"]
