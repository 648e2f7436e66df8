"""Fits what a classifier knows of its own limits to cells of data sets that it did not see in training."""

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar

from cellglot.modeling.annotation_calibration import (
    AnnotationCalibration,
    EmbeddingReference,
    set_scores,
    softmax,
)
from cellglot.tokenization.ontology.cell_ontology import CellOntology


LEVELS = (0.8, 0.9, 0.95)
TEMPERATURES = (0.05, 20.0)
FEWEST_CELLS = 20  # of known types that a data set needs
STEPS = 401  # quantiles of the distances
NEIGHBORS = 5  # nearest training cells whose distances are averaged
FOREIGN_RANGE = (0.1, 0.9)  # of the threshold of foreign classes


@dataclass(frozen=True)
class HeldOutCells:
    """What one model says of cells of data sets that it did not see.

    Parameters
    ----------
    logits
        Shape (cells, classes), in the order of the classes of the calibration. Minus infinity for a class that this
        model was not trained on: its cells are foreign to it.
    embedding
        Cell embeddings (``pooler_output`` of the encoder), shape (cells, size).
    allowed
        Whether a class is right for a cell, bool, shape (cells, classes); from `allowed_classes`. Cells for which no
        class is right are foreign: they fit nothing, and it is reported how many are unassigned.
    data_sets
        Name of each cell's data set or laboratory, shape (cells,). All counts are per data set.
    training_embedding
        Embeddings by the same model of cells of known types that it was trained on, shape (training cells, size); some
        thousands. Cells of foreign classes do not belong here: others like them would not be novel.
    """

    logits: np.ndarray
    embedding: np.ndarray
    allowed: np.ndarray
    data_sets: Sequence[str]
    training_embedding: np.ndarray


def allowed_classes(
    labels: Sequence[str | Collection[str] | None], cell_types: Sequence[str | None], ontology: CellOntology
) -> np.ndarray:
    """Tell which classes are right for cells whose labels stand at any level of the ontology.

    A class is right for a label if it is the label's type, below it (label "T cell", class "CD4 T cell") or above it
    (label "naive CD4 T cell", class "CD4 T cell"). A cell with several labels is one of them.

    Parameters
    ----------
    labels
        Cell Ontology id of each cell, or several ids; None for a cell without a label.
    cell_types
        Id of each class; None for a class that is no cell type, which is right for no label.
    ontology
        Where both are found.

    Returns
    -------
    numpy.ndarray
        Bool, shape (cells, classes).
    """
    keys = [() if label is None else (label,) if isinstance(label, str) else tuple(sorted(label)) for label in labels]
    known = [i for i, cell_type in enumerate(cell_types) if cell_type is not None]
    found: dict[tuple[str, ...], np.ndarray] = {}
    for key in set(keys):
        row = np.zeros(len(cell_types), dtype=bool)
        if key and known:
            types = [*key, *(str(cell_types[i]) for i in known)]
            above = ontology.ancestor_mask(types)  # the second is above the first, or the first itself
            mine = above[: len(key), len(key) :] | above[len(key) :, : len(key)].T
            row[known] = mine.any(axis=0)
        found[key] = row
    return np.stack([found[key] for key in keys]) if keys else np.zeros((0, len(cell_types)), dtype=bool)


