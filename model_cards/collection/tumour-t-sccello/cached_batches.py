"""Exact gradients of objectives between the cells of a large batch, in the memory of a small one (GradCache).

Gao et al. 2021, arXiv 2101.06983. An objective between cells depends on the networks only by one representation of
each cell, so a batch is computed in parts:

1. Each part is encoded without gradients (`BatchPart` without gradients); its representations are kept.
2. The objectives between cells are computed for the whole batch, with the gradients of its representations
   (`WholeBatch`, by the model's method ``between_cells``).
3. Each part is encoded again with gradients and the same dropout; the gradients of step 2 are those of its
   representations, and the objectives that are sums over cells are added (`BatchPart`, by `WholeBatch.part`).

The sum of the gradients of all parts is that of the whole batch.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from .cell_losses import LossTerms, number_of_processes, share_of_step


@dataclass
class BatchPart:
    """A part of a batch, as an argument of a model's forward pass.

    Parameters
    ----------
    gradients
        Of the loss by each representation of the part's cells, by name, shape (cells, size). None in the first pass,
        which only computes the representations.
    factors
        Factor that makes the sum of an objective's terms its share of the loss of a step, by name.
    pairs, tokens
        Pairs of a cell of the part and a text of the batch to match (`cell_text_losses.MatchedPairs`), and the tokens
        of the batch's texts.
    """

    gradients: dict[str, torch.Tensor] | None = None
    factors: dict[str, torch.Tensor] = field(default_factory=dict)
    pairs: Any = None
    tokens: torch.Tensor | None = None

    @property
    def only_encodes(self) -> bool:
        """Whether this is the first pass."""
        return self.gradients is None

    def losses(self, terms: dict[str, LossTerms]) -> dict[str, torch.Tensor]:
        """Return the part's shares of objectives that are sums over cells."""
        return shares_of_step(terms, self.factors)

    def pull(self, representations: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return a zero whose gradient by the representations is `gradients`."""
        gradients = self.gradients or {}
        products = [
            (states.to(torch.promote_types(states.dtype, torch.float32)) * gradients[name]).sum()
            for name, states in representations.items()
        ]
        together = torch.stack(products).sum()
        return together - together.detach()


@dataclass
class WholeBatch:
    """What the second step knows of a batch.

    Parameters
    ----------
    losses
        This process's shares of the objectives between cells, by name.
    loss
        Their sum, each times its weight, to be differentiated by the representations.
    factors, tokens
        As for `BatchPart`.
    pairs
        Pairs to match of all cells of the batch.
    """

    losses: dict[str, torch.Tensor]
    loss: torch.Tensor | None
    factors: dict[str, torch.Tensor]
    pairs: Any = None
    tokens: torch.Tensor | None = None

    def part(self, first: int, gradients: dict[str, torch.Tensor]) -> BatchPart:
        """Return the part of some cells of the batch.

        Parameters
        ----------
        first
            Number of its first cell.
        gradients
            Of its representations.
        """
        pairs, number = self.pairs, len(next(iter(gradients.values())))
        if pairs is not None:
            own = (pairs.cells >= first) & (pairs.cells < first + number)
            pairs = type(pairs)(pairs.cells[own] - first, pairs.texts[own], pairs.matches[own])
        return BatchPart(gradients, self.factors, pairs, self.tokens)


def step_factors(
    counts: dict[str, torch.Tensor], items: torch.Tensor, num_items_in_batch: Any, joined: bool = True
) -> dict[str, torch.Tensor]:
    """Return the factor that makes a sum of terms of this process its share of the loss of a step, by objective.

    The shares of `cell_losses.join_losses` with `num_items_in_batch` are these factors times the sums.

    Parameters
    ----------
    counts
        Number of this process's terms by objective, shape (); the same names on every process.
    items, num_items_in_batch, joined
        As for `cell_losses.join_losses`.
    """
    numbers = torch.stack([*counts.values(), items]).double()
    if joined and number_of_processes() > 1:
        numbers = numbers.float() if numbers.device.type == "mps" else numbers
        dist.all_reduce(numbers)
    factors = share_of_step(numbers[-1], num_items_in_batch) / numbers[:-1].clamp(min=1)
    return {name: factors[i] for i, name in enumerate(counts)}


def shares_of_step(terms: dict[str, LossTerms], factors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return sums of terms times their factors, from `step_factors`."""
    return {name: (of_name.total * factors[name]).to(of_name.total.dtype) for name, of_name in terms.items()}


__all__ = ["BatchPart", "WholeBatch", "shares_of_step", "step_factors"]
