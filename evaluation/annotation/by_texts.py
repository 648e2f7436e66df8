"""Zero-shot annotation of cells by texts: AnnData, files or opened cells, streamed in bounded memory."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from cellglot.evaluation.annotation.scores import (
    Calibration,
    back_off,
    calibrated,
    excess_mass,
    fit_temperature,
    neighbor_graph,
)
from cellglot.evaluation.embedding import evaluated_on
from cellglot.evaluation.output import KEY, add_results
from cellglot.evaluation.text_model import (
    EncodedTexts,
    as_processor,
    encode_texts,
    fingerprint,
)
from cellglot.modeling.any_model import check_cell_text_model
from cellglot.progress import progress_bars
from cellglot.tokenization.count_matrix import open_counts
from cellglot.tokenization.gene_report import GeneReport
from cellglot.tokenization.ontology.candidates import Candidates, make_candidates
from cellglot.tokenization.ontology.cell_ontology import CellOntology
from cellglot.tokenization.reading.cells import Cells, read_cells
from cellglot.tokenization.reading.labels import read_labels


if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass
class CellAnnotation:
    """Annotated cells. Cells that express no known gene have rows of NaN and the prediction None.

    Parameters
    ----------
    cell_names
        Shape (cells,).
    candidates
        The classes and their texts.
    scores
        Final scores, smoothed and calibrated if requested; they sum to 1 for each cell. Float32, shape
        (cells, classes).
    similarity
        Softmax over classes of cosine / tau, not smoothed; float32, shape (cells, classes).
    matching_probability
        P(match), not smoothed; NaN for classes outside the shortlist; float32, shape (cells, classes).
    embedding
        Cell embeddings, shape (cells, size).
    predicted, predicted_types
        Name and id of each cell's prediction: its best candidate, or the result of `back_off`; or None.
    best
        Best candidate of each cell, -1 for cells without known genes; shape (cells,).
    settings
        Options of the annotation and the fingerprint of the model.
    genes
        Genes matched and lost.
    calibration
        The fitted temperature, if labels were given.
    mass
        With back-off: mass of the prediction and all types below it, shape (cells,).
    moved
        With back-off: whether the prediction differs from the best candidate, shape (cells,).
    texts_cut
        Number of texts that were truncated to the text encoder's maximum length.
    """

    cell_names: np.ndarray
    candidates: Candidates
    scores: np.ndarray
    similarity: np.ndarray
    matching_probability: np.ndarray
    embedding: np.ndarray
    predicted: list[str | None]
    predicted_types: list[str | None]
    best: np.ndarray
    settings: dict[str, Any]
    genes: GeneReport
    calibration: Calibration | None = None
    mass: np.ndarray | None = None
    moved: np.ndarray | None = None
    texts_cut: int = 0

    def __len__(self) -> int:
        return len(self.best)

    @property
    def matching(self) -> np.ndarray:
        """Softmax over classes of P(match), 0 outside the shortlist; shape (cells, classes)."""
        powers = np.exp(np.nan_to_num(self.matching_probability))
        powers /= powers.sum(axis=1, keepdims=True)
        powers[np.isnan(self.matching_probability).all(axis=1)] = np.nan
        return powers

    @property
    def score_name(self) -> str:
        """``score_calibrated`` if a temperature was fitted to labelled cells, else ``score_uncalibrated``."""
        return "score_uncalibrated" if self.calibration is None else "score_calibrated"

    @property
    def score(self) -> np.ndarray:
        """Score of each cell's best candidate, shape (cells,)."""
        return _at_best(self.scores, self.best)

    @property
    def margin(self) -> np.ndarray:
        """Best score minus second-best score, shape (cells,); NaN if there is only one class."""
        if self.scores.shape[1] < 2:
            return np.full(len(self), np.nan, dtype=np.float32)
        two = np.partition(self.scores, -2, axis=1)[:, -2:]
        return np.where(self.best < 0, np.nan, two[:, 1] - two[:, 0]).astype(np.float32)

    def columns(self) -> dict[str, Any]:
        """Return one value per cell: prediction, id, score, margin, both branches' scores of the best candidate."""
        best = [None if i < 0 else self.candidates.names[i] for i in self.best]
        columns = {
            "cell_type": pd.Categorical(self.predicted),
            "cell_type_ontology_term_id": pd.Categorical(self.predicted_types),
            self.score_name: self.score,
            "margin": self.margin,
            "similarity": _at_best(self.similarity, self.best),
            "matching": _at_best(self.matching, self.best),
            "matching_probability": _at_best(self.matching_probability, self.best),
        }
        if self.mass is not None:
            columns |= {"best_candidate": pd.Categorical(best), "mass": self.mass, "backed_off": self.moved}
        return columns

    def table(self, classes: bool = True) -> pd.DataFrame:
        """Return a table with one row per cell.

        Parameters
        ----------
        classes
            Add the scores of all classes as columns ``score: B cell``, ...
        """
        frame = pd.DataFrame(self.columns(), index=pd.Index([str(n) for n in self.cell_names], name="cell_id"))
        if classes:
            names = [f"score: {name}" for name in self.candidates.names]
            frame = pd.concat([frame, pd.DataFrame(self.scores, index=frame.index, columns=names)], axis=1)
        return frame

    def matrices(self) -> dict[str, np.ndarray]:
        """Return arrays with one row per cell: embedding, scores, similarity, matching."""
        return {
            f"X_{KEY}": self.embedding,
            f"{KEY}_scores": self.scores,
            f"{KEY}_similarity": self.similarity,
            f"{KEY}_matching": self.matching,
        }

    def facts(self) -> dict[str, Any]:
        """Return classes and settings as plain types, for ``adata.uns``."""
        facts: dict[str, Any] = {
            "classes": np.array(self.candidates.names, dtype=object),
            "cell_types": np.array([t or "" for t in self.candidates.cell_types], dtype=object),
            "texts": np.array([" | ".join(t) for t in self.candidates.texts], dtype=object),
        } | {name: value for name, value in self.settings.items() if value is not None}
        if self.calibration is not None:
            facts["temperature"] = self.calibration.temperature
        return facts

    def write_to(self, adata: Any) -> None:
        """Write to an AnnData of these cells, in the same order.

        ``obs``: ``cellglot_cell_type``, ``cellglot_cell_type_ontology_term_id``, ``cellglot_score_uncalibrated`` (or
        ``_calibrated``), ``cellglot_margin``, ``cellglot_similarity``, ``cellglot_matching``,
        ``cellglot_matching_probability``; with back-off also ``cellglot_best_candidate``, ``cellglot_mass``,
        ``cellglot_backed_off``. ``obsm``: ``X_cellglot`` (embedding), ``cellglot_scores``, ``cellglot_similarity``,
        ``cellglot_matching``, whose columns are the classes of ``uns["cellglot"]["classes"]``.

        Raises
        ------
        ValueError
            If the number of cells differs.
        """
        if adata.n_obs != len(self):
            raise ValueError(f"{len(self):,} cells were annotated, but the AnnData has {adata.n_obs:,}")
        named = {f"{KEY}_{name}": values for name, values in self.columns().items()}
        add_results(adata, obs=named, obsm=self.matrices(), uns={KEY: self.facts()})

    def plot(self, coordinates: np.ndarray | None = None, title: str = "predicted cell types") -> "Figure":
        """Draw cells by prediction: the 19 most frequent in colours, the others as one class.

        Parameters
        ----------
        coordinates
            Shape (cells, 2); by default a UMAP of the embeddings.
        """
        from cellglot.evaluation import plots  # imports matplotlib

        coordinates = plots.umap_coordinates(self.embedding) if coordinates is None else coordinates
        labels = [name or "no prediction" for name in self.predicted]
        return plots.embedding_plot(coordinates, plots.frequent(labels), title)

    def summary(self) -> str:
        """Summarise the candidates, the matched genes and the predictions."""
        lines = [self.candidates.report.summary()]
        shared = _shared_texts(self.candidates)
        if shared:
            lines.append(f"{len(shared):,} texts belong to several candidates and are encoded once: {shared[0]}")
        if self.texts_cut:
            lines.append(f"{self.texts_cut:,} texts were truncated to the text encoder's maximum length")
        lines.append(self.genes.summary())
        if self.calibration is not None:
            lines.append(self.calibration.summary())
        counts = Counter(name for name in self.predicted if name is not None)
        lines += [f"{name}: {n:,} cells" for name, n in counts.most_common(20)]
        if len(counts) > 20:
            lines.append(f"and {len(counts) - 20:,} more cell types")
        if self.moved is not None:
            parents = int((self.moved & np.array([n is not None for n in self.predicted])).sum())
            lines.append(f"{parents:,} cells back off to a parent cell type")
        nothing = sum(name is None for name in self.predicted)
        if nothing:
            lines.append(f"{nothing:,} cells have no prediction")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.summary()


