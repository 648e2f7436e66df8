"""What a weighted sum over genes is expected to be in cells of which some genes were not measured."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import initialization as init

from .expected_weights import expected_weights


class GeneImputation(nn.Module):
    """Factor analysis of log expression, by which the genes that a file lacks are expected from those that it has.

    A file that does not contain a gene says nothing of it, which is not the same as no counts. A sum over genes is
    replaced by its expectation given the measured genes, which is again a weighted sum. Our choice, see
    docs/models/collection.md.

    Parameters
    ----------
    genes
        Number of genes with statistics; the others are never expected.
    factors
        Number of factors.
    """

    def __init__(self, genes: int, factors: int):
        super().__init__()
        self.solve: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = torch.linalg.solve
        self.register_buffer("token_ids", torch.zeros(genes, dtype=torch.int32))
        self.register_buffer("means", torch.zeros(genes))
        self.register_buffer("loadings", torch.zeros(genes, factors))
        self.register_buffer("variances", torch.ones(genes))

    @torch.no_grad()
    def reset(self) -> None:
        """Set all statistics to those of genes without expression, those that were not loaded."""
        for name, values in self.named_buffers():
            (init.ones_ if name == "variances" else init.zeros_)(values)

    @torch.no_grad()
    def set_statistics(self, token_ids: Any, means: Any, loadings: Any, variances: Any) -> None:
        """Set the statistics of log expression.

        Parameters
        ----------
        token_ids
            Genes, shape (genes,).
        means, variances
            Mean of each gene, and its variance that factors do not explain; shape (genes,).
        loadings
            Shape (genes, factors).
        """
        given = {"token_ids": token_ids, "means": means, "loadings": loadings, "variances": variances}
        for name, values in given.items():
            buffer = getattr(self, name)
            buffer.copy_(torch.as_tensor(values).to(buffer.dtype))

    def forward(self, weight: torch.Tensor, measured: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the weights of measured genes, and what to add to the sum, so that it is the expected one.

        Parameters
        ----------
        weight
            Of each token, shape (vocabulary, sums).
        measured
            Whether each token is a gene that was measured, bool, shape (vocabulary,).

        Returns
        -------
        tuple
            Shapes (vocabulary, sums) and (sums,), of the type of `weight`.
        """
        ids = self.token_ids.long()
        rows, shift = expected_weights(
            weight[ids].float(),
            self.means.float(),
            self.loadings.float(),
            self.variances.float(),
            measured[ids].float(),
            self.solve,
        )
        return weight.index_copy(0, ids, rows.to(weight.dtype)), shift.to(weight.dtype)


__all__ = ["GeneImputation"]
