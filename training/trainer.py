"""The trainer: `transformers.Trainer` with exact batches over processes, and every part of the loss in the log."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PrinterCallback, ProgressCallback, Trainer
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from cellglot.modeling.cell_losses import count_items
from cellglot.training.data import EpochSampler
from cellglot.training.progress import TrainingProgress, no_other_bars


class CellTrainer(Trainer):
    """Trains on cells.

    - Every cell is seen once an epoch whatever the number of processes, and a step's loss and gradients are those of
      all processes' cells together: each batch counts by its share of the labels of the whole step.
    - The parts of the loss (fields of the model's output that end in ``_loss``) are logged beside it.
    - Folders hold weights, configuration, tokenizer and code, and nothing pickled beside them.

    Parameters
    ----------
    description
        What is trained, for the progress bar.
    optimizer_name
        ``"adamw"``, or ``"adam"``: weight decay of all parameters added to their gradients.
    summarize
        (model, batch, output) -> what `compute_metrics` gets as predictions and labels, one row a cell; by default
        the output's predictions and the labels.
    **kwargs
        As for `transformers.Trainer`.
    """

    data_collator: Any
    optimizer: Any

    def __init__(
        self, *, description: str = "training", optimizer_name: str = "adamw", summarize: Any = None, **kwargs: Any
    ):
        if optimizer_name not in ("adam", "adamw"):
            raise ValueError(f"optimizer {optimizer_name!r}: it is 'adam' or 'adamw'")
        self.optimizer_name, self.summarize = optimizer_name, summarize
        self.eval_data_collator: Any = None
        self._parts: dict[str, torch.Tensor] = {}
        self._parts_since = 0
        super().__init__(**kwargs)
        self.model_accepts_loss_kwargs = True
        for printing in (PrinterCallback, ProgressCallback):
            self.remove_callback(printing)
        self.add_callback(TrainingProgress(description))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as `transformers.Trainer` does, with one progress bar."""
        with no_other_bars():
            return super().train(*args, **kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        together = self._train_batch_size * self.args.world_size
        return EpochSampler(dataset.lengths, together, self._data_seed())

    def _data_seed(self) -> int:
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    def get_eval_dataloader(self, eval_dataset: Any = None) -> torch.utils.data.DataLoader:
        """Give the loader of held-out cells, with its own collator where there is one."""
        training = self.data_collator
        self.data_collator = self.eval_data_collator or training
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = training

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor | None:
        """Count the items of a step as models do, over its accumulated batches and all processes."""
        if not batch_samples:
            return None
        items = sum(_count(batch) for batch in batch_samples)
        assert isinstance(items, torch.Tensor)
        return self.accelerator.reduce(items.to(device), "sum")

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Compute the loss, and remember its parts for the log."""
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if model.training:
            for name, value in outputs.items():
                if name.endswith("_loss") and value is not None:
                    self._parts[name] = self._parts.get(name, 0.0) + value.detach().float()
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, with the mean of every part of the loss since the last time."""
        if "loss" in logs and self._parts:
            steps = max(self.state.global_step - self._parts_since, 1)
            for name in sorted(self._parts):
                logs[name] = float(self.accelerator.reduce(self._parts[name], "sum")) / steps
            self._parts = {}
        if "loss" in logs:
            self._parts_since = self.state.global_step
        super().log(logs, *args, **kwargs)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Set up the optimizer."""
        if self.optimizer is None and self.optimizer_name == "adam":
            module = self.model if model is None else model
            self.optimizer = torch.optim.Adam(
                [p for p in module.parameters() if p.requires_grad],
                lr=self.args.learning_rate,
                betas=(self.args.adam_beta1, self.args.adam_beta2),
                eps=self.args.adam_epsilon,
                weight_decay=self.args.weight_decay,
            )
        return super().create_optimizer(model)

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[torch.Tensor | None, Any, Any]:
        """Evaluate a batch; give predictions and labels, no hidden states."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad():
            outputs = model(**inputs)
        if prediction_loss_only:
            return outputs.loss.detach(), None, None
        if self.summarize is not None:
            return outputs.loss.detach(), *self.summarize(self.accelerator.unwrap_model(model), inputs, outputs)
        predicted = outputs["logits"] if "logits" in outputs else outputs["predicted_expression"]
        return outputs.loss.detach(), predicted.detach(), inputs["labels"]

    def _save(self, output_dir: str | None = None, state_dict: Mapping[str, Any] | None = None) -> None:
        with no_other_bars():
            super()._save(output_dir, state_dict)
        if self.args.should_save:
            arguments = os.path.join(output_dir or self.args.output_dir, TRAINING_ARGS_NAME)
            if os.path.exists(arguments):
                os.remove(arguments)


def _count(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Count the labels of a batch that are not -100, or its cells where there are no labels."""
    return count_items(batch.get("labels"), batch["attention_mask"].bool().any(dim=1).sum())


def last_checkpoint(folder: str | os.PathLike) -> str | None:
    """Give the last whole checkpoint in a folder, None where there is none.

    The trainer writes its state last: a checkpoint without it, or with half of it, was cut short.
    """
    found = {}
    for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        try:
            found[json.loads((path / TRAINER_STATE_NAME).read_text(encoding="utf-8"))["global_step"]] = path
        except (OSError, ValueError, KeyError):
            continue
    return str(found[max(found)]) if found else None


def count_parameters(model: PreTrainedModel) -> int:
    """Count a model's parameters."""
    return sum(p.numel() for p in model.parameters())


__all__ = ["CellTrainer", "count_parameters", "last_checkpoint"]
