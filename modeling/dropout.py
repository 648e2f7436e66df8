"""Dropout whose random numbers cost less on the CPU."""

from typing import Any

import torch
from torch import nn


_STEPS = 1 << 16


class _Drop(torch.autograd.Function):
    """Zero values at random and scale the others; the mask comes from 16 bits a value, four of them in a draw."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, steps: int) -> torch.Tensor:
        draws = torch.empty(-(-states.numel() // 4), dtype=torch.int64).random_(-(1 << 63), None)
        bits = draws.view(torch.int16)[: states.numel()].view(states.shape)
        kept = bits >= steps - _STEPS // 2
        ctx.save_for_backward(kept)
        ctx.scale = _STEPS / (_STEPS - steps)
        return torch.ops.aten.native_dropout_backward(states, kept, ctx.scale)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (kept,) = ctx.saved_tensors
        return torch.ops.aten.native_dropout_backward(grad, kept, ctx.scale), None


class Dropout(nn.Dropout):
    """Dropout: in training values are zeroed with probability `p`, the others scaled so that the mean stays.

    On the CPU, outside of compiled graphs, the probability is the nearest multiple of 2**-16, and a value takes 16
    random bits of PyTorch's generator: a third of the time of `torch.nn.Dropout`.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Drop values of `input`, of any shape."""
        steps = round(self.p * _STEPS)
        if not self.training or input.device.type != "cpu" or torch.compiler.is_compiling() or steps in (0, _STEPS):
            return super().forward(input)
        return _Drop.apply(input, steps)


__all__ = ["Dropout"]
