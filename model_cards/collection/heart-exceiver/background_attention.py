"""Exact attention over expressed genes and the background of all other genes, at the cost of the expressed genes.

In Exceiver's mode ``"bias"`` every gene is a key of the encoder's cross attention. An unexpressed gene has the same
key and value in every cell, so the sums over the background of all genes are computed once; each cell subtracts the
background of its expressed genes and adds their true terms. Ordinary attention calls return these sums with the help
of one more key, the *sink*, of known logit and value zero: the sum of all other keys follows from its weight.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn


# If the result is a smaller share of the background's sum, the difference has lost digits, and the cell is computed
# over all genes. In published models the share is 96%.
LEAST_LEFT = 1e-2

Part = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]  # keys, values, mask of keys
Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


def attend_with_sink(
    attention: Attention,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_mask: torch.Tensor | None,
    sink_logit: torch.Tensor,
    scaling: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend to keys and to a sink with a logit for each query and the value zero.

    Parameters
    ----------
    attention
        Scaled dot-product attention of (query, key, value, key mask).
    query, key, value
        Shapes (cells, heads, queries, size), (cells, heads, keys, size) twice.
    key_mask
        True for keys to use, shape (cells, keys).

    Returns
    -------
    output
        Weighted sum of values over all keys, the sink included, shape (cells, heads, queries, size).
    sink_weight
        Weight of the sink, shape (cells, heads, queries, 1).
    """
    cells, heads, queries, _ = query.shape
    logit = (sink_logit / scaling)[None, :, :, None].expand(cells, heads, queries, 1)
    query = torch.cat([query, logit.to(query.dtype)], dim=-1)
    sink = key.new_zeros(cells, heads, 1, key.shape[-1])
    one = key.new_ones(cells, heads, 1, 1)
    zeros = key.new_zeros(cells, heads, key.shape[2], 1)
    key = torch.cat([torch.cat([key, zeros], dim=-1), torch.cat([sink, one], dim=-1)], dim=2)
    value = torch.cat([torch.cat([value, zeros], dim=-1), torch.cat([sink, one], dim=-1)], dim=2)
    if key_mask is not None:
        key_mask = torch.cat([key_mask, key_mask.new_ones(cells, 1)], dim=1)
    output = attention(query, key, value, key_mask)
    return output[..., :-1], output[..., -1:]


