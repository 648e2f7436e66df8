"""Commands that repeat a run, from its record."""

import json

import pytest

from cellglot.model_cards.card.run_record import read_run


@pytest.mark.parametrize(
    ("record", "name", "command"),
    [
        ({}, "pretraining", "cellglot pretrain --config training_config.yaml --corpus corpus --output new"),
        (
            {"method": "full", "task": "cell-type", "label_column": "kind"},
            "training",
            "cellglot finetune --labels kind --config training_config.yaml --corpus corpus --output new",
        ),
        (
            {"method": "lora", "task": "cell-type", "label_column": "kind", "base_model": "base"},
            "fine-tuning",
            "cellglot finetune base --method lora --labels kind --config training_config.yaml --corpus corpus "
            "--output new",
        ),
        ({"method": "full", "command": "python -m build new"}, "training", "python -m build new"),
    ],
)
def test_the_command_of_a_run(tmp_path, record, name, command):
    (tmp_path / "training_run.json").write_text(json.dumps(record))
    run = read_run(tmp_path)
    assert run.name == name
    assert run.command("owner/new", record.get("base_model")) == command
