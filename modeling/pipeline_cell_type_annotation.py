"""``pipeline("cell-type-annotation", ...)``: cells to cell types."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoProcessor
from transformers.utils import logging

from .adapter_folders import with_adapter
from .cell_pipeline import CellPipeline, cells_with_genes


logger = logging.get_logger(__name__)

# The released text of a class, of which only the name is known.
TEMPLATE = "cell type: {name}. "

Labels = Sequence[str] | Mapping[str, str | Sequence[str]]


class CellTypeAnnotationPipeline(CellPipeline):
    """Cells to cell types: by a classifier's head, by an adapter on a base model, or by LangCell and texts.

    Parameters
    ----------
    model
        A classifier; a base model with `adapter`; or a LangCellModel with `candidate_labels`.
    tokenizer
        As for `CellPipeline`, which says what cells can be.
    adapter
        Folder or repository of an adapter that was trained on `model`.
    **kwargs
        As for `CellPipeline`. Options of a call, or their defaults:
        ``top_k``: the best so many classes of each cell, as a list; by default the best alone.
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
    options_of_model = ("candidate_labels", "template", "alpha", "shortlist")
    options_of_result = ("top_k",)
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

    def prepare(
        self, candidate_labels: Labels | None = None, template: str = TEMPLATE, **of_model: Any
    ) -> dict[str, Any]:
        """Find the classes: those of the head; or those given, whose texts are encoded once for all cells.

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
                f"{config.name_or_path or type(self.model).__name__} is a classifier of its own "
                f"{config.num_labels:,} classes ({', '.join(names)}): candidate_labels, template, alpha and shortlist "
                "are for LangCell models with texts"
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
                raise ValueError("the model comes from no folder: pass its processor, processor=...")
            processor = AutoProcessor.from_pretrained(name, **self.loading_options(self.model))
            self.found_processor = processor
        if not hasattr(processor, "text_tokenizer"):
            raise ValueError(
                f"{self.model.config.name_or_path} holds no text tokenizer: save a LangCellProcessor beside the model"
            )
        return processor

    def _forward(self, batch: dict[str, torch.Tensor], **of_model: Any) -> dict[str, torch.Tensor]:
        if self.by_texts:
            cells = {name: batch[name] for name in ("input_ids", "attention_mask")}
            scores = self.model.annotate(**cells, **of_model).scores
        else:
            scores = self.model(**batch).logits.float().softmax(dim=-1)
        known = cells_with_genes(batch, self.tokenizer)
        return {"values": scores.masked_fill(~known[:, None], float("nan"))}

    def postprocess(self, values: np.ndarray, top_k: int | None = None) -> list[Any]:
        """Name the best classes of each cell.

        Parameters
        ----------
        values
            Scores, shape (cells, classes); NaN for cells that express no known gene, whose label is None.
        top_k
            Give a list of the best so many for each cell; by default the best alone.

        Returns
        -------
        list
            A dictionary for each cell, or a list of such: ``label``, ``score`` and, where the model knows them,
            ``cell_type_ontology_term_id``.

        Raises
        ------
        ValueError
            If `top_k` is below 1.
        """
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k={top_k}: at least one class of each cell has to be asked for")
        ids = getattr(self.model.config, "label_cl_ids", None)
        best = np.argsort(-values, axis=1, kind="stable")[:, : top_k or 1]
        results = [[self._named(row[i], int(i), ids) for i in order] for row, order in zip(values, best, strict=True)]
        return [found[0] for found in results] if top_k is None else results

    def _named(self, score: float, number: int, ids: Mapping[str, str] | None) -> dict[str, Any]:
        label = None if np.isnan(score) else self.classes[number]
        found = {"label": label, "score": None if label is None else float(score)}
        return found if ids is None else found | {"cell_type_ontology_term_id": ids.get(label or "")}


def _check(model: Any) -> None:
    config, kind = model.config, type(model).__name__
    name = config.name_or_path or kind
    if config.problem_type == "regression":
        raise ValueError(f"{name} predicts a value of cells, no classes")
    if not hasattr(model, "annotate") and not kind.endswith("ForSequenceClassification"):
        raise ValueError(
            f"{name} has no classes: {kind} embeds cells. Fine-tune it (cellglot finetune), pass the adapter that was "
            "trained on it, adapter=..., or take a LangCell model with candidate_labels=..."
        )
    if getattr(config, "stage", None) == 1 and hasattr(model, "annotate"):
        logger.warning("The model is of pretraining's stage 1, cells alone: what it says of texts is noise.")


def texts_of(candidates: Labels | None, template: str = TEMPLATE) -> dict[str, list[str]]:
    """Return the texts of each class.

    Parameters
    ----------
    candidates
        Names, or class -> text or texts.
    template
        Text of a name, of ``{name}``.
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
