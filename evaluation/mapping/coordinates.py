"""Coordinates by which cells are compared: their embedding, and by a classifier also the probabilities of its classes.

A classifier's head knows more of fine types than the embedding before it, by gene sums for instance. The root of the
probabilities has length 1, and the product of two of them is 1 for equal probabilities (Bhattacharyya 1943). The
weight is our choice, see docs/guides/mapping.md.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from cellglot.evaluation.mapping.neighbours import unit_rows
from cellglot.modeling.loaded_model import LoadedModel


SCORE_WEIGHT = 2.0  # of the probabilities' part, the embedding's is 1
EMBEDDING = "embedding"
PROBABILITIES = "probabilities"


def score_weight(model: LoadedModel) -> float:
    """Return the weight of the classes' probabilities in a new reference: 0 for a model that predicts no classes."""
    return SCORE_WEIGHT if model.purpose == "classes of cells" else 0.0


def parts_of(
    model: LoadedModel, weight: float
) -> tuple[Any, Callable[[Mapping[str, torch.Tensor]], dict[str, torch.Tensor]]]:
    """Return the network that is run, and a function of its inputs to the parts of the coordinates.

    Parameters
    ----------
    weight
        Of the probabilities; with 0 only the encoder is run.
    """
    encoder = model.encoder
    if not weight:
        return encoder, lambda batch: {EMBEDDING: encoder(**batch).pooler_output}
    network = model.network

    def compute(batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        seen: list[torch.Tensor] = []
        hook = encoder.register_forward_hook(lambda *passed: seen.append(passed[-1].pooler_output))
        try:
            logits = network(**batch).logits
        finally:
            hook.remove()
        return {EMBEDDING: seen[0], PROBABILITIES: logits.float().softmax(dim=-1)}

    return network, compute


def joined(parts: Mapping[str, np.ndarray], weight: float) -> np.ndarray:
    """Return coordinates of length 1, float32, shape (cells, size), or (cells, size + classes) with a weight.

    Parameters
    ----------
    parts
        As the function of `parts_of` returns them.
    """
    rows = unit_rows(parts[EMBEDDING])
    if not weight:
        return rows
    return unit_rows(np.concatenate([rows, weight * np.sqrt(parts[PROBABILITIES])], axis=1))


__all__ = ["EMBEDDING", "PROBABILITIES", "SCORE_WEIGHT", "joined", "parts_of", "score_weight"]
