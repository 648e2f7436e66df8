"""A training step of a large batch in the memory of a small one: see `cellglot.modeling.cached_batches`."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from accelerate.utils import DistributedType

from cellglot.modeling.cached_batches import BatchPart


NEEDED = "between_cells"


def check_grad_cache(model: Any, at_once: int | None, pack_cells: bool = False) -> None:
    """Refuse a model without objectives between cells, and packed cells."""
    if at_once is not None and pack_cells:
        raise ValueError("trainer.grad_cache computes padded batches: set data.pack_cells=false")
    if at_once is not None and not hasattr(model, NEEDED):
        raise ValueError(
            f"trainer.grad_cache {at_once}: {type(model).__name__} does not compare the cells of a batch with each "
            "other; trainer.gradient_accumulation_steps gives the same gradients"
        )


def cached_step(trainer: Any, model: Any, inputs: dict[str, Any], num_items_in_batch: Any, at_once: int) -> Any:
    """Compute the gradients of a batch, `at_once` cells at a time, and return its loss as `training_step` does.

    The representations of all cells are computed first, without gradients, then the objectives between cells, then the
    gradients of each part of the batch. Each part is encoded twice with the same dropout.

    Parameters
    ----------
    trainer : CellTrainer
        The trainer, which computes the losses of a part and logs them.
    inputs
        Fields of the batch; the first axis of all is that of the cells.

    Raises
    ------
    ValueError
        With DeepSpeed, which allows one backward pass a batch.
    """
    accelerator = trainer.accelerator
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        raise ValueError("trainer.grad_cache does not work with DeepSpeed: use FSDP2 or DDP")
    number = len(inputs["input_ids"])
    firsts = range(0, number, at_once)
    parts = [{name: values[first : first + at_once] for name, values in inputs.items()} for first in firsts]
    seeds = torch.randint(2**62, (len(parts),)).tolist()
    device = inputs["input_ids"].device

    found: list[dict[str, torch.Tensor]] = []
    for part, seed in zip(parts, seeds, strict=True):
        with torch.no_grad(), same_noise(seed, device), trainer.compute_loss_context_manager():
            outputs = model(**part, num_items_in_batch=num_items_in_batch, part=BatchPart())
        found.append(outputs.representations)
    names = list(found[0])
    leaves = {name: torch.cat([one[name] for one in found]).detach().requires_grad_() for name in names}
    del found

    whole = accelerator.unwrap_model(model).between_cells(leaves, **inputs, num_items_in_batch=num_items_in_batch)
    if whole.loss is not None:
        whole.loss.backward()
    gradients = {name: leaf.new_zeros(leaf.shape) if leaf.grad is None else leaf.grad for name, leaf in leaves.items()}
    trainer.add_parts(whole.losses)
    loss = torch.zeros((), device=device) if whole.loss is None else whole.loss.detach() * loss_scale(trainer)

    for place, (first, part, seed) in enumerate(zip(firsts, parts, seeds, strict=True)):
        of_part = whole.part(first, {name: values[first : first + at_once] for name, values in gradients.items()})
        last = place == len(parts) - 1 and accelerator.sync_gradients
        with contextlib.nullcontext() if last else accelerator.no_sync(model), same_noise(seed, device):
            with trainer.compute_loss_context_manager():
                of_cells = trainer.compute_loss(model, part | {"part": of_part}, num_items_in_batch=num_items_in_batch)
            accelerator.backward(of_cells)
        loss = loss + of_cells.detach()
    return loss


def loss_scale(trainer: Any) -> int:
    """Return the factor of losses by which `transformers.Trainer` turns the mean over processes into a sum."""
    return trainer.accelerator.num_processes if trainer.args.average_tokens_across_devices else 1


@contextlib.contextmanager
def same_noise(seed: int, device: torch.device) -> Iterator[None]:
    """Draw random numbers from a seed, on the CPU and a device; the generators are as before at the end."""
    devices = [] if device.type == "cpu" else [device.index if device.index is not None else 0]
    kind = "cuda" if device.type == "cpu" else device.type
    with torch.random.fork_rng(devices=devices, device_type=kind):
        torch.manual_seed(seed)
        yield


__all__ = ["cached_step", "check_grad_cache", "same_noise"]
