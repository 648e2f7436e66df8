"""A latent that is a weighted sum of log counts: what principal components keep, beside what a network learned."""

from typing import Any

import torch
from torch import nn
from transformers import initialization as init

from .gene_sums import implied_logs


class LinearLatent(nn.Module):
    """Weighted sum of the expression of some genes, shifted: one latent of a cell.

    Our choice, see docs/studies/pretraining.md. Weights are set by `set_weights` after training, from principal
    components of cells of several data sets; a network with random weights has a random projection.

    Parameters
    ----------
    config
        With ``linear_genes`` (number of genes with weights), ``vocab_size`` and ``hidden_size``.
    """

    def __init__(self, config: Any):
        super().__init__()
        self.weights = nn.Embedding(config.linear_genes + 1, config.hidden_size, padding_idx=0)
        self.register_buffer("rows", torch.zeros(config.vocab_size, dtype=torch.int32))
        self.register_buffer("zero_values", torch.zeros(config.linear_genes + 1))
        self.register_buffer("shift", torch.zeros(config.hidden_size))

    @torch.no_grad()
    def reset(self) -> None:
        """Set statistics and the weights of other genes to zero, those that were not loaded."""
        for values in self.buffers():
            init.zeros_(values)
        if not getattr(self.weights.weight, "_is_hf_initialized", False):
            self.weights.weight[0] = 0.0

    @torch.no_grad()
    def set_weights(
        self, token_ids: torch.Tensor, weights: torch.Tensor, zero_values: torch.Tensor, shift: torch.Tensor
    ) -> None:
        """Set the weights.

        Parameters
        ----------
        token_ids
            Genes, shape (genes,), as many as ``linear_genes``.
        weights
            Shape (genes, hidden size).
        zero_values
            Value of each gene without counts, as the model reads values, shape (genes,).
        shift
            What is subtracted from the sum, shape (hidden size,).
        """
        self.rows.zero_()
        self.rows[token_ids] = torch.arange(1, len(token_ids) + 1, dtype=torch.int32)
        self.weights.weight[1:] = weights
        self.weights.weight[0] = 0.0
        self.zero_values[1:], self.shift[:] = zero_values, shift

    def of_genes(self, input_ids: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Return what each gene adds, zero for padding, shape (cells, genes, hidden size)."""
        rows = self.rows[input_ids].long()
        counted = values.to(self.weights.weight.dtype) - self.zero_values[rows].to(self.weights.weight.dtype)
        return self.weights(rows) * counted.unsqueeze(-1)

    def forward(self, input_ids: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Return the latent, shape (cells, hidden size).

        Parameters
        ----------
        input_ids
            Expressed genes, shape (cells, genes); padding and masked genes add nothing.
        values
            Their values, as the model reads them, of the same shape.
        """
        summed = self.of_genes(input_ids, values).sum(dim=1)
        return summed - self.shift.to(summed.dtype)


class RankedLinearLatent(LinearLatent):
    """The linear latent of rank-value tokens, over the counts that their order implies, see `implied_logs`."""

    def __init__(self, config: Any):
        super().__init__(config)
        self.register_buffer("medians", torch.zeros(config.vocab_size))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Return the latent, shape (cells, hidden size).

        Parameters
        ----------
        input_ids, attention_mask
            As for `ScCelloModel`, not packed, shape (cells, tokens); special tokens add nothing.
        """
        return super().forward(input_ids, implied_logs(self.medians, input_ids, attention_mask))


def pooled_size(config: Any) -> int:
    """Return the size of the embedding of rank-value tokens before any projection: hidden state, and linear latent."""
    return int(config.hidden_size) * (2 if config.linear_genes else 1)


__all__ = ["LinearLatent", "RankedLinearLatent", "pooled_size"]
