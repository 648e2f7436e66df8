import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from cellglot.modeling import ScCelloConfig, ScCelloForMaskedLM
from cellglot.training.pretraining.pretrain import pretrain
from cellglot.training.run import RUN_FILE
from cellglot.training.runs import machine
from cellglot.training.runs.work import WorkMeter, summary


STEPS = ["trainer.save_strategy=steps", "trainer.save_steps=2"]


def test_a_record_says_what_the_run_took(corpus, tiny_training, tmp_path, capsys):
    """Stopped after two steps of four and resumed: both parts are added up."""
    folder = tmp_path / "model"
    pretrain(tiny_training("trainer.max_steps=2", *STEPS), corpus, folder)
    first = json.loads((folder / RUN_FILE).read_text())["work"]
    pretrain(tiny_training("trainer.max_steps=4", *STEPS), corpus, folder)
    record = json.loads((folder / RUN_FILE).read_text())
    work = record["work"]
    assert first["cells"] == 320 and work["cells"] == corpus.n_cells("train") == 552
    of_train = [shard["tokens"] for shard in corpus.manifest["shards"] if shard["split"] == "train"]
    assert work["tokens"] == sum(of_train), "an epoch has each token once"
    assert 0 < work["padding"] < 0.5
    assert work["seconds"] > first["seconds"] and work["seconds"] >= work["step_seconds"] + work["waiting_seconds"] > 0
    assert work["flops"] > first["flops"] > 0
    assert work["cells_per_second"] == pytest.approx(552 / (work["step_seconds"] + work["waiting_seconds"]))
    assert work["peak_memory_bytes"] > 2**26 and work["memory_of"] == "process"
    assert work["energy_kwh"] > 0
    assert work["code"]["cellglot"] == record["cellglot"]
    assert len(record["corpus"]["digest"]) == 32
    shown = capsys.readouterr().out
    assert "trained on 552 cells in" in shown and "tokens/s" in shown


def test_operations_of_a_step_are_those_of_its_products():
    config = ScCelloConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=24, pooling="mean",
    )  # fmt: skip
    model = ScCelloForMaskedLM(config).train()
    ids = torch.randint(5, 50, (4, 24))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    meter = WorkMeter()
    trainer = SimpleNamespace(
        args=SimpleNamespace(torch_compile=False), accelerator=SimpleNamespace(distributed_type="NO"),
        state=SimpleNamespace(global_step=0),
    )  # fmt: skip
    with meter.batch(trainer, inputs):
        model.sccello(**inputs).last_hidden_state.sum().backward()
    of_layers = 2 * 4 * 24 * (4 * 16 * 16 + 2 * 16 * 32) * 2
    attention = 2 * 2 * 4 * 24 * 24 * 16 * 2
    assert meter.totals["counted_flops"] == 3 * of_layers + 3.5 * attention  # the backward pass repeats the scores
    assert meter.totals["counted_positions"] == 96


def test_utilisation_is_relative_to_the_peak_of_the_device(monkeypatch):
    rate, source = machine.peak_flops(torch.device("cpu"), torch.float32)
    assert rate > 1e8 and "measured" in source
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    rate, source = machine.peak_flops(torch.device("cuda"), torch.bfloat16)
    assert rate == 989e12 and source == "NVIDIA H100 80GB HBM3, data sheet"


def test_energy_is_read_from_counters_or_estimated(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "RAPL", tmp_path)
    estimate = machine.EnergyMeter(torch.device("cpu"))
    assert "estimate" in estimate.source and estimate.joules() >= 0
    package = tmp_path / "intel-rapl:0"
    package.mkdir()
    (package / "energy_uj").write_text("1000000")
    counted = machine.EnergyMeter(torch.device("cpu"))
    (package / "energy_uj").write_text("4500000")
    assert counted.source == "counters of the processor" and counted.joules() == 3.5


def test_a_line_of_text():
    work = {
        "cells": 64_000, "seconds": 600.0, "cells_per_second": 110.4, "tokens_per_second": 56_000.0, "padding": 0.04,
        "flop_utilisation": 0.31, "peak_source": "a product of matrices on cpu, measured", "memory_of": "process",
        "peak_memory_bytes": 3 * 2**29, "energy_kwh": 0.0033, "energy_source": "estimate, 10 W for each busy core",
    }  # fmt: skip
    assert summary(work) == (
        "64,000 cells in 10 min; 110 cells/s, 56,000 tokens/s; 4% padding; 31% of the peak of a product of matrices "
        "on cpu, measured; at most 1.5 GiB of the process; about 0.0033 kWh (estimate, 10 W for each busy core)"
    )


def test_peak_memory_leaves_out_that_of_the_parent_process():
    code = (
        "import psutil, torch; from cellglot.training.runs.machine import peak_memory; "
        "print(peak_memory(torch.device('cpu')) / psutil.Process().memory_info().rss)"
    )
    held = b"\1" * (640 << 20)  # more than the child takes
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(held) == 640 << 20
    assert 0.99 < float(done.stdout) < 1.5
