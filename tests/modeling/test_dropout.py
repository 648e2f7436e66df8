"""Dropout with a cheap mask: the share and the scale of what is kept, its gradient, its seed."""

import pytest
import torch
from torch import nn

from cellglot.modeling.cpu_layers import Dropout


@pytest.mark.parametrize("p", [0.02, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_are_dropped_with_their_probability_and_the_others_scaled(p, dtype):
    torch.manual_seed(0)
    dropped = Dropout(p)(torch.ones(999, 1001, dtype=dtype))
    assert dropped.dtype == dtype
    zero = dropped == 0
    assert abs(zero.float().mean().item() - p) < 5 * (p * (1 - p) / zero.numel()) ** 0.5
    for place in range(4):  # the four parts of a draw
        part = zero.flatten()[place::4]
        assert abs(part.float().mean().item() - p) < 5 * (p * (1 - p) / part.numel()) ** 0.5
    torch.testing.assert_close(
        dropped[~zero], torch.full_like(dropped[~zero], 1 / (1 - p)), rtol=1e-4, atol=0.02 * (dtype == torch.bfloat16)
    )


def test_what_is_dropped_is_independent_of_its_neighbour():
    torch.manual_seed(1)
    zero = (Dropout(0.5)(torch.ones(1 << 20)) == 0).float()
    for distance in (1, 2, 3, 4):
        both = (zero[:-distance] * zero[distance:]).mean().item()
        assert abs(both - 0.25) < 5 * (0.25 * 0.75 / len(zero)) ** 0.5


def test_gradients_pass_where_values_do():
    torch.manual_seed(2)
    states = torch.randn(7, 33, requires_grad=True)
    dropped = Dropout(0.3)(states)
    dropped.sum().backward()
    torch.testing.assert_close(states.grad * states.detach(), dropped.detach())
    assert states.grad.unique().tolist() == pytest.approx([0.0, 1 / 0.7], rel=1e-4)


def test_the_seed_decides_and_evaluation_drops_nothing():
    states, dropout = torch.ones(50, 50), Dropout(0.4)
    torch.manual_seed(3)
    first = dropout(states)
    torch.manual_seed(3)
    assert torch.equal(first, dropout(states))
    assert not torch.equal(first, dropout(states))
    assert torch.equal(dropout.eval()(states), states)
    assert torch.equal(Dropout(0.0)(states), states)
    assert torch.equal(Dropout(1.0)(states), torch.zeros_like(states))
    assert Dropout(0.1)(torch.ones(0, 3)).shape == (0, 3)


def test_a_compiled_graph_has_the_dropout_of_pytorch():
    states = torch.ones(64, 64)
    compiled = torch.compile(Dropout(0.5), backend="eager", fullgraph=True)
    torch.manual_seed(4)
    given = compiled(states)
    torch.manual_seed(4)
    assert torch.equal(given, nn.functional.dropout(states, 0.5))
