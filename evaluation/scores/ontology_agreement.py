"""Agreement of a model's embedding with the Cell Ontology on the similarity of cell types."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import spearmanr

from cellglot.tokenization.ontology.cell_ontology import CellOntology


BOOTSTRAP_SAMPLES = 200


@dataclass
class OntologyGeometry:
    """Similarities of pairs of cell types in the ontology and in a model's embedding.

    Parameters
    ----------
    spearman
        Spearman correlation over pairs of types.
    interval
        Its 95% interval over bootstrap samples of the cells of every type.
    ontology_similarity
        Personalised PageRank, mean of both directions, shape (pairs,), pairs in the order of `numpy.triu_indices`.
    cosine
        Cosine similarity of the types' centroids, shape (pairs,).
    cells_without_type
        Number of excluded cells.
    """

    spearman: float
    interval: tuple[float, float]
    cell_types: list[str]
    names: list[str]
    n_cells: list[int]
    ontology_similarity: np.ndarray
    cosine: np.ndarray
    cells_without_type: int


def ontology_geometry(
    embedding: np.ndarray, cell_types: Sequence[str | None], ontology: CellOntology, seed: int = 0
) -> OntologyGeometry:
    """Compare the cosine similarity of cell-type centroids with the ontology's similarity of the types.

    Centroids are means of normalised embeddings (our choice: all cells have the same weight). The similarity is that
    of scCello's objectives (Yuan et al. 2024).

    Parameters
    ----------
    cell_types
        Cell Ontology id of each cell, or None.
    """
    given = np.array([t or "" for t in cell_types], dtype=object)
    types = sorted(set(given) - {""})
    if len(types) < 3:
        raise ValueError(f"{len(types)} cell types ({', '.join(types) or 'none'}): at least three are needed")
    lengths = np.linalg.norm(embedding, axis=1, keepdims=True)
    unit = np.asarray(embedding, dtype=np.float64) / np.maximum(lengths, 1e-12)
    members = [np.flatnonzero(given == t) for t in types]
    pairs = np.triu_indices(len(types), k=1)
    similarity = ontology.similarity(types)
    of_pairs = ((similarity + similarity.T) / 2)[pairs]
    cosine = _cosines(unit, members)[pairs]
    random = np.random.default_rng(seed)
    drawn = [
        _correlation(_cosines(unit, [random.choice(m, len(m)) for m in members])[pairs], of_pairs)
        for _ in range(BOOTSTRAP_SAMPLES)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return OntologyGeometry(
        spearman=_correlation(cosine, of_pairs),
        interval=(float(low), float(high)),
        cell_types=types,
        names=[ontology.name(t) for t in types],
        n_cells=[len(m) for m in members],
        ontology_similarity=of_pairs,
        cosine=cosine,
        cells_without_type=int((given == "").sum()),
    )


def _cosines(unit: np.ndarray, members: Sequence[np.ndarray]) -> np.ndarray:
    centroids = np.stack([unit[m].mean(axis=0) for m in members])
    centroids /= np.maximum(np.linalg.norm(centroids, axis=1, keepdims=True), 1e-12)
    return centroids @ centroids.T


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(spearmanr(a, b).statistic)


__all__ = ["OntologyGeometry", "ontology_geometry"]
