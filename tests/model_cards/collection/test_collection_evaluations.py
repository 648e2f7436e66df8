"""Evaluations on the cards of models of the collection."""

import json
import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from cellglot.evaluation.scores.bootstrap import Score
from cellglot.evaluation.scores.task_result import TaskResult
from cellglot.model_cards.card.evaluation import EVALUATION_FILE, file_content, read_evaluations
from cellglot.model_cards.collection.evaluations import (
    BEGIN,
    WEIGHTS,
    card_with,
    kept_records,
    put_evaluations,
    read_records,
)
from cellglot.modeling.collection import shipped_models
from cellglot.outputs import sha256


CARD = """---
library_name: transformers
license: mit
pipeline_tag: text-classification
---

# Tiny

## Results

Scores of training.

## As published, and our choice

As published:
"""
RECORDS = Path(__file__).parents[3] / "docs" / "evaluation" / "records"
LEFT_OUT = "is left out: it was computed with other weights of tiny"


def record(weights, title="Drug response: ours", value=0.5, order=0, row="drug-response: lines held out"):
    scores = {"tiny": value, "other": 0.1, "mean of the drug": 0.75}
    results = {row: {n: TaskResult({"pearson": Score(v, v - 0.1, v + 0.1)}).to_dict() for n, v in scores.items()}}
    return {
        "title": title, "order": order, "command": "python benchmarks/drug_response_study.py", "summary": "12 pairs.",
        "software": {"python": "3.11.7"}, "data": {"name": "ours", "cells": 12},
        "models": {"tiny": {WEIGHTS: weights}, "other": {WEIGHTS: "1"}, "mean of the drug": {"baseline": True}},
        "results": results,
    }  # fmt: skip


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "README.md").write_text(CARD)
    return folder


@pytest.fixture
def records(tmp_path, model):
    own = sha256(model / "model.safetensors")
    folder = tmp_path / "records"
    folder.mkdir()
    (folder / "a.json").write_text(json.dumps(record(own, "Second", 0.8, order=1)))
    (folder / "b.json").write_text(json.dumps(record(own)))
    (folder / "c.json").write_text(json.dumps(record("another", "Stale", order=2)))
    return folder


def test_a_card_gets_the_scores_beside_baselines(model, records):
    said = put_evaluations(model, read_records(records))
    assert said == ["b.json: 1 scores", "a.json: 1 scores", f"c.json {LEFT_OUT}"]
    card = (model / "README.md").read_text()
    assert card.index("### Drug response: ours") < card.index("### Second") < card.index("## As published")
    lost = "| drug response: lines held out, Pearson of all pairs | 0.500 [0.400, 0.600] | **0.750** [0.650, 0.850] |"
    assert "| | tiny | *mean of the drug* |" in card and lost in card
    assert "12 pairs." in card and "Stale" not in card and "python benchmarks/drug_response_study.py" in card
    data = ModelCard(card).data
    assert [(r.dataset_name, r.metric_value) for r in data.eval_results] == [("ours", 0.5), ("ours", 0.8)]
    assert data.metrics == ["pearson"] and data.license == "mit"
    found = read_evaluations(model / EVALUATION_FILE, "tiny", "published")
    assert [e.title for e in found] == ["Drug response: ours", "Second"] and "| published |" in found[0].table
    assert set(found[0].content["models"]) == {"published", "mean of the drug"}


def test_it_can_be_repeated_and_taken_back(model, records):
    put_evaluations(model, read_records(records))
    first = [(model / name).read_text() for name in ("README.md", EVALUATION_FILE)]
    put_evaluations(model, kept_records(model))  # as after a build of the same weights
    assert [(model / name).read_text() for name in ("README.md", EVALUATION_FILE)] == first
    (model / "model.safetensors").write_bytes(b"new weights")
    said = put_evaluations(model, kept_records(model))
    assert said == [f"{name} {LEFT_OUT}" for name in ("Drug response: ours", "Second")]
    assert (model / "README.md").read_text() == CARD and not (model / EVALUATION_FILE).exists()


def test_scores_of_judges_are_in_the_table_alone(model):
    own = sha256(model / "model.safetensors")
    content = record(own, row="scib-metrics")
    content["results"]["scib-metrics"] = {"tiny": TaskResult({"total": Score(0.5)}).to_dict()}
    put_evaluations(model, {"judged": content})
    card = ModelCard((model / "README.md").read_text())
    assert "| scib-metrics: total | **0.500** |" in card.text and card.data.eval_results is None


@pytest.mark.parametrize(("name", "content", "message"), [
    ("a.txt", "{}", "has no records of evaluations"),
    ("a.json", '{"title": "x", "models": {}}', "a.json is not a record of an evaluation: it has no results, data"),
])  # fmt: skip
def test_a_folder_without_records_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_records(tmp_path)


def test_a_card_without_the_heading_is_refused():
    with pytest.raises(ValueError, match="the card has no heading"):
        card_with("---\nlicense: mit\n---\n\n# Other\n", "tiny", [])


@pytest.mark.parametrize("name", [n for n, path in shipped_models().items() if (path / EVALUATION_FILE).is_file()])
def test_models_that_ship_have_evaluations_of_their_weights(name):
    folder = Path(shipped_models()[name])
    found = read_evaluations(folder / EVALUATION_FILE, name, name)
    own = sha256(folder / "model.safetensors")
    assert found and all(evaluation.content["models"][name][WEIGHTS] == own for evaluation in found)
    assert all(
        set(evaluation.content["models"]) > {name} or evaluation.title[:9] == "Retrieval" for evaluation in found
    )
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert BEGIN in card and card == card_with(card, name, found)
    assert file_content(found) == json.loads((folder / EVALUATION_FILE).read_text(encoding="utf-8"))


def test_records_of_the_present_weights_are_on_the_cards():
    for name, folder in shipped_models().items():
        weights = [sha256(file) for file in sorted(Path(folder).glob("*model.safetensors"))]
        records = [r for r in read_records(RECORDS).values() if r["models"].get(name, {}).get(WEIGHTS) in weights]
        assert [record["title"] for record in records] == list(kept_records(Path(folder)))


def test_records_name_no_folder_of_one_machine():
    for path in sorted(RECORDS.glob("*.json")):
        assert not re.findall(r'"/[\w.-]+/[^"]*', path.read_text(encoding="utf-8")), path.name
