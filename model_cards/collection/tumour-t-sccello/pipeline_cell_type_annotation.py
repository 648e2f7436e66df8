"""``pipeline("cell-type-annotation", ...)``: cells to cell types."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoProcessor
from transformers.utils import logging

from .adapter_folders import with_adapter
from .annotation_calibration import AnnotationCalibration, softmax
from .cell_pipeline import CellPipeline, cells_with_genes, genes_of_cells


logger = logging.get_logger(__name__)

# The released text of a class, of which only the name is known.
TEMPLATE = "cell type: {name}. "

Labels = Sequence[str] | Mapping[str, str | Sequence[str]]


class CellTypeAnnotationPipeline(CellPipeline):
    """Cells to cell types: by a classifier's head, by an adapter on a base model, or by LangCell and texts.

    A classifier whose folder contains a calibration (``annotation_calibration.safetensors``) also returns
    ``confidence``, ``prediction_set``, ``broader_type``, ``novelty``, ``assigned`` and ``reason`` of each cell, see
    `AnnotationCalibration.columns`; a cell that is unlike all of its types has the label ``"unassigned"``.
    Scores are probabilities at the calibration's temperature.

    Parameters
    ----------
    model
        A classifier; a base model with `adapter`; or a LangCellModel with `candidate_labels`.
    tokenizer
        As for `CellPipeline`, which also lists the forms of cells.
    adapter
        Folder or repository of an adapter that was trained on `model`.
    **kwargs
        As for `CellPipeline`. Options of a call, or their defaults:
        ``top_k``: a list of this number of best classes for each cell; by default only the best, not in a list.
        With a calibration ``set_coverage``: share of prediction sets to contain the true type, 0.9 by default.
        With LangCell ``candidate_labels``: names of cell types, or class -> text or texts (averaged);
        ``template``: the text of a name, ``"cell type: {name}. "`` by default; ``alpha`` (weight of similarity, 0.1
        as released) and ``shortlist`` as for `LangCellModel.annotate`.

    Examples
    --------
    >>> annotate = pipeline("cell-type-annotation", model=folder, trust_remote_code=True)
    >>> annotate({"CD79A": 12, "MS4A1": 9, "ENSG00000167286": 1})
    {'label': 'B cell', 'score': 0.98, 'cell_type_ontology_term_id': 'CL:0000236'}
    """

    processor: Any
    options_of_model: tuple[str, ...] = ("candidate_labels", "template", "alpha", "shortlist")
    options_of_result: tuple[str, ...] = ("top_k", "set_coverage")
    of_a_call = (*CellPipeline.of_a_call, "classes")

    def __init__(self, model: Any, tokenizer: Any = None, *, adapter: str | os.PathLike | None = None, **kwargs: Any):
        if adapter is not None:
            if tokenizer is None:
                tokenizer = getattr(kwargs.get("processor"), "tokenizer", None) or self._tokenizer_of(model)
            model = with_adapter(model, adapter)
        self.by_texts = hasattr(model, "annotate")
        self.classes: list[str] = []
        _check(model)
        super().__init__(model, tokenizer, **kwargs)
        self.calibration = None if self.by_texts else _calibration_of(model, adapter)

    def prepare(
        self, candidate_labels: Labels | None = None, template: str = TEMPLATE, **of_model: Any
    ) -> dict[str, Any]:
        """Find the classes: those of the head, or the given ones, whose texts are encoded once for all cells.

        Parameters
        ----------
        candidate_labels, template, **of_model
            As the class says.

        Raises
        ------
        ValueError
            If there are candidates for a classifier, or none for a model of texts, or one is empty.
        """
        config = self.model.config
        if self.by_texts:
            texts = texts_of(candidate_labels, template)
            self.classes = list(texts)
            return of_model | self._encoded(texts)
        if candidate_labels is not None or of_model:
            names = [*list(config.id2label.values())[:5], *(["..."] if config.num_labels > 5 else [])]
            raise ValueError(
                f"{config.name_or_path or type(self.model).__name__} is a classifier of {config.num_labels:,} fixed "
                f"classes ({', '.join(names)}): candidate_labels, template, alpha and shortlist are for LangCell "
                "models with texts"
            )
        self.classes = [config.id2label[i] for i in range(config.num_labels)]
        return {}

    def _encoded(self, texts: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        processor = self._processor()
        flat = [text for of_class in texts.values() for text in of_class]
        longest = min(
            self.model.config.text_config.max_position_embeddings, processor.text_tokenizer.model_max_length, 512
        )
        tokens = dict(processor(text=flat, return_tensors="pt", text_max_length=longest))
        tokens = {name: tensor.to(self.device) for name, tensor in tokens.items()}
        numbers = np.repeat(np.arange(len(texts)), [len(of_class) for of_class in texts.values()])
        with torch.inference_mode():
            features = self.model.get_text_features(**tokens)
        return tokens | {"text_class_ids": torch.from_numpy(numbers).to(self.device), "text_features": features}

    def _processor(self) -> Any:
        processor = self.processor or self.found_processor
        if processor is None:
            name = self.model.config.name_or_path
            if not name:
                raise ValueError("the model was not loaded from a folder: pass its processor, processor=...")
            processor = AutoProcessor.from_pretrained(name, **self.loading_options(self.model))
            self.found_processor = processor
        if not hasattr(processor, "text_tokenizer"):
            raise ValueError(
                f"{self.model.config.name_or_path} has no text tokenizer: save a LangCellProcessor in this folder"
            )
        return processor

    def inputs_of_file(self, counts: Any, gene_column: str | None) -> dict[str, torch.Tensor]:
        """Return the genes that were measured, for a model that imputes the others."""
        if not (getattr(self.model.config, "gene_sums", False) and self.model.config.imputed_genes):
            return {}
        return {"measured_genes": torch.from_numpy(self.tokenizer.measured_genes(counts, gene_column=gene_column))}

    def _forward(self, batch: dict[str, torch.Tensor], **of_model: Any) -> dict[str, torch.Tensor]:
        if self.by_texts:
            cells = {name: batch[name] for name in ("input_ids", "attention_mask")}
            scores = self.model.annotate(**cells, **of_model).scores
        elif self.calibration is None:
            scores = self.model(**batch).logits.float().softmax(dim=-1)
        else:
            scores = self._observed(batch, self.calibration)
        known = cells_with_genes(batch, self.tokenizer)
        return {"values": scores.masked_fill(~known[:, None], float("nan"))}

    def _observed(self, batch: dict[str, torch.Tensor], calibration: AnnotationCalibration) -> torch.Tensor:
        """Return the calibration's input, shape (cells, classes + 2): logits, distance, number of genes."""
        encoder, pooled = getattr(self.model, "cell_model", self.model.base_model), []
        hook = encoder.register_forward_hook(lambda *passed: pooled.append(passed[-1].pooler_output))
        try:
            logits = self.model(**batch).logits.float().cpu()
        finally:
            hook.remove()
        distances = calibration.reference.distances(pooled[0].float().cpu().numpy())
        n_genes = genes_of_cells(batch, self.tokenizer).sum(dim=1).cpu()
        found = torch.cat([logits, torch.from_numpy(distances)[:, None], n_genes[:, None].float()], dim=1)
        return found.to(self.device)

    def postprocess(
        self, values: np.ndarray, top_k: int | None = None, set_coverage: float | None = None
    ) -> list[Any]:
        """Name the best classes of each cell.

        Parameters
        ----------
        values
            Scores, shape (cells, classes); NaN for cells that express no known gene, whose label is None. With a
            calibration logits, distance to the training cells and number of genes, shape (cells, classes + 2).
        top_k
            Return a list of this number of best classes for each cell; by default only the best, not in a list.
        set_coverage
            Share of prediction sets that should contain the true type; for models with a calibration, 0.9 by default.

        Returns
        -------
        list
            For each cell a dictionary or a list of them: ``label``, ``score`` and, if the model knows it,
            ``cell_type_ontology_term_id``.

        Raises
        ------
        ValueError
            If `top_k` is below 1, or `set_coverage` is given and the model has no calibration, or not of this share.
        """
        if set_coverage is not None and self.calibration is None:
            raise ValueError(
                f"{self.model.config.name_or_path or type(self.model).__name__} has no calibration: leave out "
                "set_coverage"
            )
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k={top_k}: it has to be at least 1")
        ids = getattr(self.model.config, "label_cl_ids", None)
        said = None
        if self.calibration is not None:
            if top_k is None:
                said = _said(self.calibration, values, 0.9 if set_coverage is None else set_coverage)
            values = softmax(values[:, :-2] / np.float32(self.calibration.temperature))
        best = np.argsort(-values, axis=1, kind="stable")[:, : top_k or 1]
        results = [[self._named(row[i], int(i), ids) for i in order] for row, order in zip(values, best, strict=True)]
        if said is not None:
            return [found[0] | of_cell for found, of_cell in zip(results, said, strict=True)]
        return [found[0] for found in results] if top_k is None else results

    def _named(self, score: float, number: int, ids: Mapping[str, str] | None) -> dict[str, Any]:
        label = None if np.isnan(score) else self.classes[number]
        found = {"label": label, "score": None if label is None else float(score)}
        return found if ids is None else found | {"cell_type_ontology_term_id": ids.get(label or "")}

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save the model, its tokenizer or processor, and its calibration if it has one."""
        super().save_pretrained(save_directory, **kwargs)
        if self.calibration is not None:
            self.calibration.save(save_directory)


def _said(calibration: AnnotationCalibration, values: np.ndarray, set_coverage: float) -> list[dict[str, Any]]:
    """Return the calibration's results for each cell."""
    decisions = calibration.decide(values[:, :-2], values[:, -2], values[:, -1], set_coverage)
    columns = calibration.columns(decisions)
    columns["label"] = columns.pop("cell_type")
    rows = (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))
    return [{name: None if value != value else value for name, value in row.items()} for row in rows]


