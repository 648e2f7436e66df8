"""The trainer: `transformers.Trainer` with exact batches over processes, and all parts of the loss in the log."""

import functools
import json
import os
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
)
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.training_args import OptimizerNames

from cellglot.modeling.cell_losses import count_items
from cellglot.outputs import write_json
from cellglot.outputs.environment import EnvironmentFailureError
from cellglot.training.cached_step import cached_step, check_grad_cache
from cellglot.training.data.dataset import EpochSampler
from cellglot.training.data.packing import packed, with_tokens
from cellglot.training.data.streaming import StreamedCells
from cellglot.training.progress import TrainingProgress, no_other_bars
from cellglot.training.runs.checkpoints import (
    STOPPED_FILE,
    checkpoint_name,
    last_checkpoint,
    put_in_place,
    rotate,
    seal,
    unfinished_folder,
)
from cellglot.training.runs.finite import NonFiniteError, check_weights, describe_step, is_finite
from cellglot.training.runs.stopping import EvaluationStopped, StopRequest, leave_signals_to_parent
from cellglot.training.runs.work import WorkMeter
from cellglot.training.sharding import choose_units, under_own_name


LOWER_RATE = (
    "Training diverged: set a lower trainer.learning_rate or a longer warm-up, and start again with --overwrite"
)
# Parts of PyTorch's messages that a file cannot be written.
WRITING = ("PytorchStreamWriter", "inline_container", "write failed", "cannot be opened")


