"""Gradients of a step in one process or several, with DDP or FSDP2: `FOLDER MODE...`, to `FOLDER/found-RANK.pt`.

A mode is FAMILY:WRAPPER:CELLS, such as sccello:fsdp2:3; 0 cells computes the whole batch at once.
"""

import os
import sys

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from cellglot.modeling import LangCellForPreTraining, ScCelloForPreTraining
from cellglot.training.arguments import CellTrainingArguments
from cellglot.training.trainer import CellTrainer


CLASSES = {"sccello": ScCelloForPreTraining, "langcell": LangCellForPreTraining}


def layers(model):
    towers = [model.sccello] if hasattr(model, "sccello") else [model.cell_model, model.text_model]
    return [layer for tower in towers for layer in tower.layers]


def wrapped(model, wrapper):
    if wrapper == "ddp":
        return DistributedDataParallel(model)
    if wrapper == "fsdp2":
        mesh = dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),))
        for layer in layers(model):
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    return model


def whole(weights):
    gradient = torch.zeros_like(weights) if weights.grad is None else weights.grad
    return (gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient).detach().clone()


def step(folder, family, wrapper, at_once, changes=(), like=3):
    """Compute the gradients of a step, and return the loss, its parts and the gradients.

    A whole batch draws the same hard negatives as one that is computed `like` cells at once.
    """
    rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    model = CLASSES[family].from_pretrained(f"{folder}/{family}").train().double()
    for name, value in changes:
        setattr(model.config, name, value)
    batch = torch.load(f"{folder}/{family}.pt", weights_only=True)
    batch = {name: values.chunk(processes)[rank] for name, values in batch.items()}
    arguments = CellTrainingArguments(f"{folder}/run", use_cpu=True, grad_cache=at_once or None, report_to="none")
    trainer = CellTrainer(model=model, args=arguments, data_collator=list)
    network = wrapped(model, wrapper)
    items = trainer._get_num_items_in_batch([batch], torch.device("cpu"))
    trainer.accelerator.gradient_state._set_sync_gradients(True)
    torch.manual_seed(5)
    if not at_once:  # the seeds of the parts, drawn before the hard negatives
        torch.randint(2**62, (-(-len(batch["input_ids"]) // like),))
    loss = trainer.training_step(network, batch, items)
    if processes > 1:
        dist.all_reduce(loss)
    return {
        "loss": loss / processes,
        "parts": {name: trainer.accelerator.reduce(value, "sum") for name, value in trainer._parts.items()},
        "gradients": {name: whole(weights) for name, weights in model.named_parameters()},
    }


def main():
    torch.set_num_threads(1)
    folder, *modes = sys.argv[1:]
    found = {mode: step(folder, *mode.split(":")[:2], int(mode.split(":")[2])) for mode in modes}
    torch.save(found, f"{folder}/found-{os.environ.get('RANK', '0')}.pt")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
