"""Annotation of cells by the classes of a trained head: a classifier, or an adapter on its base model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cellglot.evaluation.annotation.classified import Classes, ClassifiedCells, check_coverage, classified
from cellglot.evaluation.embedding import run_batches
from cellglot.modeling.annotation_calibration import AnnotationCalibration
from cellglot.modeling.any_model import describe_model, load_any_model
from cellglot.modeling.cell_pipeline import genes_of_cells
from cellglot.modeling.loaded_model import without_adapter
from cellglot.modeling.masked_genes import cell_encoder
from cellglot.tokenization.count_matrix import open_counts
from cellglot.tokenization.gene_report import GeneReport


def load_classifier(model: str | Path, adapter: str | Path | None = None, dtype: str | None = None) -> tuple[Any, Any]:
    """Load a classifier with its tokenizer.

    Parameters
    ----------
    model
        Folder or repository of a classifier, of an adapter, or of the base model of `adapter`.
    adapter
        Folder or repository of an adapter.
    dtype
        Of the weights: ``"float32"``, ``"bfloat16"`` or ``"float16"``; by default as stored.

    Raises
    ------
    ValueError
        If the model is not a classifier.
    """
    what = describe_model(adapter or model)
    if adapter is None and what.purpose in ("embeddings", "cells and texts"):
        raise ValueError(
            f"{model} is not a classifier: fine-tune it (cellglot finetune), pass an adapter trained on it "
            "(--adapter), or use a LangCell model with candidates"
        )
    if what.purpose != "classes of cells" and (adapter is None or what.is_adapter):
        kind = what.network_class.__name__
        raise ValueError(f"{adapter or model}: {kind} does not predict classes of cells; pass a classifier")
    loaded = load_any_model(model, adapter, dtype)
    return loaded.network, loaded.tokenizer


def classify_cells(
    model: Any,
    tokenizer: Any,
    cells: Any,
    *,
    calibration: AnnotationCalibration | None = None,
    set_coverage: float | None = None,
    **options: Any,
) -> ClassifiedCells:
    """Classify cells by a model's head.

    Parameters
    ----------
    model, tokenizer
        From `load_classifier`.
    cells
        Cells opened by `read_cells`, or what the tokenizer accepts.
    calibration
        That of the model, from `AnnotationCalibration.load`.
    set_coverage
        Share of prediction sets that should hold the true type, 0.9 by default; for models with a calibration.
    **options
        As for `cellglot.evaluation.embedding.run_batches`.

    Raises
    ------
    ValueError
        If no cell expresses a gene of the vocabulary, or the calibration does not fit.
    """
    plain = without_adapter(model)
    config = plain.config
    names, ids = [config.id2label[i] for i in range(config.num_labels)], config.label_cl_ids or {}
    classes = Classes(config.name_or_path or type(plain).__name__, names, [ids.get(name) for name in names])
    check_coverage(calibration, set_coverage, classes)
    encoder, seen = cell_encoder(plain), []
    hook = encoder.register_forward_hook(lambda *passed: seen.append(passed[-1].pooler_output))

    def compute(batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        logits = model(**batch).logits.float()
        return {"logits": logits, "embedding": seen.pop(), "n_genes": genes_of_cells(batch, tokenizer).sum(dim=1)}

    report = GeneReport()
    counts = open_counts(cells, options.pop("genes", None), options.pop("layer", None))
    try:
        found = run_batches(model, tokenizer, counts, compute, report=report, word="annotating", **options)
    finally:
        hook.remove()
    logits, embedding, n_genes = found["logits"], found["embedding"], found["n_genes"]
    return classified(cells, classes, logits, embedding, n_genes, report, calibration, set_coverage)


__all__ = ["classify_cells", "load_classifier"]
