import re
from types import SimpleNamespace

import pytest
from rich.console import Console

from cellglot.training.progress import TrainingProgress


@pytest.fixture
def state():
    return SimpleNamespace(is_world_process_zero=True, global_step=0, max_steps=4, epoch=1.5)


def run(state, terminal):
    arguments = SimpleNamespace(train_batch_size=8, gradient_accumulation_steps=2, world_size=3)
    progress = TrainingProgress("pretraining")
    progress.console = Console(record=True, width=120, force_terminal=terminal)
    progress.on_train_begin(arguments, state, None)
    for step in range(1, 5):
        state.global_step = step
        progress.on_step_end(arguments, state, None)
        progress.on_log(arguments, state, None, logs={"loss": 1 / step})
    metrics = {"eval_explained_variance": 0.25, "eval_masked_mse": 1.5, "eval_runtime": 77.0, "eval_loss": 66.0}
    progress.on_evaluate(arguments, state, None, metrics=metrics)
    progress.on_train_end(arguments, state, None)
    progress.on_train_end(arguments, state, None)
    assert progress.bar is None
    return progress


def test_a_bar_and_a_line_for_every_evaluation(state, capsys):
    progress = run(state, terminal=True)
    lines = re.findall("step 4 .*", progress.console.export_text())
    assert lines == ["step 4 (epoch 1.5): explained variance 0.2500, masked mse 1.5000"], "no runtime, no loss"
    shown = capsys.readouterr().out
    assert "pretraining" in shown and "4/4" in shown and "loss 0.2500" in shown
    assert "cells/s" in shown


def test_other_processes_are_silent(state, capsys):
    state.is_world_process_zero = False
    assert run(state, terminal=False).console.export_text() == ""
    assert capsys.readouterr().out == ""


def test_an_evaluation_before_any_training(capsys):
    state = SimpleNamespace(is_world_process_zero=True, global_step=0, epoch=None)
    TrainingProgress().on_evaluate(None, state, None, metrics={"eval_accuracy": 0.5})
    assert "step 0 (epoch 0.0): accuracy 0.5000" in capsys.readouterr().out


@pytest.mark.parametrize(("steps", "every", "fewest"), [(1000, 9, 10), (40, 4, 9), (3, 1, 3)])
def test_a_long_run_prints_a_dozen_lines_and_a_short_one_all(steps, every, fewest):
    state = SimpleNamespace(is_world_process_zero=True, global_step=0, max_steps=steps, epoch=0.0)
    progress = TrainingProgress()
    progress.console = Console(record=True, width=120)
    arguments = SimpleNamespace(train_batch_size=8, gradient_accumulation_steps=1, world_size=1)
    progress.on_train_begin(arguments, state, None)
    stopped = steps - steps // 20  # as by patience: the last evaluation is not that of the last step
    for state.global_step in range(every, stopped + 1, every):
        progress.on_evaluate(arguments, state, None, metrics={"eval_accuracy": state.global_step / steps})
    progress.on_train_end(arguments, state, None)
    lines = re.findall(r"^step ([\d,]+)", progress.console.export_text(), re.MULTILINE)
    numbers = [int(line.replace(",", "")) for line in lines]
    evaluated = list(range(every, stopped + 1, every))
    assert fewest <= len(numbers) <= 12 and numbers[0] == every and numbers[-1] == evaluated[-1]
    assert numbers == sorted(set(numbers))