def annotate_cells(
    model: Any,
    processor: Any,
    cells: Any,
    candidates: Candidates | Sequence[str] | Mapping[str, str | Sequence[str]],
    *,
    ontology: CellOntology | None = None,
    alpha: float = 0.1,
    shortlist: int | None = None,
    smooth: int | None = None,
    back_off_below: float | None = None,
    labels: str | Sequence[str | None] | None = None,
    batch_size: int = 16,
    pairs_at_once: int | None = None,
    device: str | torch.device | None = None,
    progress: bool = True,
    layer: str | None = None,
    **options: Any,
) -> CellAnnotation:
    """Annotate cells with classes that are described by texts, without training.

    The score is ``alpha * similarity + (1 - alpha) * matching``, as in the published model. Texts are encoded once;
    a class with several texts is averaged as `LangCellModel.annotate` does; duplicate classes are scored once. Counts
    are streamed: memory grows only with the result (cells times classes).

    Parameters
    ----------
    model
        A LangCellModel.
    processor
        Its LangCellProcessor, or (tokenizer of cells, tokenizer of texts).
    cells
        AnnData, a file, cells opened by `read_cells`, or counts with ``genes=``.
    candidates
        From `make_candidates`; or names, ids or synonyms; or class -> text or texts.
    ontology
        To look up candidates and their parents. By default that of `candidates`; without one, each candidate's name
        is its text.
    alpha
        Weight of similarity; 0.1 in the published model.
    shortlist
        Compute P(match) only for this many classes of the highest similarity.
    smooth
        Average scores over a cell and this many nearest neighbours, with equal weights (our choice).
    back_off_below
        If the best candidate of a cell has less mass than this, predict the nearest parent cell type that has at
        least as much, or nothing: see `cellglot.evaluation.annotation.scores.back_off`. Mass is the calibrated score
        if labels are given, else the class's share of the scores above their floor (`excess_mass`).
    labels
        Labels to fit a temperature to: a column of obs, or one label (or None) per cell.
    pairs_at_once
        As for `LangCellModel.annotate`.
    device
        By default CUDA, MPS or the CPU, in this order.
    layer
        Layer of the counts.
    **options
        ``genes``, ``gene_column``, ``min_coverage`` as for the tokenizer.

    Returns
    -------
    CellAnnotation

    Raises
    ------
    ValueError
        If the model does not read texts (Exceiver, scCello), there are no candidates, a text is empty, an option is
        out of range, or no label matches a candidate.
    GeneCoverageError
        If no gene matches the vocabulary.
    """
    check_cell_text_model(model)
    processor = as_processor(processor, model)
    if not isinstance(candidates, Candidates):
        candidates = make_candidates(candidates, ontology)
    ontology = candidates.ontology if ontology is None else ontology
    if not len(candidates):
        raise ValueError("no candidates: name at least one cell type")
    if back_off_below is not None:
        if ontology is None:
            raise ValueError("back-off to parent cell types needs an ontology: pass ontology=...")
        if not 0 < back_off_below <= 1:
            raise ValueError(f"back_off_below={back_off_below} must be above 0 and at most 1")
    if smooth is not None and smooth < 1:
        raise ValueError(f"smooth={smooth} must be at least 1")
    with ExitStack() as opened:
        source = _opened(cells, layer, opened)
        counts = open_counts(source, options.get("genes"), layer)
        names = source.names() if isinstance(source, Cells) else np.arange(counts.n_cells).astype(str)
        given = _labels(source, labels, counts.n_cells)
        if given is not None and not candidates.class_of(given):
            raise ValueError(
                f"no label matches a candidate: labels are {', '.join(map(repr, list(Counter(given))[:5]))}, "
                f"candidates {', '.join(map(repr, candidates.names[:5]))}"
            )
        report = GeneReport()
        raw = _Scores(counts.n_cells, len(candidates), model.config.projection_dim)
        with evaluated_on(model, device) as place, torch.inference_mode():
            texts = encode_texts(model, processor, candidates.texts)
            asked = {"alpha": alpha, "shortlist": shortlist, "pairs_at_once": pairs_at_once}
            stream = processor.tokenizer.batches(counts, batch_size, report, **options)
            _annotate(model, processor.tokenizer, stream, texts, asked, raw, place, progress)
            weights = fingerprint(model)
        settings = {
            "alpha": alpha,
            "shortlist": shortlist,
            "smooth": smooth,
            "back_off_below": back_off_below,
            "model_fingerprint": weights,
        }
        annotation = _finish(raw, names, candidates, settings, report, given, ontology, str(place))
    annotation.texts_cut = texts.cut
    return annotation