def fit_calibration(
    held_out: Sequence[HeldOutCells],
    training_embedding: np.ndarray,
    classes: Sequence[str],
    cell_types: Sequence[str | None],
    ontology: CellOntology,
    *,
    foreign: Collection[str] = (),
    levels: Sequence[float] = LEVELS,
    most_unassigned: float = 0.01,
    least_genes: int = 20,
    n_references: int = 1024,
    n_directions: int = 32,
    seed: int = 0,
) -> AnnotationCalibration:
    """Fit prediction sets and novelty, so that they hold for laboratories that nobody has seen.

    All data sets count alike, whatever their size. The temperature makes the right classes of their cells most likely.
    Thresholds of prediction sets are split-conformal: a quantile of `set_scores` of each cell's best right class. It
    is raised until sets with the threshold of all other data sets hold the right class of the data set left out, on
    the average of the data sets. This coverage across laboratories is recorded in ``facts``. Distances to the training
    cells are measured in the space of the model that embedded the cells, in units of that model's training cells, so
    that models of different folds and the shipped one can be compared.

    Parameters
    ----------
    held_out
        Outputs of one or more models, each for data sets that it did not see.
    training_embedding
        Embeddings, by the model that gets the calibration, of cells of known types that it was trained on, shape
        (training cells, size).
    classes
        Names of its classes, in the order of the logits.
    cell_types
        Cell Ontology id of each class; None where it has none.
    ontology
        Where the types above them are found.
    foreign
        Names of classes for cells of none of the types, such as "other": they are in no prediction set, and cells that
        are likely of these are unassigned.
    levels
        Shares of prediction sets that should hold a right class.
    most_unassigned
        Share of held-out cells of known types that may be unassigned as novel, on the average of the data sets; again
        as foreign, and again for want of evidence.
    least_genes
        Cells that express fewer genes of the model are unassigned.
    n_references, n_directions
        Number of training cells, and of directions, that are kept to measure distances.
    seed
        Of the draw of these cells.

    Returns
    -------
    AnnotationCalibration
        `AnnotationCalibration.save` puts it into the folder of the model.

    Raises
    ------
    ValueError
        If shapes do not fit together, or no data set has twenty cells of known types.
    """
    classes, cell_types, foreign = list(classes), list(cell_types), list(foreign)
    _check(held_out, classes, cell_types, foreign)
    known = np.array([name not in foreign for name in classes])
    cells = _joined(held_out, known, n_references, n_directions, seed)
    labelled = cells.of_known_types()
    logits = np.where(known, labelled.logits, -np.inf)
    temperature = _temperature(logits, labelled)
    probabilities = softmax(logits / temperature)
    thresholds, coverage = _set_thresholds(probabilities, labelled, sorted(levels))
    terms, below = _terms(cell_types, ontology)
    steps = np.linspace(0, 1, STEPS)
    made = AnnotationCalibration(
        classes=classes,
        cell_types=cell_types,
        terms=terms,
        term_names=[ontology.name(term) for term in terms],
        below=below,
        temperature=temperature,
        levels=np.array(sorted(levels)),
        set_thresholds=thresholds,
        reference=summarise_embedding(training_embedding, n_references, n_directions, seed),
        distances=np.maximum.accumulate(_quantile(labelled.distances, labelled.weights, steps)).astype(np.float32),
        most_novelty=1 - most_unassigned,
        least_genes=least_genes,
        foreign=foreign,
    )
    least = min(float(_quantile(made.evidence(probabilities), labelled.weights, [most_unassigned])[0]), 0.5)
    outside = softmax(labelled.logits / temperature)[:, ~known].sum(axis=1)
    most = float(np.clip(_quantile(outside, labelled.weights, [1 - most_unassigned])[0], *FOREIGN_RANGE))
    made = dataclasses.replace(made, least_evidence=least, most_foreign=most)
    facts = {"cells": len(labelled), "coverage": coverage, "unassigned": _unassigned(made, cells)}
    return dataclasses.replace(made, facts=facts)


