import json
import os
import signal

import numpy as np
import pytest
import torch
from transformers.utils import logging

from cellglot.modeling import ExceiverConfig, ExceiverForSequenceClassification
from cellglot.outputs.environment import EnvironmentFailureError
from cellglot.training.data.collators import ExceiverCollator
from cellglot.training.data.dataset import CellDataset
from cellglot.training.run import training_arguments
from cellglot.training.trainer import CellTrainer, count_parameters, last_checkpoint


@pytest.fixture
def trainer(corpus, tiny_training, tmp_path):
    """Make a trainer of a classifier, with some settings changed."""
    size = corpus.manifest["vocab_size"]
    few = np.arange(corpus.n_cells("train")) < 37
    cells = CellDataset(corpus, "train", columns=["cell_type"], keep=few)
    classes = {name: i for i, name in enumerate(sorted(set(cells.column("cell_type"))))}

    def make(*changes, optimizer="adamw"):
        torch.manual_seed(0)
        config = ExceiverConfig(vocab_size=size, num_latents=4, num_hidden_layers=1, intermediate_size=8)
        config.num_labels = len(classes)
        return CellTrainer(
            model=ExceiverForSequenceClassification(config),
            args=training_arguments(tiny_training("trainer.max_steps=2", *changes), tmp_path / "run"),
            train_dataset=cells,
            data_collator=ExceiverCollator(size - 2, 8, 0, classes, "cell_type"),
            optimizer_name=optimizer,
        )

    return make


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def test_every_part_of_the_loss_is_logged(trainer):
    run = trainer("trainer.per_device_train_batch_size=20", "trainer.max_steps=4", "trainer.logging_steps=2")
    run.train()
    logged = [entry for entry in run.state.log_history if "loss" in entry]
    assert len(logged) == 2
    for entry in logged:
        assert entry["classification_loss"] > 0 and entry["expression_loss"] > 0
        assert entry["loss"] == pytest.approx(entry["classification_loss"] + entry["expression_loss"], rel=1e-4)


def test_the_loss_is_the_mean_over_the_cells(trainer):
    """A batch that is filled up gives the loss of its cells alone."""
    run = trainer("trainer.per_device_train_batch_size=50", "trainer.max_steps=1")
    cells = run.train_dataset
    batch = run.data_collator(cells.__getitems__([(0, cell) for cell in range(len(cells))]))
    run.model.eval()
    with torch.no_grad():
        expected = run.model(**batch).loss.item()
    run.train()
    assert run.state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-5)


def test_accumulated_batches_are_one_batch(trainer):
    """All 37 cells in one batch or in three, filled up."""
    steady = ["trainer.max_grad_norm=0", "trainer.adam_epsilon=1e-3", "trainer.max_steps=1"]
    once = trainer("trainer.per_device_train_batch_size=39", *steady)
    parts = trainer("trainer.per_device_train_batch_size=13", "trainer.gradient_accumulation_steps=3", *steady)
    before = weights(once).clone()
    once.train()
    parts.train()
    assert (weights(once) - before).abs().max() > 1e-4
    assert torch.allclose(weights(once), weights(parts), atol=2e-5)
    losses = [run.state.log_history[0] for run in (once, parts)]
    for name in ("loss", "classification_loss", "expression_loss"):
        assert losses[0][name] == pytest.approx(losses[1][name], rel=1e-5)


@pytest.mark.parametrize("shown", [True, False])
def test_bars_of_transformers_are_off_while_it_trains_and_saves_alone(trainer, tmp_path, capsys, shown):
    before = logging.is_progress_bar_enabled()
    (logging.enable_progress_bar if shown else logging.disable_progress_bar)()
    try:
        run = trainer("trainer.save_strategy=steps", "trainer.save_steps=1")
        run.train()
        run.save_model(str(tmp_path / "model"))
        assert logging.is_progress_bar_enabled() == shown
        assert "shards" not in capsys.readouterr().err
    finally:
        (logging.enable_progress_bar if before else logging.disable_progress_bar)()


def test_order_follows_its_own_seed(trainer):
    def order(*seeds):
        return list(trainer(*seeds)._get_train_sampler())

    assert order("trainer.seed=5") == order("trainer.seed=1", "trainer.data_seed=5")
    assert order("trainer.seed=5", "trainer.data_seed=0") == order("trainer.seed=0")
    assert order("trainer.seed=5") != order("trainer.seed=0")


def test_adam_adds_the_decay_to_gradients(trainer):
    settings = ["trainer.weight_decay=0.1", "trainer.learning_rate=0.01"]
    adam = trainer(*settings, optimizer="adam").create_optimizer()
    assert getattr(adam, "optimizer", adam).__class__ is torch.optim.Adam
    (group,) = adam.param_groups
    assert (group["lr"], group["weight_decay"]) == (0.01, 0.1)
    assert trainer(*settings).create_optimizer().__class__ is torch.optim.AdamW


def test_parameters_are_counted(trainer):
    run = trainer()
    assert count_parameters(run.model) == len(weights(run))


def test_the_last_whole_checkpoint(tmp_path):
    assert last_checkpoint(tmp_path / "nothing") is None
    assert last_checkpoint(tmp_path) is None
    for step in (2, 10, 11, 12, 13):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step in (2, 10):
        state = json.dumps({"global_step": step, "log_history": []})
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    (tmp_path / "checkpoint-11" / "trainer_state.json").write_text(state[:20])
    (tmp_path / "checkpoint-12" / "trainer_state.json").write_text("")
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")


def test_a_loader_process_that_is_out_of_memory_is_named(trainer):
    """The system ends it by SIGKILL."""
    run = trainer("trainer.dataloader_num_workers=1")

    def collate(examples):
        os.kill(os.getpid(), signal.SIGKILL)

    run.data_collator = collate
    with pytest.raises(EnvironmentFailureError, match=r"memory was full \(DataLoader worker .*set fewer"):
        run.train()
