import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from cellglot.training.pretraining.pretrain import pretrain
from cellglot.training.run import RUN_FILE


SAVED = [
    "model.hidden_dropout=0.1",
    "trainer.eval_strategy=epoch",
    "trainer.save_strategy=steps",
    "trainer.save_steps=3",
]


class Stop(TrainerCallback):
    """Ends the training after the last step of an epoch; the last checkpoint is from its middle."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 4:
            raise RuntimeError("killed")


@pytest.fixture(scope="module")
def killed(corpus, tiny_training, tmp_path_factory):
    """As the fixture `pretrained`, but stopped; processes that are killed are in parallel/test_processes.py."""
    folder = tmp_path_factory.mktemp("killed") / "model"
    with pytest.raises(RuntimeError, match="killed"):
        pretrain(tiny_training(*SAVED), corpus, folder, callbacks=[Stop()])
    return folder


def weights(folder):
    return load_file(folder / "model.safetensors")


def assert_same_weights(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_a_killed_run_goes_on_to_the_same_weights(killed, pretrained, corpus, tiny_training, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(killed, folder)
    assert not (folder / "model.safetensors").exists()
    assert [p.name for p in folder.glob("checkpoint-*")] == ["checkpoint-3"]
    half = folder / "checkpoint-4"  # killed while it was written
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"\x10")
    pretrain(tiny_training(*SAVED), corpus, folder)
    assert f"resuming from {folder / 'checkpoint-3'}, going on at step 3" in capsys.readouterr().out
    assert_same_weights(weights(folder), weights(pretrained))
    log = json.loads((folder / RUN_FILE).read_text())["log"]
    whole = json.loads((pretrained / RUN_FILE).read_text())["log"]
    for name in ("loss", "learning_rate", "grad_norm"):
        assert [e[name] for e in log if name in e] == [e[name] for e in whole if name in e]


def test_resume_can_be_refused(killed, pretrained, corpus, tiny_training, tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(killed, folder)
    pretrain(tiny_training(*SAVED, "trainer.max_steps=1"), corpus, folder, resume=False)
    assert "going on" not in capsys.readouterr().out
    log = json.loads((folder / RUN_FILE).read_text())["log"]
    assert [e["step"] for e in log if "loss" in e] == [1]


def test_other_seeds_give_other_weights(pretrained, corpus, tiny_training, tmp_path):
    pretrain(tiny_training("trainer.max_steps=1", "trainer.seed=1"), corpus, tmp_path / "model")
    assert not torch.allclose(
        weights(tmp_path / "model")["exceiver.latent_queries"],
        weights(pretrained)["exceiver.latent_queries"],
        atol=1e-2,
    )
