"""Streamed pretraining in one process and in two: killed, stopped and resumed, and with weights divided over both."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from scipy.sparse import csr_matrix

from cellglot.tokenization.corpus.tokenize import tokenize_corpus
from cellglot.training.config import load_config
from cellglot.training.launch import environment
from cellglot.training.pretraining.pretrain import pretrain
from cellglot.training.run import RUN_FILE
from cellglot.training.runs.identity import OtherRunError


SCRIPT = Path(__file__).with_name("pretraining.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
NAMES = {"exceiver": "exceiver_tiny.yaml", "sccello": "sccello_tiny.yaml", "langcell": "langcell_tiny.yaml"}
QUICK = ["trainer.use_cpu=true", "trainer.logging_steps=1", "trainer.eval_strategy=no", "trainer.save_strategy=steps"]
LENGTH = ["trainer.max_steps=12", "trainer.save_steps=3"]
STEADY = ["trainer.adam_epsilon=1e-4", "trainer.max_steps=4"]  # gradients that are rounding errors stay small
SMALL = 1_500  # tokens in a window: less than half of an epoch


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """300 cells of three types and 45 genes, in row groups of 16 cells, as tokens of both kinds."""
    folder = tmp_path_factory.mktemp("processes")
    random = np.random.default_rng(0)
    kind = np.arange(300) % 3
    counts = random.poisson(np.where(np.arange(45)[None, :] // 15 == kind[:, None], 4.0, 0.8)).astype(np.float32)
    names = np.array(["B cell", "T cell", "monocyte"])[kind]
    obs = pd.DataFrame({"cell_type": names}, index=[f"c{i}" for i in range(300)])
    genes = pd.DataFrame(index=[f"ENSG{i:011d}" for i in range(1, 46)])
    ad.AnnData(csr_matrix(counts), obs=obs, var=genes).write_h5ad(folder / "cells.h5ad")
    ranked = {
        "tokenizer": "rank-value",
        "tokenizer_options": {"add_cls_token": True, "return_expression_values": True},
    }
    quiet = {"processes": 1, "progress": False}
    exceiver = tokenize_corpus([folder / "cells.h5ad"], folder / "tokens", **quiet)
    ranks = tokenize_corpus([folder / "cells.h5ad"], folder / "ranks", **quiet, **ranked)
    return {"exceiver": exceiver, "sccello": ranks, "langcell": ranks}


def of(family, corpora, output, *settings, batch=16, **asked):
    """What the script has to do."""
    given = [*QUICK, *LENGTH, f"trainer.per_device_train_batch_size={batch}", *settings]
    run = {"config": NAMES[family], "settings": given, "corpus": str(corpora[family].folder), "output": str(output)}
    return run | asked


def run_script(*runs, launcher=(sys.executable,), **variables):
    done = subprocess.run(
        [*launcher, str(SCRIPT), json.dumps(runs)], capture_output=True, text=True, check=False, timeout=500,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | variables,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return done


def statuses(*runs):
    """Exit statuses of the processes of each run."""
    return json.loads(run_script(*runs).stdout.splitlines()[-1])


def checkpoints(folder):
    return sorted((p.name for p in folder.glob("checkpoint-*")), key=lambda name: int(name.split("-")[1]))


def assert_same_run(folder, whole):
    """The same weights and losses, to the last bit."""
    a, b = (load_file(path / "model.safetensors") for path in (folder, whole))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    logs = [json.loads((path / RUN_FILE).read_text())["log"] for path in (folder, whole)]
    for name in ("loss", "grad_norm"):
        assert [entry[name] for entry in logs[0] if name in entry] == [
            entry[name] for entry in logs[1] if name in entry
        ]
    assert len([entry for entry in logs[1] if "loss" in entry]) == 12


@pytest.fixture(scope="module")
def ran(corpora, tmp_path_factory):
    """Streamed runs of all systems, whole and in parts, and one of two processes: Python is started once for all."""
    folder, runs = tmp_path_factory.mktemp("ran"), []
    for family in NAMES:
        parts = folder / family / "parts"
        runs += [
            of(family, corpora, folder / family / "whole", stream=SMALL),
            of(family, corpora, parts, stream=SMALL, step=8, signal=signal.SIGKILL),
            of(family, corpora, parts, stream=SMALL),
        ]
    two = of("exceiver", corpora, folder / "two", *STEADY, batch=50, processes=2)
    assert statuses(*runs, two) == [[0], [-signal.SIGKILL], [0]] * 3 + [[0, 0]]
    return folder


@pytest.mark.parametrize("family", NAMES)
def test_a_killed_streamed_run_resumes_with_the_same_losses(ran, family):
    """With dropout."""
    assert_same_run(ran / family / "parts", ran / family / "whole")


def test_two_processes_are_one_on_the_joined_batch(ran, corpora, tmp_path):
    """An epoch of about 270 cells is 3 steps, the last one filled up by cells without tokens."""
    settings = [*QUICK, *LENGTH, *STEADY, "trainer.per_device_train_batch_size=100"]
    pretrain(load_config(NAMES["exceiver"], settings), corpora["exceiver"], tmp_path / "one")
    one, two = (json.loads((folder / RUN_FILE).read_text()) for folder in (tmp_path / "one", ran / "two"))
    assert (one["processes"], two["processes"]) == (1, 2)
    assert 200 < one["training_cells"] < 300
    losses = [[e["loss"] for e in record["log"] if "loss" in e] for record in (one, two)]
    assert len(losses[0]) == 4 and losses[0] == pytest.approx(losses[1], rel=1e-4)
    for name in ("eval_masked_mse", "eval_explained_variance"):
        assert one["metrics"][name] == pytest.approx(two["metrics"][name], rel=1e-3)
    a, b = (load_file(folder / "model.safetensors") for folder in (tmp_path / "one", ran / "two"))
    assert a.keys() == b.keys() and all(torch.allclose(a[name], b[name], atol=1e-4) for name in a)


@pytest.mark.long
def test_two_processes_that_are_stopped_and_killed(corpora, tmp_path):
    """SIGTERM after step 4, SIGKILL of one process after step 8: each time the same command resumes."""
    two = {"batch": 8, "stream": SMALL, "processes": 2}
    whole, parts, stopped = tmp_path / "whole", tmp_path / "parts", tmp_path / "stopped"
    found = statuses(
        of("sccello", corpora, whole, **two),
        of("sccello", corpora, stopped, **two, step=4, signal=signal.SIGTERM),
    )
    assert found == [[0, 0], [143, 143]]
    assert checkpoints(stopped) == ["checkpoint-3", "checkpoint-5"]  # processes agree on it at the next step
    assert not (stopped / "model.safetensors").exists()
    shutil.copytree(stopped, parts)
    shutil.copytree(stopped, tmp_path / "wrong")
    killed, resumed, alone = statuses(
        of("sccello", corpora, parts, **two, step=8, signal=signal.SIGKILL, rank=1),
        of("sccello", corpora, parts, **two),
        of("sccello", corpora, stopped, batch=16, stream=SMALL),
    )
    assert killed[0] != 0 and killed[1] == -signal.SIGKILL and resumed == [0, 0]
    assert_same_run(parts, whole)
    # One process resumes a run of two if a step has as many cells, and no other number of cells.
    assert alone == [0]
    a, b = (load_file(path / "model.safetensors") for path in (stopped, whole))
    assert all(torch.allclose(a[name].float(), b[name].float(), atol=5e-3) for name in a)  # other dropout
    config = load_config(NAMES["sccello"], [*QUICK, *LENGTH, "trainer.per_device_train_batch_size=8"])
    with pytest.raises(OtherRunError, match="trainer.cells_per_batch: 16 there, 8 now"):
        pretrain(config, corpora["sccello"], tmp_path / "wrong")


@pytest.mark.long
def test_weights_divided_over_two_processes(corpora, tmp_path):
    """FSDP2: the losses and weights of one process, a checkpoint that resumes, a whole model at the end."""
    one, two = tmp_path / "one", tmp_path / "two"
    settings = [
        "trainer.adam_epsilon=1e-4",
        "model.hidden_dropout_prob=0",
        "trainer.max_steps=4",
        "trainer.save_steps=2",
    ]
    config = load_config(NAMES["sccello"], [*QUICK, *settings, "trainer.per_device_train_batch_size=16"])
    pretrain(config, corpora["sccello"], one)
    asked = of("sccello", corpora, two, *settings, batch=8)
    stopped = asked | {"goes_on": True, "step": 2, "signal": signal.SIGTERM}
    divided = environment("fsdp2.yaml") | {"ACCELERATE_MIXED_PRECISION": "no"}
    run_script(stopped, asked, launcher=TORCHRUN, **divided)
    assert checkpoints(two) == ["checkpoint-3", "checkpoint-4"]
    records = [json.loads((path / RUN_FILE).read_text()) for path in (one, two)]
    losses = [[entry["loss"] for entry in record["log"] if "loss" in entry] for record in records]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    a, b = (load_file(path / "model.safetensors") for path in (one, two))
    assert a.keys() == b.keys()
    for name in a:
        assert torch.allclose(a[name].float(), b[name].float(), atol=1e-4), name
    assert {path.name for path in one.glob("*.py")} == {path.name for path in two.glob("*.py")}
    assert (one / "config.json").read_text() == (two / "config.json").read_text()
