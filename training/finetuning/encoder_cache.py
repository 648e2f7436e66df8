"""What a frozen encoder gave for each cell: a linear probe computes it once."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn


MOST_BYTES = 1 << 31  # kept at the most; further cells are computed every time


class EncoderMemory:
    """Lets an encoder give again what it gave for a cell before, without computing it.

    Exact to rounding: in evaluation mode a cell's output does not depend on the cells or the padding beside it.

    Parameters
    ----------
    encoder
        Changed in place: its ``forward`` asks the memory first, until `release`.
    field
        The field of its output that the head reads, of the same shape for every cell.

    Attributes
    ----------
    cells : torch.Tensor
        Part and number of the cells of the next call, shape (cells, 2).
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
        """Return the encoder its own ``forward`` back, and forget."""
        del self._encoder.forward
        self.known.clear()


__all__ = ["EncoderMemory"]
