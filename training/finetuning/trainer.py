"""The trainer of fine-tuning: batches by length, frozen modules, labels only for metrics, adapters as checkpoints."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from cellglot.modeling.cell_losses import count_items
from cellglot.training.finetuning.adapters import save_adapter
from cellglot.training.finetuning.encoder_cache import EncoderMemory
from cellglot.training.trainer import CellTrainer


OF_TOKENS = ("input_ids", "attention_mask", "expression_values", "masked_genes")  # shape (cells, tokens)
PART = 16  # cells of a batch that are computed together
PADDING = 0.4  # share of padding from which a batch is worth dividing


def parts_by_length(inputs: Mapping[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """Divide a batch into parts of cells of similar length, without the padding that they do not need.

    Cells of few genes beside cells of many are mostly padding: parts of 16 take half of the time or less. Batches with
    little padding are one part.

    Parameters
    ----------
    inputs
        Fields of a batch with ``attention_mask``, shape (cells, tokens); the first axis of all is that of the cells.
    """
    mask = inputs["attention_mask"]
    cells, width = mask.shape
    lengths = mask.sum(dim=1)
    if cells <= PART or int(lengths.sum()) >= (1 - PADDING) * cells * width:
        return [dict(inputs)]
    parts = []
    for rows in lengths.argsort().split(PART):
        needed = max(int(lengths[rows].max()), 1)
        parts.append(
            {name: values[rows][:, :needed] if name in OF_TOKENS else values[rows] for name, values in inputs.items()}
        )
    return parts


class FineTuner(CellTrainer):
    """Fine-tunes a model.

    Each step is computed in parts of cells of similar length (`parts_by_length`): their losses add up to that of the
    batch.

    Parameters
    ----------
    frozen
        Modules that are not trained: they run in evaluation mode, without dropout.
    memory
        Outputs of the frozen encoder for each cell, if they are the same in every epoch.
    **kwargs
        As for `CellTrainer`.
    """

    def __init__(self, *, frozen: Sequence[nn.Module] = (), memory: EncoderMemory | None = None, **kwargs: Any):
        self.frozen, self.memory = list(frozen), memory
        super().__init__(**kwargs)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Compute the loss of a batch as the sum of those of its parts."""
        whole = return_outputs or not model.training or self.args.world_size > 1 or self._labels_have_tokens(inputs)
        parts = [inputs] if whole else parts_by_length(inputs)
        if len(parts) == 1:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if num_items_in_batch is None:
            num_items_in_batch = count_items(inputs.get("labels"), inputs["attention_mask"].any(dim=1).sum())
        losses = [super(FineTuner, self).compute_loss(model, p, False, num_items_in_batch) for p in parts]
        return torch.stack(losses).sum()

    @staticmethod
    def _labels_have_tokens(inputs: Mapping[str, Any]) -> bool:
        """Whether labels are those of genes, shape (cells, tokens)."""
        labels = inputs.get("labels")
        return labels is None or (labels.ndim > 1 and labels.dtype != torch.bool)

    def _of_model(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Return the fields that the model takes; set frozen modules to evaluation, and tell the memory the cells."""
        for module in self.frozen:
            module.eval()
        if self.memory is not None:
            self.memory.cells = inputs["cells"]
        return {name: value for name, value in inputs.items() if name not in ("truth", "cells")}

    def _predicted(self, model: Any, inputs: dict[str, Any], outputs: Any) -> tuple[Any, Any]:
        """Return scores and true labels, also of classes that the model does not have."""
        return outputs.logits.detach(), inputs["truth"]

    def _save(self, output_dir: str | None = None, state_dict: Mapping[str, Any] | None = None) -> None:
        model = self.accelerator.unwrap_model(self.model)
        if not isinstance(model, PeftModel):
            super()._save(output_dir, state_dict)
            return
        folder = output_dir or str(self.args.output_dir)
        os.makedirs(folder, exist_ok=True)
        save_adapter(model, folder, None if state_dict is None else dict(state_dict))


__all__ = ["FineTuner", "parts_by_length"]
