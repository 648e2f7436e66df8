import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from cellglot.training.config import configs_folder
from cellglot.training.pretraining.pretrain import pretrain
from cellglot.training.run import RUN_FILE


# An epoch of 552 cells is 4 steps: 160 cells each, then 72, filled up by cells without tokens.
STEADY = ["trainer.max_steps=5", "trainer.adam_epsilon=1e-4"]  # gradients that are rounding errors stay small
ONE = ["trainer.per_device_train_batch_size=160", "trainer.per_device_eval_batch_size=50"]
TWO = ["trainer.per_device_train_batch_size=80", "trainer.per_device_eval_batch_size=25"]


@pytest.mark.long
def test_two_processes_of_torchrun_are_one_on_the_joined_batch(corpus, tiny_training, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "cellglot.training.pretrain", "--config", str(configs_folder() / "exceiver_tiny.yaml")]
    command += ["--corpus", str(corpus.folder), "--output", str(tmp_path / "two")]
    for setting in tiny_training(*STEADY, *TWO, as_text=True):
        command += ["--set", setting]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("eval_explained_variance: ") == 1  # the main process alone prints
    assert done.stdout.count("cells for training") == 1
    pretrain(tiny_training(*STEADY, *ONE), corpus, tmp_path / "one")

    one, two = (json.loads((tmp_path / name / RUN_FILE).read_text()) for name in ("one", "two"))
    assert (one["processes"], two["processes"]) == (1, 2)
    losses = [[e["loss"] for e in record["log"] if "loss" in e] for record in (one, two)]
    assert len(losses[0]) == 5
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    for name in ("eval_masked_mse", "eval_explained_variance"):
        assert one["metrics"][name] == pytest.approx(two["metrics"][name], rel=1e-3)
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert a.keys() == b.keys()
    for name in a:
        assert torch.allclose(a[name], b[name], atol=1e-4), name