class _Scores:
    """Scores of cells, filled batch by batch."""

    def __init__(self, n_cells: int, n_classes: int, size: int):
        self.scores, self.similarity, self.matching_probability = (
            np.full((n_cells, n_classes), np.nan, dtype=np.float32) for _ in range(3)
        )
        self.embedding = np.full((n_cells, size), np.nan, dtype=np.float32)


def _opened(cells: Any, layer: str | None, stack: ExitStack) -> Any:
    """Open files and AnnData, for their metadata; return anything else unchanged."""
    if isinstance(cells, str | os.PathLike) or (hasattr(cells, "obs") and hasattr(cells, "var_names")):
        return stack.enter_context(read_cells(cells, layer=layer))
    return cells


def _labels(source: Any, labels: str | Sequence[str | None] | None, n_cells: int) -> list[str | None] | None:
    if labels is None:
        return None
    if isinstance(labels, str):
        if not isinstance(source, Cells):
            raise ValueError(f"labels={labels!r} is a column of obs, but these cells have no obs: pass the labels")
        column = labels if labels in source.obs.names else source.metadata_columns.get(labels)
        if column is None:
            raise ValueError(f"no column {labels!r} in obs; it has {', '.join(source.obs.names) or 'none'}")
        labels = list(source.obs.column(column, 0, n_cells))
    if len(labels) != n_cells:
        raise ValueError(f"{len(labels):,} labels for {n_cells:,} cells")
    return read_labels(labels).texts.tolist()


