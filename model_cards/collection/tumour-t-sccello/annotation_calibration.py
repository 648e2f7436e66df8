"""What a classifier knows of its own limits: prediction sets, broader cell types, novelty, unassigned cells.

It lies beside a model's weights as one file, is fitted on cells of data sets that the model did not see
(`cellglot.evaluation.annotation.calibration`), and takes nothing but numpy and safetensors to use.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from transformers.utils import cached_file


CALIBRATION_FILE = "annotation_calibration.safetensors"
VERSION = 1
UNASSIGNED = "unassigned"
CELLS_AT_ONCE = 4096

# Why a cell is unassigned; the first that holds is given.
REASONS = (
    "",
    "no gene of the model is expressed",
    "too few genes of the model are expressed",
    "like cells of other tissues",
    "unlike the cells of training",
    "too many cell types are possible",
)
ASSIGNED, NO_GENES, FEW_GENES, FOREIGN, NOVEL, TOO_WIDE = range(len(REASONS))


class CalibrationError(ValueError):
    """A calibration is damaged or belongs to another model; the message names the file."""


@dataclass(frozen=True)
class EmbeddingReference:
    """Training embeddings in short: where training cells lie, in directions of equal variance.

    Parameters
    ----------
    center
        Mean of the training embeddings, shape (size,).
    projection
        Directions, each divided by the standard deviation of the training cells along it, shape (size, directions).
    references
        Training cells after projection, shape (references, directions).
    scale
        Median distance of other training cells to their nearest references: distances are given in this unit.
    neighbors
        Number of nearest references whose distances are averaged.
    """

    center: np.ndarray
    projection: np.ndarray
    references: np.ndarray
    scale: float = 1.0
    neighbors: int = 5

    def distances(self, embedding: np.ndarray) -> np.ndarray:
        """Return how far cells lie from the training cells.

        Parameters
        ----------
        embedding
            Cell embeddings, shape (cells, size).

        Returns
        -------
        numpy.ndarray
            Mean distance to the nearest references in units of `scale`, float32, shape (cells,); NaN for cells whose
            embedding is NaN.
        """
        references = self.references.astype(np.float32)
        squares = (references**2).sum(axis=1)
        found = np.empty(len(embedding), dtype=np.float32)
        for start in range(0, len(embedding), CELLS_AT_ONCE):
            rows = slice(start, start + CELLS_AT_ONCE)
            x = (np.asarray(embedding[rows], dtype=np.float32) - self.center) @ self.projection
            far = np.maximum((x**2).sum(axis=1)[:, None] + squares - 2 * x @ references.T, 0)
            k = min(self.neighbors, far.shape[1])
            found[rows] = np.sqrt(np.partition(far, k - 1, axis=1)[:, :k]).mean(axis=1)
        return found / np.float32(self.scale)


@dataclass(frozen=True)
class CellDecisions:
    """What is said of each cell. Arrays have the shape (cells,) where nothing else is said.

    Parameters
    ----------
    best
        Number of the most likely class.
    probabilities
        Calibrated probabilities of the classes, shape (cells, classes); NaN for cells without genes.
    sets
        Whether a class is in the cell's prediction set, bool, shape (cells, classes).
    broader
        Number of the smallest ontology term that covers the set; -1 where the set is one class, or no term covers it.
    confidence
        Calibrated probability of the most likely class.
    novelty
        Share of held-out cells of known types that lie nearer to the training cells, 0 to 1.
    reason
        Place in `REASONS`; 0 for assigned cells.
    level
        Share of prediction sets that should hold the true type.
    """

    best: np.ndarray
    probabilities: np.ndarray
    sets: np.ndarray
    broader: np.ndarray
    confidence: np.ndarray
    novelty: np.ndarray
    reason: np.ndarray
    level: float

    @property
    def assigned(self) -> np.ndarray:
        """Whether each cell is assigned to a class."""
        return self.reason == ASSIGNED


@dataclass(frozen=True)
class AnnotationCalibration:
    """How far the classes of a model can be trusted.

    Parameters
    ----------
    classes
        Names of the model's classes, in the order of its logits.
    cell_types
        Cell Ontology id of each class; None where it has none.
    terms, term_names
        Ids and names of the classes' types and of all types above them, up to the narrowest that covers all classes.
        The narrowest come first.
    below
        Whether a class is this term or below it, bool, shape (terms, classes).
    temperature
        Logits are divided by it.
    levels
        Shares of prediction sets that should hold the true type, ascending, shape (levels,).
    set_thresholds
        For each level the largest `set_scores` of a class in the set, shape (levels,).
    reference
        Training embeddings in short.
    distances
        Quantiles of the distances of held-out cells of known types, at equal steps from 0 to 1, shape (steps,).
    most_novelty
        Cells of a larger novelty are unassigned.
    least_evidence
        Cells are unassigned where no class, and no term above at most half of the classes, gathers this probability.
    least_genes
        Cells that express fewer genes of the model are unassigned.
    foreign
        Names of classes for cells of none of the types, such as "other". They are in no prediction set.
    most_foreign
        Cells are unassigned where the foreign classes together have a larger probability.
    facts
        What it was fitted on, and the coverage that was measured: plain types.
    """

    classes: list[str]
    cell_types: list[str | None]
    terms: list[str]
    term_names: list[str]
    below: np.ndarray
    temperature: float
    levels: np.ndarray
    set_thresholds: np.ndarray
    reference: EmbeddingReference
    distances: np.ndarray
    most_novelty: float = 0.99
    least_evidence: float = 0.5
    least_genes: int = 0
    foreign: list[str] = field(default_factory=list)
    most_foreign: float = 0.5
    facts: dict[str, Any] = field(default_factory=dict)

    # -------------------------------------------------------------------- use

    def decide(
        self,
        logits: np.ndarray,
        distances: np.ndarray,
        n_genes: np.ndarray | None = None,
        level: float = 0.9,
    ) -> CellDecisions:
        """Say of each cell what it is, what else it may be, and whether it is like the training cells at all.

        Parameters
        ----------
        logits
            Of the model, shape (cells, classes); NaN for cells without genes.
        distances
            Of the cells' embeddings, from `EmbeddingReference.distances`, shape (cells,).
        n_genes
            Number of the model's genes that each cell expresses, shape (cells,).
        level
            Share of prediction sets that should hold the true type: one of `levels`, or between two of them.

        Raises
        ------
        ValueError
            If `level` is outside of `levels`.
        """
        threshold = self.threshold(level)
        empty = ~np.isfinite(logits).any(axis=1) | np.isnan(logits).any(axis=1)
        probabilities = softmax(np.where(empty[:, None], 0, logits) / self.temperature)
        known = np.array([name not in self.foreign for name in self.classes])
        outside = probabilities[:, ~known].sum(axis=1)
        among = np.where(known, probabilities, 0)
        among /= np.maximum(among.sum(axis=1, keepdims=True), 1e-12)
        best = among.argmax(axis=1)
        sets = (set_scores(among) <= threshold) & known
        broader = self.covering(sets)
        broader[sets.sum(axis=1) < 2] = -1
        novelty = np.interp(distances, self.distances, np.linspace(0, 1, len(self.distances))).astype(np.float32)
        reason = np.zeros(len(logits), dtype=np.int8)
        reason[self.evidence(among) < self.least_evidence] = TOO_WIDE
        reason[novelty > self.most_novelty] = NOVEL
        reason[outside > self.most_foreign] = FOREIGN
        if n_genes is not None:
            reason[np.asarray(n_genes) < self.least_genes] = FEW_GENES
        reason[empty] = NO_GENES
        probabilities[empty], novelty[empty], sets[empty], broader[empty] = np.nan, np.nan, False, -1
        confidence = probabilities[np.arange(len(best)), best]
        return CellDecisions(best, probabilities, sets, broader, confidence, novelty, reason, level)

    def threshold(self, level: float) -> float:
        """Return the threshold of prediction sets for a share of sets that should hold the true type."""
        if not self.levels[0] - 1e-9 <= level <= self.levels[-1] + 1e-9:
            raise ValueError(
                f"set coverage {level:.0%}: this model was calibrated for {self.levels[0]:.0%} to "
                f"{self.levels[-1]:.0%}: choose a share between them"
            )
        return float(np.interp(level, self.levels, self.set_thresholds))

    def covering(self, sets: np.ndarray) -> np.ndarray:
        """Return the number of the narrowest term that covers each set, -1 where none does; shape (cells,).

        Parameters
        ----------
        sets
            Bool, shape (cells, classes).
        """
        if not self.terms:
            return np.full(len(sets), -1)
        covers = (sets.astype(np.float32) @ (~self.below).T.astype(np.float32)) == 0
        return np.where(covers.any(axis=1), covers.argmax(axis=1), -1)

    def evidence(self, probabilities: np.ndarray) -> np.ndarray:
        """Return the largest probability that a class, or a term above at most half of the classes, gathers.

        Parameters
        ----------
        probabilities
            Shape (cells, classes).

        Returns
        -------
        numpy.ndarray
            Shape (cells,).
        """
        narrow = self.below[self.below.sum(axis=1) <= max(1, (len(self.classes) - len(self.foreign)) // 2)]
        sums = [probabilities.max(axis=1)]
        if len(narrow):
            sums.append((probabilities @ narrow.T.astype(probabilities.dtype)).max(axis=1))
        return np.maximum.reduce(sums)

    def columns(self, decisions: CellDecisions) -> dict[str, list[Any]]:
        """Return what is said of each cell in words.

        Parameters
        ----------
        decisions
            From `decide`.

        Returns
        -------
        dict
            ``cell_type`` (``"unassigned"`` where a cell is), ``cell_type_ontology_term_id``, ``confidence``,
            ``best_class``, ``prediction_set`` (names joined by ``"; "``, the most likely first), ``broader_type``,
            ``broader_type_ontology_term_id``, ``novelty``, ``assigned``, ``reason``: one value a cell; None where
            there is none.
        """
        assigned, empty = decisions.assigned, decisions.reason == NO_GENES
        order = np.argsort(-np.where(decisions.sets, decisions.probabilities, -1), axis=1, kind="stable")
        sizes = decisions.sets.sum(axis=1)
        broader = [None if i < 0 else int(i) for i in decisions.broader]
        return {
            "cell_type": [
                self.classes[i] if ok else UNASSIGNED for i, ok in zip(decisions.best, assigned, strict=True)
            ],
            "cell_type_ontology_term_id": [
                self.cell_types[i] if ok else None for i, ok in zip(decisions.best, assigned, strict=True)
            ],
            "confidence": decisions.confidence.tolist(),
            "best_class": [None if none else self.classes[i] for i, none in zip(decisions.best, empty, strict=True)],
            "prediction_set": [
                "; ".join(self.classes[i] for i in row[:size]) or None for row, size in zip(order, sizes, strict=True)
            ],
            "broader_type": [None if i is None else self.term_names[i] for i in broader],
            "broader_type_ontology_term_id": [None if i is None else self.terms[i] for i in broader],
            "novelty": decisions.novelty.tolist(),
            "assigned": assigned.tolist(),
            "reason": [REASONS[i] or None for i in decisions.reason],
        }

    def check(self, name: Any, classes: list[str], size: int | None = None) -> None:
        """Refuse a model of other classes, or of embeddings of another size.

        Parameters
        ----------
        name
            Folder or repository of the model, for the message.
        classes
            Of the model, in the order of its logits.
        size
            Of its embeddings.
        """
        if list(classes) != list(self.classes):
            raise CalibrationError(
                f"{name}: {CALIBRATION_FILE} belongs to a model of other classes ({', '.join(self.classes[:5])}, "
                "...): delete the file, or fit a calibration to this model"
            )
        if size is not None and size != len(self.reference.center):
            raise CalibrationError(
                f"{name}: {CALIBRATION_FILE} belongs to a model with embeddings of size {len(self.reference.center)}, "
                f"and these have {size}: delete the file, or fit a calibration to this model"
            )

    # -------------------------------------------------------------------- files

    def save(self, folder: str | os.PathLike) -> Path:
        """Write it into the folder of a model, as ``annotation_calibration.safetensors``; return the path."""
        path = Path(folder, CALIBRATION_FILE)
        reference = self.reference
        named = {"version": VERSION, "scale": float(reference.scale), "neighbors": int(reference.neighbors)}
        named |= {name: getattr(self, name) for name in _PLAIN}
        tensors = {
            "below": np.asarray(self.below, dtype=np.uint8),
            "levels": np.asarray(self.levels, dtype=np.float64),
            "set_thresholds": np.asarray(self.set_thresholds, dtype=np.float64),
            "center": np.asarray(reference.center, dtype=np.float32),
            "projection": np.asarray(reference.projection, dtype=np.float32),
            "references": np.asarray(reference.references, dtype=np.float16),
            "distances": np.asarray(self.distances, dtype=np.float32),
        }
        temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            whole = {key: np.ascontiguousarray(values) for key, values in tensors.items()}
            save_file(whole, temporary, {"calibration": json.dumps(named, ensure_ascii=False)})
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return path

    @classmethod
    def load(cls, name: str | os.PathLike, **hub: Any) -> "AnnotationCalibration | None":
        """Load the calibration of a model.

        Parameters
        ----------
        name
            Folder or repository.
        **hub
            ``revision``, ``token``, ``cache_dir``, ``local_files_only``.

        Returns
        -------
        AnnotationCalibration or None
            None where the model has none.

        Raises
        ------
        CalibrationError
            If the file is damaged.
        """
        path = cached_file(str(name), CALIBRATION_FILE, **_QUIET, **hub)
        if path is None:
            return None
        try:
            with safe_open(path, "np") as file:
                named = json.loads((file.metadata() or {})["calibration"])
                arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            if named.get("version") != VERSION:
                raise ValueError(f"version {named.get('version')!r}, this code reads version {VERSION}")
            return _checked(cls._of(named, arrays))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise CalibrationError(
                f"{path} is not a readable calibration ({error}): download or fit it again, or delete it"
            ) from error

    @classmethod
    def _of(cls, named: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> "AnnotationCalibration":
        reference = EmbeddingReference(
            arrays["center"], arrays["projection"], arrays["references"], named["scale"], named["neighbors"]
        )
        return cls(
            below=arrays["below"].astype(bool),
            levels=arrays["levels"],
            set_thresholds=arrays["set_thresholds"],
            reference=reference,
            distances=arrays["distances"],
            **{name: named[name] for name in _PLAIN},
        )


# Fields that are stored as JSON; the others are tensors.
_PLAIN = (
    "classes", "cell_types", "terms", "term_names", "temperature", "most_novelty", "least_evidence", "least_genes",
    "foreign", "most_foreign", "facts",
)  # fmt: skip
_QUIET = {
    "_raise_exceptions_for_missing_entries": False,
    "_raise_exceptions_for_connection_errors": False,
    "_raise_exceptions_for_gated_repo": False,
}


def _checked(made: AnnotationCalibration) -> AnnotationCalibration:
    """Refuse parts that do not fit together."""
    reference, classes = made.reference, len(made.classes)
    if len(made.cell_types) != classes or made.below.shape != (len(made.terms), classes):
        raise ValueError(f"{classes} classes and a table of the shape {made.below.shape}")
    if len(made.terms) != len(made.term_names):
        raise ValueError(f"{len(made.terms)} terms and {len(made.term_names)} names")
    if len(made.levels) != len(made.set_thresholds) or not len(made.levels) or (np.diff(made.levels) <= 0).any():
        raise ValueError("levels that do not ascend")
    size, directions = reference.projection.shape
    if reference.center.shape != (size,) or reference.references.shape[1:] != (directions,):
        raise ValueError("references of another size than the embeddings")
    if not len(reference.references) or len(made.distances) < 2 or (np.diff(made.distances) < 0).any():
        raise ValueError("no distances")
    numbers = (
        made.temperature,
        reference.scale,
        made.most_novelty,
        made.least_evidence,
        made.least_genes,
        made.most_foreign,
    )
    if not all(isinstance(n, int | float) and np.isfinite(n) for n in numbers) or made.temperature <= 0:
        raise ValueError(f"numbers {numbers}")
    arrays = (reference.center, reference.projection, reference.references, made.distances, made.set_thresholds)
    if reference.scale <= 0 or reference.neighbors < 1 or not all(np.isfinite(a).all() for a in arrays):
        raise ValueError("values that are not finite")
    return made


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the softmax of logits over the last axis; a class of logit minus infinity gets 0."""
    shifted = np.asarray(logits, dtype=np.float32)
    powers = np.exp(shifted - shifted.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def set_scores(probabilities: np.ndarray) -> np.ndarray:
    """Return how far each class is from being in the prediction set: 1 minus its probability, 0 for the most likely.

    The score of least ambiguous sets (Sadinle, Lei and Wasserman 2019, arXiv:1609.00451); that no set is empty is our
    choice.

    Parameters
    ----------
    probabilities
        Shape (cells, classes).

    Returns
    -------
    numpy.ndarray
        Shape (cells, classes).
    """
    scores = 1 - probabilities
    scores[np.arange(len(scores)), probabilities.argmax(axis=1)] = 0
    return scores


__all__ = ["CALIBRATION_FILE", "UNASSIGNED", "AnnotationCalibration", "CalibrationError", "EmbeddingReference"]
