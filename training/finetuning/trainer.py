"""The trainer of fine-tuning: frozen parts, labels that only metrics see, adapters as checkpoints."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import nn

from cellglot.training.finetuning.adapters import save_adapter
from cellglot.training.finetuning.encoder_cache import EncoderMemory
from cellglot.training.trainer import CellTrainer


class FineTuner(CellTrainer):
    """Fine-tunes a model.

    Parameters
    ----------
    frozen
        Modules that do not learn: they run as in evaluation, without dropout.
    memory
        What the frozen encoder gave for each cell, where that is the same in every epoch.
    **kwargs
        As for `CellTrainer`.
    """

    def __init__(self, *, frozen: Sequence[nn.Module] = (), memory: EncoderMemory | None = None, **kwargs: Any):
        self.frozen, self.memory = list(frozen), memory
        super().__init__(**kwargs)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Compute the loss with frozen parts in evaluation mode."""
        for module in self.frozen:
            module.eval()
        given = self._of_model(inputs)
        return super().compute_loss(model, given, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch)

    def _of_model(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the model takes of a batch; the cells that it consists of are noted for the memory."""
        if self.memory is not None:
            self.memory.cells = inputs["cells"]
        return {name: value for name, value in inputs.items() if name not in ("truth", "cells")}

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[torch.Tensor | None, Any, Any]:
        """Evaluate a batch; give scores and true labels, those that the model cannot know included."""
        self._end_evaluation_if_asked()
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad():
            outputs = model(**self._of_model(inputs))
        if prediction_loss_only:
            return outputs.loss.detach(), None, None
        return outputs.loss.detach(), outputs.logits.detach(), inputs["truth"]

    def _save(self, output_dir: str | None = None, state_dict: Mapping[str, Any] | None = None) -> None:
        model = self.accelerator.unwrap_model(self.model)
        if not isinstance(model, PeftModel):
            super()._save(output_dir, state_dict)
            return
        folder = output_dir or str(self.args.output_dir)
        os.makedirs(folder, exist_ok=True)
        save_adapter(model, folder, None if state_dict is None else dict(state_dict))


__all__ = ["FineTuner"]
