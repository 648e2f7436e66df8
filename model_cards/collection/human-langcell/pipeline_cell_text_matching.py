"""``pipeline("cell-text-matching", ...)``: how well texts describe cells."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .cell_pipeline import cells_with_genes
from .pipeline_cell_type_annotation import CellTypeAnnotationPipeline


class CellTextMatchingPipeline(CellTypeAnnotationPipeline):
    """Probability that a text describes a cell, for each cell and each text, by a LangCell model.

    Parameters
    ----------
    model, tokenizer, **kwargs
        As for `CellPipeline`, which also lists the forms of cells. ``texts``, an option of a call or its default: the
        texts, as they are.

    Examples
    --------
    >>> match = pipeline("cell-text-matching", model=folder, trust_remote_code=True)
    >>> match(adata, texts=["cell type: B cell.", "It kills infected cells."])[0]
    [{'text': 'cell type: B cell.', 'score': 0.91, 'similarity': 0.32}, ...]
    """

    options_of_model: tuple[str, ...] = ("texts",)
    options_of_result: tuple[str, ...] = ()

    def __init__(self, model: Any, tokenizer: Any = None, **kwargs: Any):
        if not hasattr(model, "match"):
            name = model.config.name_or_path or type(model).__name__
            raise ValueError(f"{name}: {type(model).__name__} does not read texts: take a LangCell model")
        super().__init__(model, tokenizer, **kwargs)

    def prepare(  # type: ignore[override]
        self, texts: str | Sequence[str] | None = None, **of_model: Any
    ) -> dict[str, Any]:
        """Encode the texts, once for all cells.

        Parameters
        ----------
        texts
            A text, or several.
        **of_model
            Further options of the model.

        Raises
        ------
        ValueError
            If there are no texts, or one is empty.
        """
        given = [texts] if isinstance(texts, str) else list(texts or [])
        if not given:
            raise ValueError('no texts: pass them, texts=["cell type: B cell.", ...]')
        for number, text in enumerate(given):
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"text {number} of {len(given):,} is empty: {text!r}")
        self.classes = given
        encoded = self._encoded({str(number): [text] for number, text in enumerate(given)})
        return {name: encoded[name] for name in ("text_input_ids", "text_attention_mask", "text_features")}

    def _forward(self, batch: dict[str, torch.Tensor], **of_model: Any) -> dict[str, torch.Tensor]:
        features, pooled = of_model.pop("text_features"), []
        cells = {name: batch[name] for name in ("input_ids", "attention_mask")}
        hook = self.model.cell_model.register_forward_hook(lambda *passed: pooled.append(passed[-1].pooler_output))
        try:
            matched = self.model.match(**cells, **of_model)
        finally:
            hook.remove()
        values = torch.stack([matched.float(), pooled[0].float() @ features.float().T], dim=-1)
        known = cells_with_genes(batch, self.tokenizer)
        return {"values": values.masked_fill(~known[:, None, None], float("nan"))}

    def postprocess(self, values: np.ndarray) -> list[Any]:  # type: ignore[override]
        """Name the texts.

        Parameters
        ----------
        values
            Probabilities and cosines, shape (cells, texts, 2); NaN for cells that express no known gene.

        Returns
        -------
        list
            For each cell a list with a dictionary for each text, in their order: ``text``; ``score``, the probability
            of a match; ``similarity``, the cosine of both embeddings. Both are None for cells without a known gene.
        """
        return [
            [
                {"text": text, "score": _number(score), "similarity": _number(cosine)}
                for text, (score, cosine) in zip(self.classes, row, strict=True)
            ]
            for row in values
        ]


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


__all__ = ["CellTextMatchingPipeline"]