def summarise_embedding(
    embedding: np.ndarray, n_references: int = 1024, n_directions: int = 32, seed: int = 0
) -> EmbeddingReference:
    """Keep of training embeddings what measures how far other cells are from them.

    Parameters
    ----------
    embedding
        Of training cells, shape (cells, size).
    n_references, n_directions, seed
        As for `fit_calibration`.
    """
    x = np.asarray(embedding, dtype=np.float32)
    x = x[np.isfinite(x).all(axis=1)]
    if len(x) < 2 * NEIGHBORS:
        raise ValueError(f"{len(x):,} training embeddings are too few: some thousands are needed")
    center = x.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(x - center, rowvar=False).reshape(x.shape[1], x.shape[1]))
    kept = np.argsort(-values)[:n_directions]
    kept = kept[values[kept] > 1e-6 * values.max()]
    projection = (vectors[:, kept] / np.sqrt(values[kept] + 1e-3 * values.max())).astype(np.float32)
    order = np.random.default_rng(seed).permutation(len(x))
    n_kept = min(n_references, len(x) // 2)
    references = ((x[order[:n_kept]] - center) @ projection).astype(np.float16)
    made = EmbeddingReference(center, projection, references, 1.0, NEIGHBORS)
    scale = float(np.median(made.distances(x[order[n_kept : n_kept + 4 * n_references]])))
    return dataclasses.replace(made, scale=max(scale, 1e-6))


@dataclass(frozen=True)
class _Cells:
    """Held-out cells: logits, right classes, distances, data sets; one row a cell."""

    logits: np.ndarray
    allowed: np.ndarray
    distances: np.ndarray
    data_sets: np.ndarray

    def __len__(self) -> int:
        return len(self.data_sets)

    @property
    def names(self) -> np.ndarray:
        """Data sets."""
        return np.unique(self.data_sets)

    @property
    def weights(self) -> np.ndarray:
        """One a cell; those of each data set have the same sum."""
        _, number, counts = np.unique(self.data_sets, return_inverse=True, return_counts=True)
        return 1 / (counts[number] * len(counts))

    def where(self, rows: np.ndarray) -> "_Cells":
        """Return some of the cells."""
        return _Cells(*(getattr(self, f.name)[rows] for f in dataclasses.fields(self)))

    def of_known_types(self) -> "_Cells":
        """Return the cells for which a class is right, of data sets with enough of them."""
        found = self.where(np.flatnonzero(self.allowed.any(axis=1)))
        names, counts = np.unique(found.data_sets, return_counts=True)
        if not (counts >= FEWEST_CELLS).any():
            raise ValueError(
                f"no data set has {FEWEST_CELLS} cells whose type is among the classes: nothing can be fitted"
            )
        return found.where(np.isin(found.data_sets, names[counts >= FEWEST_CELLS]))


def _check(
    held_out: Sequence[HeldOutCells], classes: list[str], cell_types: list[str | None], foreign: list[str]
) -> None:
    if not held_out:
        raise ValueError("no held-out cells: a calibration is fitted to data sets that the model did not see")
    if len(classes) != len(cell_types) or len(set(classes)) != len(classes):
        raise ValueError(f"{len(classes)} classes and {len(cell_types)} cell types: one for each class, all different")
    if unknown := sorted(set(foreign) - set(classes)):
        raise ValueError(f"foreign classes that are no classes of the model: {', '.join(unknown)}")
    for cells in held_out:
        n = len(cells.data_sets)
        shapes = (np.shape(cells.logits), np.shape(cells.allowed), np.shape(cells.embedding)[:1])
        if shapes != ((n, len(classes)), (n, len(classes)), (n,)):
            raise ValueError(
                f"{n:,} cells of {len(classes)} classes, but logits have the shape {shapes[0]}, right classes "
                f"{shapes[1]}, and there are {shapes[2][0]:,} embeddings"
            )


def _joined(
    held_out: Sequence[HeldOutCells], known: np.ndarray, n_references: int, n_directions: int, seed: int
) -> _Cells:
    """Join the cells of all models, but for those without genes."""
    parts = []
    for cells in held_out:
        reference = summarise_embedding(cells.training_embedding, n_references, n_directions, seed)
        logits, allowed = np.asarray(cells.logits, dtype=np.float32), np.asarray(cells.allowed, dtype=bool)
        part = _Cells(
            logits=logits,
            allowed=allowed & known & np.isfinite(logits),
            distances=reference.distances(cells.embedding),
            data_sets=np.asarray(cells.data_sets, dtype=str),
        )
        parts.append(part.where(~np.isnan(part.distances) & ~np.isnan(logits).any(axis=1)))
    return _Cells(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in dataclasses.fields(_Cells)))


