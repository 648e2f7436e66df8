"""Keys and values of genes in Exceiver's encoder, projected once for all cells, without training.

A state is the embedding e of a gene times a number x, its expression in a cell. Its layer norm is (e - mean(e)) * w
times x / sqrt(var(e) * x**2 + eps), plus b: a vector of the gene times a number, plus what all genes have in common.
So keys and values are rows of a table, times a number. What all keys have in common adds the same to all logits of a
query, which changes no weight; what all values have in common is added to the output, as weights sum to 1.
"""

import torch
from torch import nn

from .plain_layers import works_alone


class GeneProjections:
    """Keys and values of all genes.

    Parameters
    ----------
    embedding
        Embeddings of genes, shape (genes, size).
    norm
        Layer norm of states.
    key, value
        Layers from normed states to keys and values.
    """

    def __init__(self, embedding: torch.Tensor, norm: nn.LayerNorm, key: nn.Linear, value: nn.Linear):
        centred = embedding - embedding.mean(dim=-1, keepdim=True)
        self.variance, self.eps = centred.square().mean(dim=-1), norm.eps
        self.rows = (centred * norm.weight) @ torch.cat([key.weight, value.weight]).T
        self.in_common = nn.functional.linear(norm.bias, value.weight, value.bias)

    def __call__(self, genes: torch.Tensor, expression: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values of the genes of cells, each without what all have in common.

        Parameters
        ----------
        genes
            Numbers of genes, shape (cells, genes).
        expression
            Their expression, shape (cells, genes).
        """
        scale = expression * (self.variance[genes] * expression.square() + self.eps).rsqrt()
        states = nn.functional.embedding(genes, self.rows).mul_(scale.unsqueeze(-1))
        keys, values = states.chunk(2, dim=-1)
        return keys, values


def may_project(*layers: nn.Module) -> bool:
    """Whether layers can be replaced by a table: plain ones in single precision, outside training and compilation."""
    if torch.is_grad_enabled() or torch.jit.is_tracing() or torch.compiler.is_compiling():
        return False
    weights = [weight for layer in layers for weight in layer.parameters()]
    if any(w.is_meta or w.dtype != torch.float32 for w in weights):
        return False
    return not torch.is_autocast_enabled(weights[0].device.type) and all(map(works_alone, layers))


__all__ = ["GeneProjections", "may_project"]