def _calibration_of(model: Any, adapter: str | os.PathLike | None) -> AnnotationCalibration | None:
    """Load the calibration from the folder or repository of a classifier's head."""
    config = model.config
    name = config.name_or_path if adapter is None else os.fspath(adapter)
    if not name:
        return None
    revision = getattr(config, "_commit_hash", None) if adapter is None else None
    found = AnnotationCalibration.load(name, revision=revision)
    if found is not None:
        found.check(name, [config.id2label[i] for i in range(config.num_labels)])
    return found


def _check(model: Any) -> None:
    config, kind = model.config, type(model).__name__
    name = config.name_or_path or kind
    if config.problem_type == "regression":
        raise ValueError(f"{name} predicts a value of cells, not classes")
    if not hasattr(model, "annotate") and not kind.endswith("ForSequenceClassification"):
        raise ValueError(
            f"{name} has no classes: {kind} embeds cells. Fine-tune it (cellglot finetune), pass the adapter that was "
            "trained on it, adapter=..., or take a LangCell model with candidate_labels=..."
        )
    if getattr(config, "stage", None) == 1 and hasattr(model, "annotate"):
        logger.warning("The model was pretrained in stage 1, on cells only: its results for texts are random.")


def texts_of(candidates: Labels | None, template: str = TEMPLATE) -> dict[str, list[str]]:
    """Return the texts of each class.

    Parameters
    ----------
    candidates
        Names, or class -> text or texts.
    template
        Text of a name, with the field ``{name}``.
    """
    if isinstance(candidates, str):
        candidates = [candidates]
    if not candidates:
        raise ValueError("no candidates: name the cell types, candidate_labels=[...], or give class -> text or texts")
    if "{name}" not in template:
        raise ValueError(f"template={template!r} has no field {{name}}")
    if not isinstance(candidates, Mapping):
        candidates = {name: template.replace("{name}", str(name).strip()) for name in candidates}
    texts = {name: [given] if isinstance(given, str) else list(given) for name, given in candidates.items()}
    for name, of_class in texts.items():
        if not str(name).strip() or not of_class or not all(isinstance(t, str) and t.strip() for t in of_class):
            raise ValueError(f"candidate {name!r} has an empty name or text: {of_class!r}. Every class needs one")
    return texts


__all__ = ["TEMPLATE", "CellTypeAnnotationPipeline", "texts_of"]