def _temperature(logits: np.ndarray, cells: _Cells) -> float:
    """Return the temperature with which right classes are most likely, on the average of the data sets."""
    logits, weights = logits.astype(np.float64), cells.weights
    shifted = logits - logits.max(axis=1, keepdims=True)
    right = np.where(cells.allowed, shifted, -np.inf)

    def loss(log_temperature: float) -> float:
        scale = np.exp(-log_temperature)
        likely = np.exp(right * scale).sum(axis=1) / np.exp(shifted * scale).sum(axis=1)
        return float(-(weights * np.log(np.maximum(likely, 1e-12))).sum())

    bounds = tuple(np.log(TEMPERATURES))
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-3}).x))


def _set_thresholds(
    probabilities: np.ndarray, cells: _Cells, levels: Sequence[float]
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Return the threshold of each level, and the coverage that was measured on data sets left out."""
    of_classes = set_scores(probabilities)
    scores = np.where(cells.allowed, of_classes, np.inf).min(axis=1)
    thresholds, measured = [], []
    for level in levels:
        tried = np.append(np.arange(level, 0.999, 0.005), 0.999)
        found = _coverage_left_out(cells, scores, tried)
        enough = np.flatnonzero(found.mean(axis=1) >= level)
        place = int(enough[0]) if len(enough) else len(tried) - 1
        threshold = min(float(_quantile(scores, cells.weights, tried[place : place + 1])[0]), 1.0)
        thresholds.append(threshold)
        sizes = (of_classes <= threshold).sum(axis=1)
        measured.append(
            {
                "level": float(level),
                "left_out": round(float(found[place].mean()), 4),
                "data_sets": {str(n): round(float(c), 4) for n, c in zip(cells.names, found[place], strict=True)},
                "mean_size": round(float((cells.weights * sizes).sum()), 3),
            }
        )
    return np.maximum.accumulate(thresholds), measured


def _coverage_left_out(cells: _Cells, scores: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Return the coverage of each data set with the thresholds that the others give, shape (levels, data sets).

    Where there is one data set, its own thresholds are used.
    """
    found = []
    for name in cells.names:
        mine = cells.data_sets == name
        others = np.ones(len(cells), dtype=bool) if mine.all() else ~mine
        thresholds = _quantile(scores[others], cells.where(others).weights, levels)
        found.append((scores[mine] <= thresholds[:, None]).mean(axis=1))
    return np.stack(found, axis=1)


def _quantile(values: np.ndarray, weights: np.ndarray, levels: Any) -> np.ndarray:
    """Return weighted quantiles: the least values with at least these shares of the weight at or below them."""
    order = np.argsort(values, kind="stable")
    shares = np.cumsum(weights[order]) / weights.sum()
    return values[order][np.minimum(np.searchsorted(shares, np.asarray(levels) - 1e-9), len(values) - 1)]


def _terms(cell_types: Sequence[str | None], ontology: CellOntology) -> tuple[list[str], np.ndarray]:
    """Return the types of the classes and those above them, the narrowest first, and which classes are below each."""
    above = [set() if t is None else {t, *ontology.ancestors(t)} for t in cell_types]
    ids = sorted(set().union(*above))
    below = np.array([[t in types for types in above] for t in ids], dtype=bool).reshape(len(ids), len(cell_types))
    order = sorted(range(len(ids)), key=lambda i: (below[i].sum(), len(ontology.descendants(ids[i])), ids[i]))
    everything = max((int(row.sum()) for row in below), default=0)
    root = next((place for place, i in enumerate(order) if below[i].sum() == everything), len(order))
    kept = order[: root + 1]  # of terms above all classes the narrowest
    return [ids[i] for i in kept], below[kept]


def _unassigned(made: AnnotationCalibration, cells: _Cells) -> dict[str, Any]:
    """Return for each data set the share of cells of known and of foreign types that are unassigned."""
    assigned = made.decide(cells.logits, cells.distances).assigned
    known = cells.allowed.any(axis=1)
    return {
        kind: {
            str(name): round(float((~assigned[rows & (cells.data_sets == name)]).mean()), 4)
            for name in np.unique(cells.data_sets[rows])
        }
        for kind, rows in (("known_types", known), ("foreign", ~known))
    }


__all__ = ["HeldOutCells", "allowed_classes", "fit_calibration", "summarise_embedding"]
