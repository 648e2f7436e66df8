"""Outputs of a frozen encoder for each cell: a linear probe computes them only once."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn


MOST_BYTES = 1 << 31  # outputs to keep; those of further cells are computed each time


class EncoderMemory:
    """Lets an encoder return an earlier output for a cell without computing it.

    Exact up to rounding: in evaluation mode the output for a cell does not depend on other cells or padding.

    Parameters
    ----------
    encoder
        Changed in place: its ``forward`` looks in the memory first, until `release`.
    field
        The field of the output that the head reads, of the same shape for every cell.

    Attributes
    ----------
    cells : torch.Tensor
        Part and number of each cell of the next call, shape (cells, 2).
    """

    def __init__(self, encoder: nn.Module, field: str):
        self.field, self.cells = field, torch.empty(0, 2, dtype=torch.long)
        self.known: dict[tuple[int, ...], torch.Tensor] = {}
        self.bytes = self.computed = 0
        self._encoder, self._forward = encoder, encoder.forward
        encoder.forward = self._remember

    def _remember(self, *args: Any, **kwargs: Any) -> Any:
        keys = [tuple(key) for key in self.cells.tolist()]
        if all(key in self.known for key in keys):
            values = torch.stack([self.known[key] for key in keys]).to(self.cells.device)
            return SimpleNamespace(
                **{"hidden_states": None, "attentions": None, "cross_attentions": None, self.field: values}
            )
        output = self._forward(*args, **kwargs)
        self.computed += len(keys)
        for key, values in zip(keys, output[self.field].detach().cpu(), strict=True):
            if key not in self.known and self.bytes < MOST_BYTES:
                self.known[key] = values.clone()
                self.bytes += values.nbytes
        return output

    def release(self) -> None:
        """Restore the ``forward`` of the encoder, and empty the memory."""
        del self._encoder.forward
        self.known.clear()


__all__ = ["EncoderMemory"]
