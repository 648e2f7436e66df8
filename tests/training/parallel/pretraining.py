"""Pretrainings one after the other, as a JSON list of runs: config, settings, corpus, output, and what happens.

The processes get `signal` at the end of `step`; only that of `rank`, if it is given. A run with `goes_on` may end by a
signal. With `stream`, a small corpus is read as a large one, in small windows. With `fsdp2`, Accelerate divides
the weights over processes on CPUs, too, as it does on accelerators.
"""

import json
import os
import sys

import torch
from transformers import TrainerCallback


class Send(TrainerCallback):
    def __init__(self, asked):
        self.asked = asked

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.asked.get("step") and args.process_index == self.asked.get(
            "rank", args.process_index
        ):
            os.kill(os.getpid(), self.asked["signal"])


def read_as_large(tokens):
    from cellglot.training.data.streaming import StreamedCells

    begin = StreamedCells.__init__
    StreamedCells.__init__ = lambda self, *args, **kwargs: begin(self, *args, **(kwargs | {"buffer_tokens": tokens}))


def shard_on_cpus():
    from accelerate import state
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    begin = state.AcceleratorState.__init__

    def initialize(self, *args, fsdp_plugin=None, **kwargs):
        begin(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin or FullyShardedDataParallelPlugin()
            state.PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    state.AcceleratorState.__init__ = initialize


def main():
    torch.set_num_threads(1)
    from cellglot.training.config import load_config
    from cellglot.training.pretraining.pretrain import pretrain
    from cellglot.training.run import leave_group

    runs = json.loads(sys.argv[1])
    if runs[0].get("stream"):
        read_as_large(runs[0]["stream"])
    if runs[0].get("fsdp2"):
        shard_on_cpus()
    for run in runs:
        config = load_config(run["config"], run["settings"])
        try:
            pretrain(config, run["corpus"], run["output"], callbacks=[Send(run)])
        except SystemExit:
            if not run.get("goes_on"):
                raise
    leave_group()


if __name__ == "__main__":
    main()