class CellTrainer(Trainer):
    """Trains on cells.

    - Each cell is seen once an epoch, or drawn by the dataset's ``weights``, for any number of processes. Loss and
      gradients of a step are those of the cells of all processes together: the weight of a batch is its share of the
      labels of the step.
    - The parts of the loss (fields of the model's output that end in ``_loss``) are logged, too.
    - Folders contain weights, configuration, tokenizer and code, and no pickled files.
    - A loss, gradient norm or weight that is not finite stops the training; nothing of that step is saved.
    - A checkpoint is complete or does not exist, and records its run.
    - After a signal (`stop`), all processes stop after the same step and write a checkpoint. A run resumed from it has
      the weights of an uninterrupted run.

    Parameters
    ----------
    description
        Label of the progress bar.
    optimizer_name
        ``"adamw"``, or ``"adam"``: weight decay of all parameters is added to their gradients. Both are fused unless
        ``optim`` of the arguments is another than ``adamw_torch_fused``.
    summarize
        (model, batch, output) -> predictions and labels for `compute_metrics`, one row for each cell; by default
        the output's predictions and the labels.
    pack_cells
        Give the model batches without padding (`cellglot.training.data.packing`): the same losses, and less work where
        attention skips what is between cells (FlashAttention, FlexAttention).
    **kwargs
        As for `transformers.Trainer`.

    Attributes
    ----------
    stop : StopRequest
        Signals that ask to stop; none by default.
    stopping : bool
        Whether the training stopped early, or is about to.
    identity : dict
        From `run_identity`, written to each checkpoint.
    work : WorkMeter
        What the run did and took.
    """

    data_collator: Any
    optimizer: Any

    def __init__(
        self,
        *,
        description: str = "training",
        optimizer_name: str = "adamw",
        summarize: Any = None,
        pack_cells: bool = False,
        **kwargs: Any,
    ):
        if optimizer_name not in ("adam", "adamw"):
            raise ValueError(f"optimizer {optimizer_name!r}: it is 'adam' or 'adamw'")
        self.optimizer_name, self.summarize, self.pack_cells = optimizer_name, summarize, pack_cells
        self.eval_data_collator: Any = None
        self._parts: dict[str, torch.Tensor] = {}
        self._parts_since = 0
        self.stop, self.stopping, self.identity = StopRequest(), False, dict[str, Any]()
        self._asked: torch.Tensor | None = None
        self._losses: list[torch.Tensor] = []
        self._batches: list[dict[str, Any]] = []
        self._step_parts: dict[str, torch.Tensor] = {}
        self._unfinished: Path | None = None
        self._resumed_from: str | None = None
        self._evaluation_is_due = False
        super().__init__(**kwargs)
        self.model_accepts_loss_kwargs = True
        self.at_once = getattr(self.args, "grad_cache", None)
        check_grad_cache(self.model, self.at_once, pack_cells)
        choose_units(self.model, self.accelerator)
        for printing in (PrinterCallback, ProgressCallback):
            self.remove_callback(printing)
        self.work = WorkMeter()
        self.add_callback(self.work)
        self.add_callback(TrainingProgress(description))
        self.add_callback(_TurningPoints(self))

    def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> Any:
        """Train as `transformers.Trainer` does, with one progress bar.

        Raises
        ------
        EnvironmentFailureError
            If a loader process was ended, as the system does where memory is full.
        """
        self._resumed_from = resume_from_checkpoint
        if resume_from_checkpoint is not None:
            stopped = Path(resume_from_checkpoint, STOPPED_FILE)
            self._evaluation_is_due = stopped.exists() and json.loads(stopped.read_text())["evaluation_is_due"]
        try:
            with no_other_bars():
                return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            raise EnvironmentFailureError(
                f"a process that loads batches was ended, perhaps because memory was full ({error}): set fewer "
                "trainer.dataloader_num_workers, or run the same command again: it resumes from the last checkpoint"
            ) from error

    def begin_steps(self) -> None:
        """Prepare the first step, or the first step after a checkpoint.

        Raises
        ------
        ValueError
            If the checkpoint has more steps than the run, or weights are not finite.
        """
        self._parts, self._parts_since = {}, self.state.global_step
        if self.state.global_step > self.state.max_steps:
            raise ValueError(
                f"{self._resumed_from} is of step {self.state.global_step:,}, but this run has only "
                f"{self.state.max_steps:,} steps: set more, choose another folder for the result, or start again with "
                "--overwrite"
            )
        where = self._resumed_from or "the model before training"
        check_weights(self.model, str(where), "Use another model or checkpoint")
        saved = self.state.stateful_callbacks.get(EarlyStoppingCallback.__name__)
        for callback in self._patience() if isinstance(saved, dict) and self._resumed_from else ():
            callback.early_stopping_patience_counter = saved["attributes"]["early_stopping_patience_counter"]

    def _patience(self) -> list[Any]:
        return [c for c in self.callback_handler.callbacks if isinstance(c, EarlyStoppingCallback)]

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Run an epoch, unless the checkpoint is already of the last step."""
        over = any(c.early_stopping_patience_counter >= c.early_stopping_patience for c in self._patience())
        if self.state.global_step >= self.state.max_steps or (over and self._resumed_from is not None):
            if self._evaluation_is_due:
                self._evaluate_late()
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        together = self._train_batch_size * self.args.world_size
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        if isinstance(dataset, StreamedCells):
            return dataset.sampler(together, seed)
        return EpochSampler(dataset.lengths, together, seed, weights=getattr(dataset, "weights", None))

    def get_eval_dataloader(self, eval_dataset: Any = None) -> torch.utils.data.DataLoader:
        """Return the loader of held-out cells, with their collator if there is one."""
        training = self.data_collator
        self.data_collator = self.eval_data_collator or training
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = training

    def _get_dataloader(self, *args: Any, **kwargs: Any) -> torch.utils.data.DataLoader:
        loader = super()._get_dataloader(*args, **kwargs)
        base = getattr(loader, "base_dataloader", loader)
        if base.num_workers:
            base.worker_init_fn = functools.partial(_start_worker, base.worker_init_fn)
        return loader

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Return the batches of the next step, and measure the wait for them."""
        with self.work.waiting():
            return super().get_batch_samples(*args, **kwargs)

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor | None:
        """Count the items of a step as models do, over batches and processes, and the processes with a signal."""
        if not batch_samples:
            return None
        counts = [count_items(b.get("labels"), b["attention_mask"].bool().any(dim=1).sum()) for b in batch_samples]
        items = torch.stack(counts).sum()
        asked = items.new_tensor(self.stop.signal is not None)
        items, self._asked = self.accelerator.reduce(torch.stack([items, asked]).to(device), "sum").unbind()
        return items

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Compute the loss, and store its parts for the log."""
        given = self._of_model(inputs)
        loss, outputs = super().compute_loss(model, given, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if model.training:
            self.add_parts({n: v for n, v in outputs.items() if n.endswith("_loss") and v is not None})
        return (loss, outputs) if return_outputs else loss

    def add_parts(self, losses: Mapping[str, torch.Tensor]) -> None:
        """Add parts of the loss to those of the step, for the log."""
        for name, value in losses.items():
            for sums in (self._parts, self._step_parts):
                sums[name] = sums.get(name, 0.0) + value.detach().float()

    # ---------------------------------------------------------------- NaN and infinite numbers

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Compute the gradients of a batch, and store its loss for a check."""
        with self.work.batch(self, inputs):
            if self.at_once is not None and len(inputs["input_ids"]) > self.at_once:
                model.train()
                if callable(getattr(self.optimizer, "train", None)):
                    self.optimizer.train()
                loss = cached_step(self, model, self._prepare_inputs(inputs), num_items_in_batch, self.at_once)
            else:
                loss = super().training_step(model, inputs, num_items_in_batch)
        self._losses.append(loss)
        self._batches.append(inputs)
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Return the gradient norm of a step; refuse a step that is not finite before it changes weights.

        A gradient scaler (float16) itself skips steps with too large gradients, which are usual.
        """
        grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        scaled = getattr(self.accelerator, "scaler", None) is not None
        if not is_finite(*self._losses, None if scaled else grad_norm):
            losses = [float(loss) for loss in self._losses]
            step, rate = self.state.global_step + 1, self._get_learning_rate()
            raise NonFiniteError(
                describe_step(step, losses, grad_norm, self._step_parts, self._batches, self.model, rate)
            )
        self._losses, self._batches, self._step_parts = [], [], {}
        return grad_norm

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate as `transformers.Trainer` does.

        Raises
        ------
        NonFiniteError
            If a loss is NaN or infinite.
        """
        metrics = super().evaluate(*args, **kwargs)
        bad = [name for name, value in metrics.items() if name.endswith("loss") and not is_finite(value)]
        if bad:
            check_weights(self.model, f"after step {self.state.global_step:,}", LOWER_RATE)
            raise NonFiniteError(
                f"{', '.join(bad)} of the held-out cells is {metrics[bad[0]]} after step {self.state.global_step:,}, "
                "but all weights are finite: look for NaN or infinite values in the held-out cells of the corpus"
            )
        return metrics

    # ---------------------------------------------------------------- stopping and checkpoints

    def is_asked_to_stop(self) -> bool:
        """Return whether a signal asks to stop, with the same result on all processes."""
        if self.args.world_size == 1 or self._asked is None:
            return self.stop.signal is not None
        return bool(self._asked)

    def _end_evaluation_if_asked(self) -> None:
        asked = torch.tensor(int(self.stop.signal is not None), device=self.args.device)
        if bool(self.accelerator.reduce(asked, "sum")):
            raise EvaluationStopped

    def stop_after_step(self, control: Any) -> None:
        """Stop after this step with a checkpoint; an evaluation that is due is left to the resumed run."""
        self.stopping = True
        whole_epoch = self.state.epoch == int(self.state.epoch or 0)
        by_epoch = self.args.eval_strategy == "epoch" and self.args.eval_delay <= (self.state.epoch or 0)
        self._evaluation_is_due = control.should_evaluate or (whole_epoch and by_epoch)
        control.should_evaluate = False
        control.should_save = control.should_training_stop = True

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> dict[str, float]:
        before = random.getstate(), np.random.get_state(), torch.get_rng_state()
        try:
            return super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)
        except EvaluationStopped:
            random.setstate(before[0])
            np.random.set_state(before[1])
            torch.set_rng_state(before[2])
            self.stopping = self._evaluation_is_due = True
            self.control.should_save = self.control.should_training_stop = True
            return {}

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        return True if self.stopping else super()._determine_best_metric(metrics, trial)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if self._evaluation_is_due:
            self._evaluate_late()

    def _evaluate_late(self) -> None:
        """Run the evaluation that was due when the run was stopped."""
        metrics = Trainer._evaluate(self, None, None)
        self._evaluation_is_due = False
        is_best = super()._determine_best_metric(metrics, None)
        if is_best and self.state.best_global_step == self.state.global_step:
            self.state.best_model_checkpoint = self._resumed_from

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._unfinished is None else str(self._unfinished)

    def save_stopped(self) -> None:
        """Write a checkpoint after the last step, if there is none yet."""
        if not Path(self.args.output_dir, checkpoint_name(self.state.global_step)).exists():
            self._save_checkpoint(self.model_wrapped, None)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint to a temporary folder, and rename it when it is complete."""
        step, output = self.state.global_step, Path(self._get_output_dir(trial))
        check_weights(self.model, f"after step {step:,}", LOWER_RATE)
        place, part = output / checkpoint_name(step), unfinished_folder(output, step)
        best = output / checkpoint_name(self.state.best_global_step or 0)
        if self.state.best_global_step and (best == place or best.is_dir()):
            self.state.best_model_checkpoint = str(best)
        only_model, self._unfinished = self.args.save_only_model, part
        try:
            if self.args.should_save:
                shutil.rmtree(part, ignore_errors=True)
            self.accelerator.wait_for_everyone()
            self.args.save_only_model = only_model and not self.stopping
            super()._save_checkpoint(model, trial)
            if self.args.should_save:
                self._complete(part / place.name)
            self.accelerator.wait_for_everyone()
            if self.is_world_process_zero():
                put_in_place(part / place.name, place)
                rotate(output, self.args.save_total_limit, self.state.best_model_checkpoint)
            self.accelerator.wait_for_everyone()
            if self.args.local_process_index == 0 and (part / place.name).exists():  # another machine's disk
                put_in_place(part / place.name, place)
        except (OSError, RuntimeError, SafetensorError) as error:
            if isinstance(error, RuntimeError) and not any(w in str(error) for w in WRITING):
                raise
            raise OSError(
                f"{place} could not be written ({error}); the last complete checkpoint is {last_checkpoint(output)}. "
                "Check disk space and permissions, then run the same command again: it resumes from there"
            ) from error
        finally:
            self.args.save_only_model, self._unfinished = only_model, None
            shutil.rmtree(part, ignore_errors=True)

    def _complete(self, folder: Path) -> None:
        """Write the files of callbacks and the identity of the run."""
        for callback in self.callback_handler.callbacks:
            if hasattr(callback, "write_checkpoint"):
                callback.write_checkpoint(folder)
        if self.stopping:
            write_json(folder / STOPPED_FILE, {"evaluation_is_due": bool(self._evaluation_is_due)})
        seal(folder, self.identity)

    # ---------------------------------------------------------------- log, optimizer, evaluation, saving

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, with the mean of each part of the loss since the last log."""
        if "loss" in logs and self._parts:
            steps = max(self.state.global_step - self._parts_since, 1)
            for name in sorted(self._parts):
                logs[name] = float(self.accelerator.reduce(self._parts[name], "sum")) / steps
            self._parts = {}
        if "loss" in logs:
            self._parts_since = self.state.global_step
        super().log(logs, *args, **kwargs)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Create the optimizer."""
        if self.optimizer is None and self.optimizer_name == "adam":
            module = self.model if model is None else model
            self.optimizer = torch.optim.Adam(
                [p for p in module.parameters() if p.requires_grad],
                lr=self.args.learning_rate,
                betas=(self.args.adam_beta1, self.args.adam_beta2),
                eps=self.args.adam_epsilon,
                weight_decay=self.args.weight_decay,
                fused=self.args.optim == OptimizerNames.ADAMW_TORCH_FUSED,
            )
        return super().create_optimizer(model)

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[torch.Tensor | None, Any, Any]:
        """Evaluate a batch; return loss, predictions and labels, no hidden states."""
        self._end_evaluation_if_asked()
        inputs = self._prepare_inputs(inputs)
        if self.pack_cells:
            inputs = with_tokens(inputs)
        with torch.no_grad():
            outputs = model(**self._of_model(inputs))
        if prediction_loss_only:
            return outputs.loss.detach(), None, None
        return outputs.loss.detach(), *self._predicted(model, inputs, outputs)

    def _of_model(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Return the fields of a batch that the model takes, before each forward pass."""
        return packed(inputs) if self.pack_cells else inputs

    def _predicted(self, model: Any, inputs: dict[str, Any], outputs: Any) -> tuple[Any, Any]:
        """Return predictions and labels of a batch for the metrics."""
        if self.summarize is not None:
            return self.summarize(self.accelerator.unwrap_model(model), inputs, outputs)
        predicted = outputs["logits"] if "logits" in outputs else outputs["predicted_expression"]
        return predicted.detach(), inputs["labels"]

    def _save(self, output_dir: str | None = None, state_dict: Mapping[str, Any] | None = None) -> None:
        with no_other_bars(), under_own_name(self.accelerator.unwrap_model(self.model)):
            super()._save(output_dir, state_dict)
        if self.args.should_save:
            arguments = os.path.join(output_dir or self.args.output_dir, TRAINING_ARGS_NAME)
            if os.path.exists(arguments):
                os.remove(arguments)


class _TurningPoints(TrainerCallback):
    """Calls the trainer at the start of its loop and at the end of steps and epochs; the last of the callbacks."""

    def __init__(self, trainer: CellTrainer):
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Prepare the first step."""
        self.trainer.begin_steps()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop after a signal."""
        if self.trainer.is_asked_to_stop():
            self.trainer.stop_after_step(control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Do nothing after a stop: the epoch may be incomplete, and the checkpoint is written."""
        if self.trainer.stopping:
            control.should_evaluate = control.should_save = control.should_log = False


def _start_worker(function: Any, worker: int) -> None:
    """Initialise a loader process."""
    leave_signals_to_parent()
    if function is not None:
        function(worker)


def count_parameters(model: PreTrainedModel) -> int:
    """Count a model's parameters."""
    return sum(p.numel() for p in model.parameters())


__all__ = ["CellTrainer", "count_parameters", "last_checkpoint"]