def background_attention(
    attention: Attention | None,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_mask: torch.Tensor | None,
    background_key: torch.Tensor,
    background_value: torch.Tensor,
    genes: torch.Tensor,
    scaling: float,
    bias: float = 1.0,
    sums: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Attend to expressed genes and, with a bias on their logits, to all others.

    With sums Z and numerators N of exponentials over all background genes (a), the background of a cell's expressed
    genes (b), and their true terms (t), the output is (N_a - N_b + N_t) / (Z_a - Z_b + Z_t). Sums are logarithms or
    shares of Z_a, which is stable for all logits. If a cell's own genes make up nearly all of Z_a, the difference
    would lose digits, and the cell is computed over all genes; so is a single cell without given sums, as nothing
    would be saved. Everything is float32.

    Parameters
    ----------
    attention
        Scaled dot-product attention of (query, key, value, key mask), which returns the sums by sinks; None for
        PyTorch's kernel for the CPU (see `has_cpu_kernel`), which is faster.
    query
        Queries, the same for every cell, shape (1, heads, queries, size).
    key, value
        Of each cell's expressed genes, shape (cells, heads, expressed genes, size).
    key_mask
        True for expressed genes, False for padding, shape (cells, expressed genes); None without padding.
    background_key, background_value
        Of all genes without counts, shape (1, heads, genes, size).
    genes
        Number of each expressed gene, including masked ones, shape (cells, expressed genes).
    bias
        Added to the logits of unexpressed genes.
    sums
        Result of `background_sums`, if `attention` is None; by default it is computed.

    Returns
    -------
    torch.Tensor
        Shape (cells, heads, queries, size).
    """
    query, key, value = query.float(), key.float(), value.float()
    background_key, background_value = background_key.float(), background_value.float()
    if not torch.compiler.is_compiling() and len(key) == 1 and sums is None:
        everything = (background_key, background_value, None)
        return _over_all_genes(query, everything, (key, value, key_mask), genes, 0, scaling, bias)
    own_key, own_value = _rows(background_key, genes), _rows(background_value, genes)
    everything = (background_key, background_value, None)
    own, true = (own_key, own_value, key_mask), (key, value, key_mask)
    if attention is None:
        sums = background_sums(query, background_key, background_value, scaling) if sums is None else sums
        output, left = _from_logsumexps(query, sums, own, true, scaling, bias)
    else:
        output, left = _from_sinks(attention, query, everything, own, true, scaling, bias)
    if torch.compiler.is_exporting():  # an exported graph cannot choose: not a number instead of a wrong one
        return output.where(left >= LEAST_LEFT, torch.full_like(output, math.nan))
    if torch.compiler.is_compiling():
        return output
    cancelled = (left < LEAST_LEFT).flatten(1).any(dim=1).nonzero()[:, 0]
    if len(cancelled) == 0:
        return output
    exact = [_over_all_genes(query, everything, true, genes, cell, scaling, bias) for cell in cancelled.tolist()]
    return output.index_copy(0, cancelled, torch.cat(exact))


def _from_sinks(
    attention: Attention, query: torch.Tensor, everything: Part, own: Part, true: Part, scaling: float, bias: float
) -> tuple[torch.Tensor, torch.Tensor]:
    background_key = everything[0]
    n_genes = background_key.shape[2]
    with torch.no_grad():  # log Z_a is at least this: the sink's weight lies below one half and loses no precision
        least = (query @ background_key.transpose(-1, -2) * scaling).amax(dim=-1)[0]
    summed, sink = attend_with_sink(attention, query, *everything, least, scaling)
    all_output = summed / (1 - sink)
    mean_logit = least + ((1 / sink - 1) / n_genes).log()[0, :, :, 0]  # log (Z_a / genes), without the bias: near 0
    query = query.expand(true[0].shape[0], -1, -1, -1)
    true_sum, true_sink = attend_with_sink(attention, query, *true, mean_logit + bias, scaling)
    own_sum, own_sink = attend_with_sink(attention, query, *own, mean_logit, scaling)
    # Sinks have the sum Z_a / genes: everything is multiplied by genes * true_sink / Z_a.
    others = (n_genes + 1 - 1 / own_sink).clamp(min=0)
    numerator = true_sink * (n_genes * all_output - own_sum / own_sink) + true_sum
    left = true_sink * (others - 1) + 1
    return _divide(numerator, left, left / (true_sink * n_genes))


def background_sums(
    query: torch.Tensor, background_key: torch.Tensor, background_value: torch.Tensor, scaling: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend to the background only, by PyTorch's kernel for the CPU (see `has_cpu_kernel`).

    Returns
    -------
    output
        N_a / Z_a, shape (1, heads, queries, size).
    log
        Logarithm of Z_a without the bias, shape (1, heads, queries).
    """
    return _CpuAttention.apply(query, background_key, background_value, None, scaling)


def _from_logsumexps(
    query: torch.Tensor, sums: tuple[torch.Tensor, torch.Tensor], own: Part, true: Part, scaling: float, bias: float
) -> tuple[torch.Tensor, torch.Tensor]:
    all_output, all_log = sums
    query = query.expand(true[0].shape[0], -1, -1, -1)
    true_output, true_log = _CpuAttention.apply(query, *true, scaling)
    own_output, own_log = _CpuAttention.apply(query, *own, scaling)
    all_log, own_log = all_log + bias, own_log + bias
    top = torch.maximum(all_log, true_log).detach()
    all_sum, own_sum, true_sum = ((log - top).exp().unsqueeze(-1) for log in (all_log, own_log, true_log))
    numerator = all_sum * all_output - own_sum * own_output + true_sum * true_output
    left = (all_sum - own_sum).clamp(min=0) + true_sum
    return _divide(numerator, left, left / all_sum)


def _divide(numerator: torch.Tensor, left: torch.Tensor, share: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Divide by what is left; if that is too little, return a finite quotient, which is replaced later."""
    share = share.detach()
    return numerator / left.where(share >= LEAST_LEFT, torch.ones_like(left)), share


def _over_all_genes(
    query: torch.Tensor, everything: Part, true: Part, genes: torch.Tensor, cell: int, scaling: float, bias: float
) -> torch.Tensor:
    """Attend to all genes of one cell, shape (1, heads, queries, size)."""
    background_key, background_value, _ = everything
    key, value, key_mask = true
    present = slice(None) if key_mask is None else key_mask[cell]
    expressed = genes[cell][present]
    keys = background_key.index_copy(2, expressed, key[cell : cell + 1, :, present])
    values = background_value.index_copy(2, expressed, value[cell : cell + 1, :, present])
    biases = torch.full_like(keys[0, 0, :, 0], bias).index_fill(0, expressed, 0.0)
    return nn.functional.scaled_dot_product_attention(query, keys, values, biases[None, None, None], scale=scaling)


class _CpuAttention(torch.autograd.Function):
    """Attention and the logarithm of its sum of exponentials, both differentiable, by PyTorch's kernel for the CPU.

    The kernel's backward pass has no gradient of the logarithm; that part is computed as the backward pass of
    attention to values of one, with an output of zero.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_mask: torch.Tensor | None,
        scaling: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        mask = None
        if key_mask is not None:
            mask = torch.zeros(key_mask.shape, dtype=query.dtype).masked_fill_(~key_mask, -math.inf)[:, None, None]
        output, log = _cpu_forward(query, key, value, attn_mask=mask, scale=scaling)
        if key_mask is not None:
            log = log.masked_fill(~key_mask.any(dim=1)[:, None, None], -math.inf)
        ctx.save_for_backward(query, key, value, mask, output, log)
        ctx.scaling = scaling
        return output, log

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor, grad_log: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, mask, output, log = ctx.saved_tensors
        log = log.masked_fill(log == -math.inf, 0.0)
        options = {"attn_mask": mask, "scale": ctx.scaling}
        grads = _cpu_backward(grad_output.contiguous(), query, key, value, output, log, 0.0, False, **options)
        ones, zeros = torch.ones_like(value), torch.zeros_like(output)
        spread = (grad_log.unsqueeze(-1) / value.shape[-1]).expand_as(output).contiguous()
        more = _cpu_backward(spread, query, key, ones, zeros, log, 0.0, False, **options)
        return grads[0] + more[0], grads[1] + more[1], grads[2], None, None


_cpu_forward: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
_cpu_backward: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", None)


def has_cpu_kernel(query: torch.Tensor) -> bool:
    """Whether PyTorch's attention kernel for the CPU can compute the sums of exponentials."""
    return (
        query.device.type == "cpu"
        and query.dtype == torch.float32
        and _cpu_forward is not None
        and _cpu_backward is not None
        and not torch.compiler.is_compiling()
    )


def _rows(states: torch.Tensor, genes: torch.Tensor) -> torch.Tensor:
    """Select the states (1, heads, genes, size) of each cell's genes: (cells, heads, expressed genes, size).

    It is an embedding lookup: its backward pass is ten times as fast as that of indexing.
    """
    heads, size = states.shape[1], states.shape[3]
    table = states[0].transpose(0, 1).flatten(1)
    return nn.functional.embedding(genes, table).unflatten(-1, (heads, size)).transpose(1, 2)


class BackgroundMemory:
    """Keeps results of the background as long as their sources do not change.

    Without training, keys, values and sums of the background are the same in every batch. The tensors that they depend
    on are kept, too, and compared by value, so every change is noticed. Copies start empty.
    """

    kept: tuple[tuple[torch.Tensor, ...], Any] | None = None

    def __call__(self, sources: Sequence[torch.Tensor], compute: Callable[[], Any]) -> Any:
        """Return the result of `compute` for these tensors; compute it only if they have changed."""
        kept = self.kept  # once: another thread may replace it
        if kept is None or not _unchanged(kept[0], sources):
            self.kept = kept = (tuple(t.detach().clone() for t in sources), compute())
        return kept[1]

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: copies and pickles do not contain kept results."""
        return {}


def _unchanged(kept: Sequence[torch.Tensor], sources: Sequence[torch.Tensor]) -> bool:
    """Whether sources equal the kept ones; tensors of `torch.inference_mode` cannot be used outside it."""
    if len(kept) != len(sources) or kept[0].is_inference() != torch.is_inference_mode_enabled():
        return False
    return all(
        a.dtype == b.dtype and a.device == b.device and torch.equal(a, b) for a, b in zip(kept, sources, strict=True)
    )


__all__ = [
    "BackgroundMemory",
    "attend_with_sink",
    "background_attention",
    "background_sums",
    "has_cpu_kernel",
]
