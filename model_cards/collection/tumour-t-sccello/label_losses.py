"""Predictions and losses of heads: one class, several classes at the same time, or values in their unit."""

from typing import Any

import torch
from torch import nn

from .cell_losses import IGNORED, LossTerms, cross_entropy_terms, full_precision


REGRESSION, ONE_CLASS, CLASSES = "regression", "single_label_classification", "multi_label_classification"


def is_regression(config: Any) -> bool:
    """Whether a head predicts values: by its ``problem_type``, or without one, because there is one label."""
    return config.problem_type == REGRESSION or (config.problem_type is None and config.num_labels == 1)


def problem_of(config: Any, labels: torch.Tensor) -> str:
    """Return the kind of problem as `transformers` does: ``problem_type``, or else by labels and their number.

    One label is a regression; whole numbers are one class each; real numbers are several classes at the same time.
    Regression and several classes are stored in the configuration's ``problem_type``: without labels, they could not
    be recognised after loading.
    """
    if config.problem_type is None and not torch.compiler.is_compiling():
        if config.num_labels == 1:
            config.problem_type = REGRESSION
        elif labels.is_floating_point():
            config.problem_type = CLASSES
    if config.problem_type is not None:
        return config.problem_type
    return REGRESSION if config.num_labels == 1 else ONE_CLASS


@full_precision
def squared_error_terms(predicted: torch.Tensor, labels: torch.Tensor, deviation: float = 1.0) -> LossTerms:
    """Squared error in units of the standard deviation; labels of NaN are ignored."""
    valid = ~labels.isnan()
    errors = (predicted - labels.where(valid, 0.0)) / deviation
    return LossTerms(errors.square().where(valid, 0.0).sum(), valid.sum())


@full_precision
def binary_cross_entropy_terms(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None
) -> LossTerms:
    """Binary cross entropy of every class of every item; labels of -100 or NaN are ignored.

    Parameters
    ----------
    logits, labels
        Scores, and 0 or 1, shape (items, classes).
    weights
        Of each item, shape (items,).
    """
    valid = (labels != IGNORED) & ~labels.isnan()
    terms = nn.functional.binary_cross_entropy_with_logits(logits, labels.where(valid, 0.0), reduction="none")
    terms = terms.where(valid, 0.0)
    return LossTerms((terms if weights is None else terms * weights[:, None]).sum(), valid.sum())


@full_precision
def label_set_terms(logits: torch.Tensor, sets: torch.Tensor, weights: torch.Tensor | None = None) -> LossTerms:
    """Cross entropy of labels that leave several classes open: -log of the summed probability of these classes.

    A label at a coarser level of a hierarchy, such as "T cell", is the set of all classes below it. A set of one class
    gives the usual cross entropy.

    Parameters
    ----------
    logits
        Scores, shape (items, classes).
    sets
        Whether each class may be the right one, bool, shape (items, classes). Items without any are left out.
    weights
        Of each item, shape (items,).
    """
    valid = sets.any(dim=-1)
    open_classes = sets | ~valid[:, None]  # a row without classes would be a difference of infinities
    of_set = logits.masked_fill(~open_classes, torch.finfo(logits.dtype).min).logsumexp(dim=-1)
    terms = (logits.logsumexp(dim=-1) - of_set).where(valid, 0.0)
    return LossTerms((terms if weights is None else terms * weights).sum(), valid.sum())


def in_units(config: Any, outputs: torch.Tensor) -> torch.Tensor:
    """Return a head's outputs in the unit of the labels.

    Scores of classes do not change. A regression computes standardised values; the result is ``outputs * target_std +
    target_mean`` in float32.

    Parameters
    ----------
    outputs
        Of the head, shape (..., classes) or (..., 1).
    """
    if not is_regression(config):
        return outputs
    mean = 0.0 if config.target_mean is None else config.target_mean
    return outputs.float() * deviation_of(config) + mean


def deviation_of(config: Any) -> float:
    """Return the standard deviation of the value that a model predicts."""
    return 1.0 if config.target_std is None else config.target_std


def label_terms(
    config: Any, logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None
) -> LossTerms:
    """Compare predictions with labels, by the kind of problem (`problem_of`).

    Parameters
    ----------
    config
        The model's configuration.
    logits
        From `in_units`, shape (..., classes) or (..., values).
    labels
        One class: whole numbers, -100 ignored, shape (...); or sets of classes that contain the right one, bool, shape
        (..., classes). Several classes: 0 or 1 for each, -100 and NaN ignored, shape (..., classes). Values in their
        unit, NaN ignored, shape (..., values), or (...) for a single one.
    weights
        Weight of each item in a loss of classes, shape (...).

    Raises
    ------
    ValueError
        If labels do not have the shape that the predictions need.
    """
    problem = problem_of(config, labels)
    weights = None if weights is None else weights.flatten()
    if problem == ONE_CLASS and labels.dtype == torch.bool and labels.shape == logits.shape:
        return label_set_terms(logits.flatten(0, -2), labels.flatten(0, -2), weights)
    if problem == ONE_CLASS:
        _check_shape(problem, labels, logits.shape[:-1])
        return cross_entropy_terms(logits.flatten(0, -2), labels.flatten().long(), weights)
    one = problem == REGRESSION and logits.shape[-1] == 1 and labels.ndim == logits.ndim - 1
    _check_shape(problem, labels, logits.shape[:-1] if one else logits.shape)
    labels = labels.to(torch.promote_types(labels.dtype, torch.float32))
    if problem == REGRESSION:
        return squared_error_terms(logits.flatten(), labels.flatten(), deviation_of(config))
    return binary_cross_entropy_terms(logits.flatten(0, -2), labels.flatten(0, -2), weights)


def _check_shape(problem: str, labels: torch.Tensor, wanted: torch.Size) -> None:
    if labels.shape != wanted:
        raise ValueError(
            f"labels have shape {tuple(labels.shape)}, but for the model's problem_type {problem!r} they need shape "
            f"{tuple(wanted)}: pass such labels, or another problem_type when loading the model"
        )


__all__ = [
    "CLASSES",
    "ONE_CLASS",
    "REGRESSION",
    "binary_cross_entropy_terms",
    "deviation_of",
    "in_units",
    "is_regression",
    "label_set_terms",
    "label_terms",
    "problem_of",
    "squared_error_terms",
]
