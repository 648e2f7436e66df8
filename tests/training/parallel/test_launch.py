"""Configurations of Accelerate, and the SLURM script with commands of SLURM that a test made up."""

import os
import signal
import subprocess
import sys
import time

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

from cellglot.training import launch
from cellglot.training.launch import accelerate_configs, environment, find_config


KINDS = {
    "single_gpu.yaml": DistributedType.NO,
    "ddp.yaml": DistributedType.MULTI_GPU,
    "fsdp2.yaml": DistributedType.FSDP,
    "deepspeed_zero2.yaml": DistributedType.DEEPSPEED,
    "deepspeed_zero3.yaml": DistributedType.DEEPSPEED,
}


def test_accelerate_reads_every_configuration():
    assert {path.name for path in accelerate_configs().iterdir()} == {*KINDS, "slurm.sh"}
    for name, kind in KINDS.items():
        read = load_config_from_file(str(accelerate_configs() / name))
        assert read.distributed_type == kind and read.mixed_precision == "bf16"
    assert load_config_from_file(str(find_config("deepspeed_zero3.yaml"))).deepspeed_config["zero_stage"] == 3


def test_the_environment_is_that_of_accelerate_launch(monkeypatch):
    found = environment("fsdp2.yaml")
    assert found["ACCELERATE_USE_FSDP"] == "true" and found["ACCELERATE_MIXED_PRECISION"] == "bf16"
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward
    assert "FULL_STATE_DICT" in str(plugin.state_dict_type)
    assert not plugin.cpu_ram_efficient_loading
    zero = environment("deepspeed_zero2.yaml")
    assert zero["ACCELERATE_USE_DEEPSPEED"] == "true" and zero["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == "2"
    assert "ACCELERATE_USE_FSDP" not in environment("ddp.yaml")


def test_names_that_do_not_exist(monkeypatch, capsys):
    with pytest.raises(FileNotFoundError, match=r"ddq\.yaml; the package has ddp\.yaml, deepspeed_zero2\.yaml"):
        find_config("ddq.yaml")
    monkeypatch.setattr(sys, "argv", ["launch", "single_gpu.yaml"])
    launch.main()
    assert "export ACCELERATE_MIXED_PRECISION=bf16" in capsys.readouterr().out


SRUN = """#!/bin/bash
# Starts two processes, passes a signal on to them, and ends with the highest status, as srun does.
shift
echo $$ > srun.pid
for rank in 0 1; do SLURM_PROCID=$rank SLURM_LOCALID=$rank SLURM_NTASKS=2 "$@" & pids="$pids $!"; done
trap 'kill -TERM $pids' TERM
highest=0
for pid in $pids; do
    wait $pid; status=$?
    while kill -0 $pid 2>/dev/null; do wait $pid; status=$?; done
    [ $status -gt $highest ] && highest=$status
done
exit $highest
"""
SCONTROL = """#!/bin/bash
if [ "$1" = requeue ]; then echo "$2" >> requeued; else echo localhost; fi
"""
# Stands for the training: ends with 143 after SIGTERM.
PYTHON = """#!/bin/bash
if [ "$2" = cellglot.training.launch ]; then echo "export ACCELERATE_MIXED_PRECISION=bf16"; exit; fi
echo "$RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR $ACCELERATE_MIXED_PRECISION ${@:3}" > rank-$RANK
trap 'exit 143' TERM
[ "$3" = fails ] && exit 3
for i in $(seq 600); do sleep 0.1; done
"""


@pytest.fixture
def slurm(tmp_path):
    """A folder with commands that do what those of SLURM do."""
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "python": PYTHON}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return tmp_path, os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "node[1-2]",
    }  # fmt: skip


@pytest.mark.parametrize("status", [143, 3])
def test_slurm_queues_a_stopped_job_again(slurm, status):
    folder, environ = slurm
    words = ["pretrain", "--config", "a b.yaml"] if status == 143 else ["fails"]
    job = subprocess.Popen(["bash", str(accelerate_configs() / "slurm.sh"), *words], cwd=folder, env=environ)
    until = time.monotonic() + 60
    while not (folder / "rank-1").exists() or not (folder / "rank-0").exists():
        assert time.monotonic() < until
        time.sleep(0.02)
    if status == 143:
        time.sleep(0.3)
        job.send_signal(signal.SIGTERM)  # the batch script's own, at a preemption
        os.kill(int((folder / "srun.pid").read_text()), signal.SIGTERM)
    assert job.wait(60) == status
    assert (folder / "requeued").exists() == (status == 143)
    said = (folder / "rank-1").read_text().strip()
    assert said == f"1 1 2 localhost bf16 {' '.join(words)}"
