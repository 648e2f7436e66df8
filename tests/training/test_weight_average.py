import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from cellglot.training.config import TrainingConfig
from cellglot.training.finetuning.finetune import finetune
from cellglot.training.run import RUN_FILE
from cellglot.training.weight_average import WeightAverage


def settings(trainer=(), **finetuning):
    given = {
        "max_steps": 4, "per_device_train_batch_size": 32, "learning_rate": 1e-2, "logging_steps": 1, "use_cpu": True,
        "eval_strategy": "no", "save_strategy": "no", "seed": 0,
    }  # fmt: skip
    return TrainingConfig(trainer=given | dict(trainer), finetuning=finetuning)


class Seen(TrainerCallback):
    """Keeps the weights of every step."""

    def __init__(self):
        self.weights = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.weights.append({n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad})


def run(pretrained, corpus, output, trainer, method="full", **finetuning):
    seen = Seen()
    config = settings(trainer, **finetuning)
    finetune(config, pretrained, corpus, output, method=method, callbacks=[seen])
    return seen.weights, load_file(output / ("model.safetensors" if method == "full" else "adapter_model.safetensors"))


@pytest.mark.parametrize(("share", "first"), [(1.0, 0), (0.5, 4), (0.3, 5), (0.01, 7)])
def test_the_model_gets_the_mean_of_the_last_weights(pretrained, corpus, tmp_path, share, first):
    steps, saved = run(pretrained, corpus, tmp_path / "model", {"max_steps": 8}, average_weights=share)
    assert len(steps) == 8
    for name in steps[0]:
        mean = torch.stack([weights[name] for weights in steps[first:]]).mean(0)
        assert torch.allclose(saved[name], mean, atol=1e-6), name
        if first < 7 and "classifier" in name:
            assert not torch.allclose(saved[name], steps[-1][name], atol=1e-6)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_training_that_goes_on_averages_the_same_steps(pretrained, corpus, tmp_path, method):
    class Stop(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 4:
                raise RuntimeError("killed")

    trainer = {"max_steps": 6, "save_strategy": "steps", "save_steps": 4}
    config = settings(trainer, average_weights=0.5)
    _, whole = run(pretrained, corpus, tmp_path / "whole", trainer, method, average_weights=0.5)
    with pytest.raises(RuntimeError, match="killed"):
        finetune(config, pretrained, corpus, tmp_path / "parts", method=method, callbacks=[Stop()])
    assert (tmp_path / "parts" / "checkpoint-4" / "weight_average.safetensors").exists()
    _, parts = run(pretrained, corpus, tmp_path / "parts", trainer, method, average_weights=0.5)
    assert whole.keys() == parts.keys()
    assert all(torch.allclose(whole[name], parts[name], atol=1e-6) for name in whole)


@pytest.mark.parametrize(("before", "now"), [(None, 1.0), (0.5, 1.0)])
def test_an_average_of_other_steps_is_refused(pretrained, corpus, tmp_path, before, now):
    trainer = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    run(pretrained, corpus, tmp_path / "model", trainer, average_weights=before)
    with pytest.raises(ValueError, match=f"differs in finetuning.average_weights: .* there, {now} now"):
        run(pretrained, corpus, tmp_path / "model", trainer, average_weights=now)


@pytest.mark.parametrize("share", [0, -0.5, 1.1, "half", True])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match=r"finetuning.average_weights .*: it is a share of the steps"):
        WeightAverage(share)


@pytest.mark.parametrize(("average", "steps"), [(None, [2, 4]), (0.5, [2, 4, 4])])
def test_the_saved_model_is_evaluated_once(pretrained, corpus, tmp_path, average, steps):
    """The average is another model than the last step left, which is evaluated, too."""
    trainer = {"eval_strategy": "steps", "eval_steps": 2}
    metrics = finetune(settings(trainer, average_weights=average), pretrained, corpus, tmp_path / "model")
    log = json.loads((tmp_path / "model" / RUN_FILE).read_text())["log"]
    evaluated = [entry for entry in log if "eval_loss" in entry]
    assert [entry["step"] for entry in evaluated] == steps
    assert metrics == {name: value for name, value in evaluated[-1].items() if name != "step"}
