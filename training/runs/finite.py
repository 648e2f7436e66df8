"""NaN and infinite numbers in a training step, in weights and in statistics of genes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn


LISTED = 5


class NonFiniteError(ValueError):
    """A loss, gradient, weight or statistic is NaN or infinite."""


def is_finite(*values: Any) -> bool:
    """Return whether all values are finite, with one synchronisation; None is skipped.

    Parameters
    ----------
    *values
        Numbers, or tensors of any shape, also distributed ones.
    """
    tensors = [v.full_tensor() if hasattr(v, "full_tensor") else v for v in values if isinstance(v, torch.Tensor)]
    numbers = [float(v) for v in values if v is not None and not isinstance(v, torch.Tensor)]
    if not np.isfinite(numbers).all():
        return False
    if not tensors:
        return True
    return bool(torch.stack([torch.isfinite(t.detach()).all().to(tensors[0].device) for t in tensors]).all())


def non_finite_weights(model: nn.Module) -> list[str]:
    """Return the names of the weights of this process with NaN or infinite values."""
    named = [(name, weights.detach()) for name, weights in model.named_parameters() if weights.is_floating_point()]
    named = [(name, w.to_local() if hasattr(w, "to_local") else w) for name, w in named]
    named = [(name, w) for name, w in named if w.device.type != "meta" and w.numel()]
    if not named:
        return []
    # One number a tensor, one synchronisation: a sum with NaN or infinity is never finite, others may overflow.
    sums = torch.stack([torch.isfinite(w.sum(dtype=torch.float32)).to(named[0][1].device) for _, w in named]).tolist()
    return [name for (name, w), finite in zip(named, sums, strict=True) if not finite and not torch.isfinite(w).all()]


def check_weights(model: nn.Module, where: str, advice: str) -> None:
    """Refuse a model with NaN or infinite weights; `where` is their source, for the message."""
    found = non_finite_weights(model)
    if found:
        raise NonFiniteError(f"{where}: NaN or infinite values in {_listed(found)}. {advice}")


def check_statistics(vocabulary: Any, where: str) -> None:
    """Refuse a vocabulary with NaN or infinite medians, means or standard deviations; `where` is its folder."""
    for name in ("medians", "means", "stds"):
        values = getattr(vocabulary, name)
        if values is not None and not np.isfinite(values).all():
            bad = int((~np.isfinite(values)).sum())
            raise NonFiniteError(
                f"{where}: the {name} of {bad:,} of {len(values):,} genes are NaN or infinite "
                "(gene_stats.safetensors): run cellglot tokenize again"
            )


def describe_step(
    step: int,
    losses: Sequence[float],
    gradient_norm: Any,
    parts: Mapping[str, torch.Tensor],
    batches: Sequence[Mapping[str, Any]],
    model: nn.Module,
    learning_rate: float,
) -> str:
    """Return a message that names what is not finite in a training step, and the probable cause.

    Parameters
    ----------
    parts
        Part of the loss -> its value, summed over the batches.
    batches
        Inputs of the model.
    """
    bad = [i for i, loss in enumerate(losses) if not np.isfinite(loss)]
    what = "the loss" if bad else "the norm of the gradients"
    value = losses[bad[0]] if bad else float(gradient_norm)
    which = f" (batch {bad[0] + 1} of {len(losses)} of this step)" if bad and len(losses) > 1 else ""
    wrong = [name for name, part in parts.items() if not is_finite(part)]
    of_parts = f"; of its parts: {_listed(wrong)}" if wrong and len(parts) > 1 else ""
    return f"step {step:,}: {what} is {value}{which}{of_parts}. {_cause(batches, model, learning_rate)}"


def _cause(batches: Sequence[Mapping[str, Any]], model: nn.Module, learning_rate: float) -> str:
    inputs = [text for batch in batches for text in _non_finite_inputs(batch)]
    if inputs:
        return f"The inputs have NaN or infinite values in {'; '.join(inputs[:LISTED])}: the corpus is damaged"
    weights = non_finite_weights(model)
    if weights:
        return (
            f"The inputs are finite, the weights are not ({_listed(weights)}): training diverged. Set a lower "
            f"trainer.learning_rate (now {learning_rate:g}) or a longer warm-up, and start again with --overwrite"
        )
    return (
        "Inputs and weights of this process are finite: numbers became too large within the step. Set a lower "
        f"trainer.learning_rate (now {learning_rate:g}), or train without trainer.fp16 or trainer.bf16, and start "
        "again with --overwrite"
    )


def _non_finite_inputs(batch: Mapping[str, Any]) -> list[str]:
    """Name the fields of a batch that are not finite; a label of NaN means no label."""
    found = []
    for name, values in batch.items():
        if not isinstance(values, torch.Tensor) or not values.is_floating_point():
            continue
        wrong = torch.isinf(values) if name in ("labels", "truth") else ~torch.isfinite(values)
        cells = int(wrong.flatten(1).any(dim=1).sum() if values.dim() > 1 else wrong.sum())
        if cells:
            found.append(f"{name} of {cells:,} of {len(values):,} cells")
    return found


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED:,} more" if len(names) > LISTED else "")


__all__ = ["NonFiniteError", "check_statistics", "check_weights", "describe_step", "is_finite", "non_finite_weights"]
