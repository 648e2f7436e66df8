"""The networks: configurations, models, converters of released checkpoints."""

import importlib
from typing import Any


_PUBLIC = {
    "AutoModelForCells": "cell_pipeline",
    "CellEmbeddingPipeline": "pipeline_cell_embedding",
    "CellTextMatchingPipeline": "pipeline_cell_text_matching",
    "CellTypeAnnotationPipeline": "pipeline_cell_type_annotation",
    "FillGeneExpressionPipeline": "pipeline_fill_gene_expression",
    "ExceiverConfig": "configuration_exceiver",
    "ExceiverForMaskedExpression": "modeling_exceiver",
    "ExceiverForMaskedExpressionOutput": "modeling_exceiver",
    "ExceiverForSequenceClassification": "modeling_exceiver",
    "ExceiverForSequenceClassificationOutput": "modeling_exceiver",
    "ExceiverModel": "modeling_exceiver",
    "ExceiverModelOutput": "modeling_exceiver",
    "ExceiverPreTrainedModel": "modeling_exceiver",
    "LangCellAnnotation": "modeling_langcell",
    "LangCellCellConfig": "configuration_langcell",
    "LangCellCellModel": "modeling_langcell",
    "LangCellConfig": "configuration_langcell",
    "LangCellForPreTraining": "modeling_langcell",
    "LangCellForPreTrainingOutput": "modeling_langcell",
    "LangCellForSequenceClassification": "modeling_langcell",
    "LangCellForTokenClassification": "modeling_langcell",
    "LangCellModel": "modeling_langcell",
    "LangCellModelOutput": "modeling_langcell",
    "LangCellPreTrainedModel": "modeling_langcell_text",
    "LangCellTextConfig": "configuration_langcell",
    "LangCellTextModel": "modeling_langcell_text",
    "LangCellTextModelOutput": "modeling_langcell_text",
    "ScCelloConfig": "configuration_sccello",
    "ScCelloForMaskedLM": "modeling_sccello",
    "ScCelloForPreTraining": "modeling_sccello",
    "ScCelloForPreTrainingOutput": "modeling_sccello",
    "ScCelloForSequenceClassification": "modeling_sccello",
    "ScCelloForTokenClassification": "modeling_sccello",
    "ScCelloModel": "modeling_sccello",
    "ScCelloPreTrainedModel": "modeling_sccello",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return __all__