def _annotate(
    model: Any,
    tokenizer: Any,
    stream: Any,
    texts: EncodedTexts,
    asked: dict[str, Any],
    raw: _Scores,
    device: torch.device,
    progress: bool,
) -> None:
    """Run the model over batches of cells; a hook on the cell encoder collects the embeddings."""
    seen: list[torch.Tensor] = []
    hook = model.cell_model.register_forward_hook(lambda *passed: seen.append(passed[-1].pooler_output))
    bars = progress_bars(shown=progress)
    try:
        with bars:
            task = bars.add_task("annotating", total=len(raw.scores))
            for numbers, batch in stream:
                with_genes = _has_genes(batch, tokenizer)
                bars.advance(task, len(numbers))
                if not with_genes.any():
                    continue
                given = {k: batch[k][with_genes].to(device) for k in ("input_ids", "attention_mask")}
                found = model.annotate(
                    **given,
                    text_input_ids=texts.input_ids,
                    text_attention_mask=texts.attention_mask,
                    text_class_ids=texts.class_ids,
                    text_features=texts.features,
                    **asked,
                )
                rows = numbers[with_genes.numpy()]
                for name in ("scores", "similarity", "matching_probability"):
                    getattr(raw, name)[rows] = found[name].float().cpu().numpy()
                raw.embedding[rows] = seen.pop().float().cpu().numpy()
                seen.clear()
    finally:
        hook.remove()


