"""Pretrainings one after the other, as a JSON list of runs: config, settings, corpus, output, and what happens.

The processes get `signal` at the end of `step`; only that of `rank`, if it is given. With `stream`, a small corpus is
read as a large one, in small windows. Each run has processes of its own, 1 or as many as `processes` says, and their
exit statuses are printed. Under torchrun all runs are in its processes, with weights divided by FSDP2, which
Accelerate does on accelerators only; a run with `goes_on` may end by a signal.
"""

import json
import os
import socket
import sys
import traceback

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


def train(run):
    from cellglot.training.config import load_config
    from cellglot.training.pretraining.pretrain import pretrain

    if run.get("stream"):
        read_as_large(run["stream"])
    pretrain(load_config(run["config"], run["settings"]), run["corpus"], run["output"], callbacks=[Send(run)])


def start(run):
    """Train in processes of its own, which share what this one imported; return their exit statuses."""
    processes = run.get("processes", 1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = {"WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
    numbers = []
    for rank in range(processes):
        number = os.fork()
        if number == 0:
            status = 1
            try:
                if processes > 1:
                    os.environ |= {name: str(v) for name, v in (group | {"RANK": rank, "LOCAL_RANK": rank}).items()}
                train(run)
                status = 0
            except SystemExit as ended:
                status = ended.code
            except BaseException:  # noqa: BLE001 (printed, and the status says it)
                traceback.print_exc()
            finally:
                os._exit(status)
        numbers.append(number)
    return [os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]) for number in numbers]


def main():
    torch.set_num_threads(1)
    import cellglot.training.pretraining.pretrain  # noqa: F401 (for all processes)
    from cellglot.training.run import leave_group

    runs = json.loads(sys.argv[1])
    if "RANK" not in os.environ:
        print(json.dumps([start(run) for run in runs]))
        return
    shard_on_cpus()
    for run in runs:
        try:
            train(run)
        except SystemExit:
            if not run.get("goes_on"):
                raise
    leave_group()


if __name__ == "__main__":
    main()
