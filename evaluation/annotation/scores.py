"""Processing of class scores: smoothing over neighbours, calibration, back-off to a parent cell type."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cellglot.evaluation.search.retrieval import nearest
from cellglot.tokenization.ontology.cell_ontology import CellOntology


if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


CELLS_AT_ONCE = 4096
TEMPERATURES = (1e-3, 1e2)


def neighbor_graph(embedding: np.ndarray, neighbors: int, device: str = "cpu") -> "csr_matrix":
    """Return the graph that averages scores over each cell and its nearest neighbours by cosine, with equal weights.

    The search is exact; its time is quadratic in the number of cells.

    Parameters
    ----------
    embedding
        Normalised cell embeddings, shape (cells, size).
    neighbors
        Neighbours of a cell, without the cell itself.

    Returns
    -------
    scipy.sparse.csr_matrix
        Shape (cells, cells); each row sums to 1.
    """
    from scipy.sparse import csr_matrix

    if neighbors < 1:
        raise ValueError(f"neighbors={neighbors} must be at least 1")
    n_cells = len(embedding)
    found = nearest(embedding, embedding, neighbors + 1, device=device).numbers
    width = found.shape[1]
    own = np.arange(n_cells)[:, None]
    # A cell with many duplicates may not be among its own nearest: it replaces the last.
    missing = ~(found == own).any(axis=1)
    found[missing, -1] = own[missing, 0]
    weights = np.full(n_cells * width, 1 / width, dtype=np.float32)
    return csr_matrix((weights, found.reshape(-1), np.arange(0, n_cells * width + 1, width)), (n_cells, n_cells))


@dataclass
class Calibration:
    """A temperature fitted to labelled cells.

    Parameters
    ----------
    temperature
        Divides the logarithms of scores; a value below 1 sharpens.
    nll_before, nll_after
        Mean negative log likelihood of the labelled cells' classes without and with it.
    cells
        Number of labelled cells that were used.
    unused
        Label that is not a candidate -> number of its cells.
    """

    temperature: float
    nll_before: float
    nll_after: float
    cells: int
    unused: dict[str, int]

    def summary(self) -> str:
        """Summarise the fit; warn if the temperature is at the end of its range."""
        low, high = TEMPERATURES
        at_end = not 1.01 * low < self.temperature < high / 1.01
        lines = [
            f"calibrated on {self.cells:,} labelled cells: temperature {self.temperature:.4g}, "
            f"negative log likelihood {self.nll_before:.3f} -> {self.nll_after:.3f}"
            + (f" (the end of the range {low:g} to {high:g}: do not trust it)" if at_end else "")
        ]
        if self.unused:
            listed = ", ".join(f"{label!r} ({n:,})" for label, n in list(self.unused.items())[:10])
            number = sum(self.unused.values())
            lines.append(f"{number:,} cells were not used: their labels are not candidates: {listed}")
        return "\n".join(lines)


def calibrated(scores: np.ndarray, temperature: float) -> np.ndarray:
    """Return the softmax of log scores divided by a temperature above 0, shape (cells, classes).

    The order of a cell's classes by score does not change.
    """
    logits = np.log(np.maximum(scores, 1e-30), dtype=np.float32) / np.float32(temperature)
    logits -= logits.max(axis=1, keepdims=True)
    powers = np.exp(logits)
    return powers / powers.sum(axis=1, keepdims=True)


def fit_temperature(scores: np.ndarray, classes: np.ndarray) -> tuple[float, float, float]:
    """Fit the temperature with the highest likelihood of labelled cells (Guo et al. 2017), between 0.001 and 100.

    Parameters
    ----------
    scores
        Of labelled cells, shape (cells, classes).
    classes
        Class of each labelled cell, shape (cells,).

    Returns
    -------
    tuple
        Temperature; mean negative log likelihood without and with it.
    """
    from scipy.optimize import minimize_scalar

    if not len(classes):
        raise ValueError("no label matches a candidate: there are no cells to calibrate on")
    logs = np.log(np.maximum(scores, 1e-30)).astype(np.float64)

    def loss(log_temperature: float) -> float:
        logits = logs / np.exp(log_temperature)
        top = logits.max(axis=1)
        total = np.log(np.exp(logits - top[:, None]).sum(axis=1)) + top
        return float((total - logits[np.arange(len(classes)), classes]).mean())

    fitted = minimize_scalar(loss, bounds=tuple(np.log(TEMPERATURES)), method="bounded", options={"xatol": 1e-5})
    return float(np.exp(fitted.x)), loss(0.0), float(fitted.fun)


def excess_mass(scores: np.ndarray, floor: np.ndarray) -> np.ndarray:
    """Return each class's share of the scores above their floor (our choice).

    A softmax of probabilities gives every class a positive score, even at P(match) = 0. Only the rest is evidence for
    a class. The order of a cell's classes by score does not change.

    Parameters
    ----------
    floor
        Score of a class with similarity 0 and P(match) = 0, shape (cells,).

    Returns
    -------
    numpy.ndarray
        Shape (cells, classes), each row sums to 1; equal shares if no score is above the floor.
    """
    excess = np.maximum(scores - floor[:, None], 0)
    total = excess.sum(axis=1, keepdims=True)
    return np.where(total > 1e-12, excess / np.maximum(total, 1e-12), 1 / scores.shape[1]).astype(np.float32)


@dataclass
class BackedOff:
    """Predictions after back-off.

    Parameters
    ----------
    cell_types
        Id of the predicted type; None for a candidate without an id, or without a prediction.
    names
        Name of the predicted type; None without a prediction.
    mass
        Mass of all candidates that are this type or below it; without a prediction, mass of the best candidate.
    moved
        Whether the prediction differs from the best candidate, shape (cells,).
    """

    cell_types: list[str | None]
    names: list[str | None]
    mass: np.ndarray
    moved: np.ndarray


def back_off(
    mass: np.ndarray,
    names: Sequence[str],
    cell_types: Sequence[str | None],
    ontology: CellOntology,
    threshold: float = 0.5,
) -> BackedOff:
    """Predict the best candidate, or the nearest type above it with enough mass.

    The rule (our choice): the mass of a type is the sum over all candidates that are this type or below it. The best
    candidate is predicted if its type has at least the threshold; else the type above it with the fewest descendants
    that does (if siblings share the mass, this is their parent). If no type does, there is no prediction.

    Parameters
    ----------
    mass
        Distribution over candidates, shape (cells, classes).
    names, cell_types
        Names and ids of the candidates; the id is None if a candidate is not a cell type of the ontology.
    threshold
        Above 0 and at most 1.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold {threshold} must be above 0 and at most 1")
    if not any(cell_types):
        raise ValueError("no candidate is a cell type of the ontology: there are no parents to back off to")
    types, labels, below, own = _types_above(names, cell_types, ontology)
    best = mass.argmax(axis=1)
    chosen = np.full(len(mass), -1)
    gathered = np.zeros(len(mass), dtype=np.float32)
    for start in range(0, len(mass), CELLS_AT_ONCE):
        rows = slice(start, start + CELLS_AT_ONCE)
        cells = np.arange(len(best[rows]))
        masses = mass[rows] @ below.astype(mass.dtype)
        enough = below[best[rows]] & (masses >= threshold - 1e-6)
        found, first = enough.any(axis=1), enough.argmax(axis=1)
        chosen[rows] = np.where(found, first, -1)
        gathered[rows] = np.where(found, masses[cells, first], mass[rows][cells, best[rows]])
    return BackedOff(
        [None if i < 0 else types[i] for i in chosen],
        [None if i < 0 else labels[i] for i in chosen],
        gathered,
        chosen != own[best],
    )


def _types_above(
    names: Sequence[str], cell_types: Sequence[str | None], ontology: CellOntology
) -> tuple[list[str | None], list[str], np.ndarray, np.ndarray]:
    """Return all possible predictions, the most specific first.

    Ids, names, which candidates (rows) are below each, and the position of each candidate among them.
    """
    above = [set() if t is None else {t, *ontology.ancestors(t)} for t in cell_types]
    ids = sorted(set().union(*above), key=lambda t: (len(ontology.descendants(t)), t))
    alone = [i for i, t in enumerate(cell_types) if t is None]
    below = np.zeros((len(names), len(alone) + len(ids)), dtype=bool)
    below[alone, np.arange(len(alone))] = True
    for row, types in enumerate(above):
        below[row, len(alone) :] = [t in types for t in ids]
    own = [alone.index(i) if t is None else len(alone) + ids.index(t) for i, t in enumerate(cell_types)]
    labels = [*(names[i] for i in alone), *map(ontology.name, ids)]
    return [*[None] * len(alone), *ids], labels, below, np.array(own)


__all__ = [
    "BackedOff",
    "Calibration",
    "back_off",
    "calibrated",
    "excess_mass",
    "fit_temperature",
    "neighbor_graph",
]