def _has_genes(batch: dict[str, torch.Tensor], tokenizer: Any) -> torch.Tensor:
    """Return which cells have at least one gene token."""
    special = torch.tensor([i for i in tokenizer.all_special_ids if i is not None])
    return (batch["attention_mask"].bool() & ~torch.isin(batch["input_ids"], special)).any(dim=1)


def _finish(
    raw: _Scores,
    names: np.ndarray,
    candidates: Candidates,
    settings: dict[str, Any],
    report: GeneReport,
    labels: list[str | None] | None,
    ontology: CellOntology | None,
    device: str,
) -> CellAnnotation:
    """Smooth, calibrate, predict."""
    known = np.flatnonzero(~np.isnan(raw.scores[:, 0]))
    if not len(known):
        raise ValueError(f"none of {len(raw.scores):,} cells expresses a gene of the model's vocabulary")
    scores = raw.scores[known]
    floor = (1 - settings["alpha"]) / np.exp(np.nan_to_num(raw.matching_probability[known])).sum(axis=1)
    if settings["smooth"]:
        graph = neighbor_graph(raw.embedding[known], settings["smooth"], device)
        scores, floor = graph @ scores, graph @ floor
    calibration, threshold = None, settings["back_off_below"]
    if labels is not None:
        calibration = _calibrate(scores, [labels[i] for i in known], candidates)
        scores = calibrated(scores, calibration.temperature)
    best = np.full(len(raw.scores), -1, dtype=np.int64)
    best[known] = scores.argmax(axis=1)
    raw.scores[known] = scores
    annotation = CellAnnotation(
        cell_names=names,
        candidates=candidates,
        scores=raw.scores,
        similarity=raw.similarity,
        matching_probability=raw.matching_probability,
        embedding=raw.embedding,
        predicted=[None if i < 0 else candidates.names[i] for i in best],
        predicted_types=[None if i < 0 else candidates.cell_types[i] for i in best],
        best=best,
        settings=settings,
        genes=report,
        calibration=calibration,
    )
    if threshold is not None and ontology is not None:
        mass = excess_mass(scores, floor) if calibration is None else scores
        _back_off(annotation, known, mass, ontology, threshold)
    return annotation


def _back_off(
    annotation: CellAnnotation, known: np.ndarray, mass: np.ndarray, ontology: CellOntology, threshold: float
) -> None:
    found = back_off(mass, annotation.candidates.names, annotation.candidates.cell_types, ontology, threshold)
    annotation.mass = np.full(len(annotation), np.nan, dtype=np.float32)
    annotation.mass[known] = found.mass
    annotation.moved = np.zeros(len(annotation), dtype=bool)
    annotation.moved[known] = found.moved
    for row, name, cell_type in zip(known, found.names, found.cell_types, strict=True):
        annotation.predicted[row], annotation.predicted_types[row] = name, cell_type


def _calibrate(scores: np.ndarray, labels: list[str | None], candidates: Candidates) -> Calibration:
    row = candidates.class_of(labels)
    used = np.array([i for i, label in enumerate(labels) if label in row], dtype=np.int64)
    unused = Counter(label for label in labels if label is not None and label not in row)
    classes = np.array([row[labels[i] or ""] for i in used], dtype=np.int64)
    temperature, before, after = fit_temperature(scores[used], classes)
    return Calibration(temperature, before, after, len(used), dict(unused.most_common()))


def _at_best(values: np.ndarray, best: np.ndarray) -> np.ndarray:
    return np.where(best < 0, np.nan, values[np.arange(len(best)), best]).astype(np.float32)


def _shared_texts(candidates: Candidates) -> list[str]:
    """Return the groups of candidates that share a text."""
    owners: dict[str, list[str]] = {}
    for name, texts in zip(candidates.names, candidates.texts, strict=True):
        for text in texts:
            owners.setdefault(text, []).append(name)
    return [", ".join(names) for names in owners.values() if len(names) > 1]


__all__ = ["CellAnnotation", "annotate_cells"]
