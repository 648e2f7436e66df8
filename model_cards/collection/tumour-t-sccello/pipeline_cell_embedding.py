"""``pipeline("cell-embedding", ...)``: cells to embeddings."""

from typing import Any

import numpy as np
import torch

from .cell_pipeline import CellPipeline, cells_with_genes


class CellEmbeddingPipeline(CellPipeline):
    """Cells to embeddings, by a model with or without a head: the encoder's ``pooler_output``.

    Rows of cells that express no gene of the model are NaN.

    Parameters
    ----------
    model, tokenizer, **kwargs
        As for `CellPipeline`, which also lists the forms of cells.

    Examples
    --------
    >>> embed = pipeline("cell-embedding", model=folder, trust_remote_code=True)
    >>> embed(adata).shape
    (700, 256)
    """

    def _forward(self, batch: dict[str, torch.Tensor], **of_model: Any) -> dict[str, torch.Tensor]:
        encoder = getattr(self.model, "cell_model", self.model.base_model)
        values = encoder(**batch).pooler_output.float()
        known = cells_with_genes(batch, self.tokenizer)
        return {"values": values.masked_fill(~known[:, None], float("nan"))}

    def postprocess(self, values: np.ndarray) -> np.ndarray:
        """Return the embeddings unchanged.

        Parameters
        ----------
        values
            Shape (cells, size), float32; NaN for cells that express no known gene.
        """
        return values


__all__ = ["CellEmbeddingPipeline"]
