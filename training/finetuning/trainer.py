"""The trainer of fine-tuning: frozen modules, labels only for metrics, adapters as checkpoints."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

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
        Modules that are not trained: they run in evaluation mode, without dropout.
    memory
        Outputs of the frozen encoder for each cell, if they are the same in every epoch.
    **kwargs
        As for `CellTrainer`.
    """

    def __init__(self, *, frozen: Sequence[nn.Module] = (), memory: EncoderMemory | None = None, **kwargs: Any):
        self.frozen, self.memory = list(frozen), memory
        super().__init__(**kwargs)

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


__all__ = ["FineTuner"]
