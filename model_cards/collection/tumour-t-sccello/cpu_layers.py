"""Faster layers for the CPU: dropout, and a feed-forward block that is much wider than its input."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .plain_layers import works_alone


_STEPS = 1 << 16  # of the probability of dropout
CHUNK_TOKENS = 256  # the wide activations of so many tokens stay in the processor's cache
LEAST_WIDENING = 16  # from this ratio of intermediate to input size, computing again is cheaper than keeping


class _Drop(torch.autograd.Function):
    """Zero values at random and scale the others; each value takes 16 random bits, a quarter of one draw."""

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
    """Dropout: in training, values are zeroed with probability `p` and the others scaled so that the mean stays.

    On the CPU, outside compiled graphs, the probability is rounded to a multiple of 2**-16, and a value takes 16
    random bits of PyTorch's generator: a third of the time of `torch.nn.Dropout`.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Drop values of `input`, of any shape."""
        steps = round(self.p * _STEPS)
        if not self.training or input.device.type != "cpu" or torch.compiler.is_compiling() or steps in (0, _STEPS):
            return super().forward(input)
        return _Drop.apply(input, steps)


class _WideFeedForward(torch.autograd.Function):
    """``linear2(gelu(linear1(x)))`` in chunks of tokens, features first; the backward pass computes it again.

    In the products the long dimension is along rows: with inputs of size 4 the matrix library is up to five times as
    fast.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight1: torch.Tensor,
        bias1: torch.Tensor,
        weight2: torch.Tensor,
        bias2: torch.Tensor,
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight1, bias1, weight2)
        tokens = x.reshape(-1, x.shape[-1])
        output = tokens.new_empty(tokens.shape[0], weight2.shape[0])
        for start in range(0, len(tokens), CHUNK_TOKENS):
            chunk = slice(start, start + CHUNK_TOKENS)
            wide = F.gelu(torch.addmm(bias1[:, None], weight1, tokens[chunk].t()))
            output[chunk] = torch.addmm(bias2[:, None], weight2, wide).t()
        return output.view(*x.shape[:-1], weight2.shape[0])

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x, weight1, bias1, weight2 = ctx.saved_tensors
        tokens, grads = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        grad_x = torch.empty_like(tokens)
        grad_weight1_t = weight1.new_zeros(weight1.shape[1], weight1.shape[0])
        grad_bias1, grad_weight2 = torch.zeros_like(bias1), torch.zeros_like(weight2)
        weight2_t = weight2.t().contiguous()
        for start in range(0, len(tokens), CHUNK_TOKENS):
            chunk = slice(start, start + CHUNK_TOKENS)
            part, grad_t = tokens[chunk], grads[chunk].t().contiguous()
            wide = torch.addmm(bias1[:, None], weight1, part.t())
            grad_weight2.addmm_(grad_t, F.gelu(wide).t())
            grad_wide = torch.ops.aten.gelu_backward(weight2_t @ grad_t, wide)
            grad_weight1_t.addmm_(part.t(), grad_wide.t())
            grad_bias1.add_(grad_wide.sum(dim=1))
            grad_x[chunk] = (weight1.t() @ grad_wide).t()
        return grad_x.view_as(x), grad_weight1_t.t(), grad_bias1, grad_weight2, grads.sum(dim=0)


def pays(x: torch.Tensor, linear1: nn.Linear, activation: nn.Module) -> bool:
    """Whether `wide_feed_forward` can compute this block, and faster than its layers one by one.

    This is in float32 on the CPU, for GELU, if the block is at least `LEAST_WIDENING` times as wide as its input.
    """
    return (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and linear1.out_features >= LEAST_WIDENING * linear1.in_features
        and type(activation).__name__ in ("GELUActivation", "GELU")
        and works_alone(linear1)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def wide_feed_forward(x: torch.Tensor, linear1: nn.Linear, linear2: nn.Linear) -> torch.Tensor:
    """Compute ``linear2(gelu(linear1(x)))`` of float32 on the CPU, with the values and gradients of the layers."""
    return _WideFeedForward.apply(x, linear1.weight, linear1.bias, linear2.weight, linear2.bias)


__all__ = ["Dropout", "pays", "wide_feed_forward"]
