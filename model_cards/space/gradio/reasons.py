"""The genes that a cell's type rests on: each gene is hidden in turn, and the cell is computed again."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from cellglot.evaluation.embedding import evaluated_on, measured_genes
from cellglot.modeling.annotation_calibration import AnnotationCalibration
from cellglot.modeling.loaded_model import LoadedModel
from cellglot.modeling.masked_genes import gene_distances
from cellglot.tokenization.genes.tables import human_genes


CANDIDATES = 48  # genes that move the embedding most; of these the change of the probability is computed


@dataclass
class Reasons:
    """Genes that a cell's type rests on, the most important first.

    Parameters
    ----------
    genes
        Symbols.
    moved
        How far the cell's embedding moves without the gene, as a share of the largest.
    lost
        By how much the probability of the cell's type falls without the gene; None for models without classes.
    probability
        Of the cell's type with all genes.
    type_name
        The most likely class; None for models without classes.
    """

    genes: list[str] = field(default_factory=list)
    moved: list[float] = field(default_factory=list)
    lost: list[float] | None = None
    probability: float | None = None
    type_name: str | None = None


def cell_reasons(
    loaded: LoadedModel, cells: Any, calibration: AnnotationCalibration | None = None, most: int = 12
) -> Reasons:
    """Return the genes that one cell's type rests on.

    Parameters
    ----------
    loaded
        The model.
    cells
        The opened cell; one row.
    calibration
        Of the model: its temperature is used for probabilities.
    most
        Number of genes to return.

    Raises
    ------
    ValueError
        If the cell expresses fewer than two genes of the model.
    """
    network = loaded.network
    with evaluated_on(network, None) as place, torch.inference_mode():
        _, batch = next(iter(loaded.tokenizer.batches(cells.counts, 1)))
        cell = {name: values[0].to(place) for name, values in batch.items()}
        if "attention_mask" in cell:
            kept = cell["attention_mask"].bool()
            cell = {name: values[kept] for name, values in cell.items()}
        cell.pop("attention_mask", None)
        genes, distances = gene_distances(network, cell)
        order = np.argsort(-distances, kind="stable")[:CANDIDATES]
        found = Reasons()
        if loaded.classes:
            shared = measured_genes(network, loaded.tokenizer, cells.counts)
            shared = {name: values.to(place) for name, values in shared.items()}
            temperature = 1.0 if calibration is None else float(calibration.temperature)
            lost, found.probability, best = _lost(network, cell, genes[order], temperature, shared)
            found.type_name = loaded.classes[best]
            order, lost = order[np.argsort(-lost, kind="stable")], np.sort(-lost, kind="stable") * -1
            found.lost = [float(value) for value in lost[:most]]
    order = order[:most]
    top = float(distances.max(initial=0.0)) or 1.0
    found.genes = _symbols(loaded.tokenizer, genes[order])
    found.moved = [float(value) / top for value in distances[order]]
    return found


def _lost(
    network: Any,
    cell: Mapping[str, torch.Tensor],
    genes: np.ndarray,
    temperature: float,
    shared: Mapping[str, torch.Tensor],
) -> tuple[np.ndarray, float, int]:
    """Return how much the probability of the cell's class falls without each gene, the probability, and the class."""
    whole = {name: values[None] for name, values in cell.items()}
    logits = network(**whole, **shared).logits.float()[0]
    best = int(logits.argmax())
    probability = float((logits / temperature).softmax(-1)[best])
    hidden = []
    for part in np.array_split(genes, max(1, len(genes) // 16)):
        copies = {name: values.expand(len(part), -1).clone() for name, values in whole.items()}
        places = [int((cell["input_ids"] == int(gene)).nonzero()[0, 0]) for gene in part]
        rows = torch.arange(len(part))
        if "expression_values" in copies:
            flags = torch.zeros_like(copies["input_ids"], dtype=torch.bool)
            flags[rows, places] = True
            copies["masked_genes"] = flags
        else:
            copies["input_ids"][rows, places] = _mask_token(network)
        hidden.append((network(**copies, **shared).logits.float() / temperature).softmax(-1)[:, best].cpu().numpy())
    return probability - np.concatenate(hidden), probability, best


def _mask_token(network: Any) -> int:
    return int(network.config.mask_token_id)


def _symbols(tokenizer: Any, genes: np.ndarray) -> list[str]:
    """Return the symbols of tokens."""
    names = [str(name) for name in tokenizer.convert_ids_to_tokens([int(gene) for gene in genes])]
    table = human_genes()
    return [table.symbol(name) or name if name in table else name for name in names]


__all__ = ["Reasons", "cell_reasons"]
