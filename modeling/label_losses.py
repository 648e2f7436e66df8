"""What heads predict and learn from: classes, or a value in its own unit."""

from typing import Any

import torch

from .cell_losses import LossTerms, cross_entropy_terms, full_precision


@full_precision
def squared_error_terms(predicted: torch.Tensor, labels: torch.Tensor, deviation: float = 1.0) -> LossTerms:
    """Squared error in standard deviations, labels that are NaN left out.

    Parameters
    ----------
    predicted, labels
        Shape (items,).
    deviation
        What counts as 1.
    """
    valid = ~labels.isnan()
    errors = (predicted - labels.where(valid, 0.0)) / deviation
    return LossTerms(errors.square().where(valid, 0.0).sum(), valid.sum())


def in_units(config: Any, outputs: torch.Tensor) -> torch.Tensor:
    """Give a head's outputs in the unit of what they stand for.

    Scores of classes stay as they are. With ``problem_type="regression"`` a head works on standardised values:
    ``outputs * target_std + target_mean``, in float32, is the value.

    Parameters
    ----------
    config
        The model's configuration.
    outputs
        Of the head, shape (..., classes) or (..., 1).
    """
    if config.problem_type != "regression":
        return outputs
    mean = 0.0 if config.target_mean is None else config.target_mean
    return outputs.float() * deviation_of(config) + mean


def deviation_of(config: Any) -> float:
    """Give the standard deviation of the value that a model predicts."""
    return 1.0 if config.target_std is None else config.target_std


def label_terms(
    config: Any, logits: torch.Tensor, labels: torch.Tensor, label_weights: torch.Tensor | None = None
) -> LossTerms:
    """Compare predictions with labels: cross entropy of classes, or squared error of a standardised value.

    Parameters
    ----------
    config
        The model's configuration; its ``problem_type`` decides.
    logits
        From `in_units`, shape (..., classes) or (..., 1).
    labels
        Classes, -100 left out, or values in their unit, NaN left out; shape (...).
    label_weights
        Weight of each label in the loss of classes, shape (...).
    """
    if config.problem_type == "regression":
        return squared_error_terms(logits.flatten(), labels.flatten(), deviation_of(config))
    weights = None if label_weights is None else label_weights.flatten()
    return cross_entropy_terms(logits.flatten(0, -2), labels.flatten(), weights)


__all__ = ["deviation_of", "in_units", "label_terms", "squared_error_terms"]
