"""Whole cards: each is compared with a pattern in ``cards/``, and its Python runs as pasted."""

import json
import re
import shutil
from pathlib import Path

import pytest
from huggingface_hub import DatasetCard, ModelCard, RepoCard
from markdown_it import MarkdownIt

from cellglot.model_cards.publishing import publish


PATTERNS = Path(__file__).parents[1] / "cards"
METRICS = Path(__file__).parents[3] / "evaluation" / "metrics"
CARDS = ("exceiver", "classifier", "sccello", "langcell", "adapter", "dataset", "metric")


def pattern_of(card):
    """Put placeholders for what differs between machines and versions: computed numbers, versions; and for cells."""
    card = re.sub(r"text: '\{.*?\}'\n", "text: <cell>\n", card, flags=re.DOTALL)
    card = re.sub(r"  output:\n    text: .*", "  output:\n    text: <output>", card)
    # Which class has the highest score may depend on the last digit where weights are random.
    card = re.sub(r"- label: .*\n    score: .*", "- label: <class>\n    score: <number>", card)
    card = re.sub(r"(\.\.\.` \| ).*( \|\n)", r"\1<output>\2", card)
    card = re.sub(r"(Computed with|The result, with|, with) .*", r"\1 <versions>", card)
    # Which layers an adapter changes is for the presets of training to say.
    card = re.sub(
        r"(\*\*Adapted modules\*\* \| `).+(` \|\n\| \*\*Weights\*\* \| )[\d,]+", r"\1<modules>\2<number>", card
    )
    card = re.sub(r"weights `[0-9a-f]{12}`", "weights `<fingerprint>`", card)
    card = re.sub(r"[\d.,]+ (bytes|kB|MB)", "<size>", card)
    card = re.sub(r"(num_bytes|download_size|dataset_size): \d+", r"\1: <size>", card)
    return re.sub(r"(?<![\w./:-])-?\d+\.\d{3,}", "<number>", card)


@pytest.fixture(scope="module")
def published(folders, adapter, corpus, tmp_path_factory):
    """Folder of every published kind, ``owner/name`` below one place; the check runs in this process."""
    from cellglot.model_cards import publishing
    from cellglot.model_cards.card.details import CardDetails
    from cellglot.model_cards.checks import clean_process

    place = tmp_path_factory.mktemp("hub")
    sources = folders | {"adapter": adapter, "dataset": corpus.folder, "metric": METRICS / "cell_type_classification"}
    patch = pytest.MonkeyPatch()
    patch.setattr(publishing, "visit_as_stranger", clean_process.visit_here)
    made = {}

    def publish_one(name):
        if name not in made:
            details = CardDetails(
                license="apache-2.0",
                training_data="Blood cells of healthy donors (10x Genomics' PBMC 68k).",
                training_data_license="CC BY 4.0",
                authors="A laboratory",
                limits=["Platelets were not among the cells."],
                base_model="owner/exceiver" if name in ("adapter", "classifier") else None,
            )
            publish(sources[name], output=place / "new" / name, details=details)
            # The name on the card is that of the folder; on the Hub the owner stands before it.
            made[name] = place / "new" / name
        return made[name]

    yield publish_one
    patch.undo()


@pytest.mark.parametrize("name", CARDS)
def test_the_whole_card(published, name):
    card = (published(name) / "README.md").read_text(encoding="utf-8")
    assert pattern_of(card) == (PATTERNS / f"{name}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", CARDS)
def test_the_card_renders(published, name):
    card = RepoCard.load(published(name) / "README.md")
    page = MarkdownIt("commonmark").enable("table").render(card.text)
    assert page.count("<h1>") == 1 and page.count("<h2>") >= 4
    assert "{{ " not in card.content and "{%" not in card.content
    assert name == "metric" or "None" not in page
    for text in re.findall(r"<p>(.*?)</p>", page, re.DOTALL):
        assert "| --- |" not in text and "```" not in text and not text.startswith("|"), text
        assert "\n- " not in text, "a list without an empty line before it"


@pytest.mark.parametrize("name", CARDS)
def test_the_code_of_the_card_runs_as_pasted(published, blood_file, name, tmp_path, monkeypatch):
    folder = published(name)
    code = re.findall(r"^```python\n(.*?)^```", (folder / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert code, f"the card of {name} shows no Python"
    (tmp_path / name).symlink_to(folder)
    if name == "adapter":
        (tmp_path / "owner").mkdir()
        (tmp_path / "owner" / "exceiver").symlink_to(published("exceiver"))
    shutil.copy(blood_file, tmp_path / "cells.h5ad")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repo, **options: repo)
    for number, text in enumerate(code, 1):
        exec(compile(text, f"{name}, Python block {number}", "exec"), {})


@pytest.mark.parametrize("name", ["exceiver", "classifier", "sccello", "langcell", "adapter"])
def test_the_metadata_are_those_of_the_hub(published, name):
    data = ModelCard.load(published(name) / "README.md").data
    assert data.license == "apache-2.0"
    assert data.library_name == ("peft" if name == "adapter" else "transformers")
    tag = {
        "langcell": "zero-shot-classification",
        "classifier": "text-classification",
        "adapter": "text-classification",
    }
    assert data.pipeline_tag == tag.get(name, "feature-extraction")
    assert {"cellglot", "single-cell"} <= set(data.tags)
    if name in ("classifier", "adapter"):
        assert data.base_model == "owner/exceiver"
        assert data["base_model_relation"] == {"classifier": "finetune", "adapter": "adapter"}[name]
        assert {r.metric_type: r.metric_value for r in data.eval_results}["accuracy"] == 0.75
    assert len(data["widget"]) == 3
    for entry in data["widget"]:
        assert sum(json.loads(entry["text"]).values()) > 100
        scores = [found["score"] for found in entry["output"]] if isinstance(entry["output"], list) else []
        assert scores == sorted(scores, reverse=True) and (scores or entry["output"]["text"])


def test_the_stored_output_is_that_of_the_stored_input(published):
    """A stranger who runs the pipeline on the widget's input gets the widget's output."""
    from transformers import pipeline

    folder = published("classifier")
    for entry in ModelCard.load(folder / "README.md").data["widget"]:
        found = pipeline("cell-type-annotation", model=str(folder))(json.loads(entry["text"]), top_k=3)
        assert [(f["label"], round(f["score"], 4)) for f in found] == [
            (o["label"], o["score"]) for o in entry["output"]
        ]


def test_langcell_has_its_processor_and_scores_of_candidates(published):
    folder = published("langcell")
    for name in ("processor_config.json", "text_tokenizer/config.json", "text_tokenizer/tokenizer.json"):
        assert (folder / name).exists()
    shown = json.loads((folder / "examples.json").read_text())
    assert shown["candidates"] == ["CD14-positive monocyte", "dendritic cell", "natural killer cell"]
    assert all(set(cell["scores"]) == set(shown["candidates"]) for cell in shown["cells"])


def test_the_metadata_of_a_data_set(published):
    data = DatasetCard.load(published("dataset") / "README.md").data
    (config,) = data["configs"]
    assert {d["split"]: d["path"] for d in config["data_files"]} == {
        "train": ["data/train-000000.parquet"],
        "validation": ["data/validation-000000.parquet"],
    }
    splits = {s["name"]: s["num_examples"] for s in data["dataset_info"]["splits"]}
    assert splits == {"train": 552, "validation": 148}


def test_numbers_of_an_evaluation_stand_beside_the_baselines(folders, no_process, tmp_path):
    from cellglot.evaluation.benchmark.results import TaskResult
    from cellglot.model_cards.card.details import CardDetails

    def result(value):
        return TaskResult.from_dict(
            {"metrics": {"accuracy": {"value": value, "low": value - 0.1, "high": value + 0.1}},
             "undefined": {"auroc": "one class alone"}, "details": {}}
        ).to_dict()  # fmt: skip

    content = {
        "command": "cellglot evaluate /home/ada/classifier --cells /data/x/blood.h5ad --tasks annotation",
        "arguments": {"tasks": ["annotation"], "seed": 0},
        "software": {"python": "3.11.7", "cellglot": "0.1.0"},
        "data": {"source": "/data/x/blood.h5ad", "sha256": "0" * 64, "cells": 700, "cells_without_label": 0},
        "models": {"classifier": {"source": "/home/ada/classifier"}, "other": {}, "log counts + PCA": {}},
        "results": {
            "annotation: probe": {"classifier": result(0.5), "other": result(0.4), "log counts + PCA": result(0.75)}
        },
        "finished": {},
        "seconds": 3.0,
    }
    (tmp_path / "evaluation.json").write_text(json.dumps(content))
    details = CardDetails(license="mit", training_data="Blood.", training_data_license="CC BY 4.0")
    done = publish(
        folders["classifier"], output=tmp_path / "mine", details=details, evaluation=tmp_path / "evaluation.json"
    )
    card = (tmp_path / "mine" / "README.md").read_text()
    assert "| | mine | *log counts + PCA* |" in card
    assert "| annotation: probe, accuracy | 0.500 [0.400, 0.600] | **0.750** [0.650, 0.850] |" in card
    assert "cellglot evaluate classifier --cells blood.h5ad --tasks annotation" in card and "one class alone" in card
    values = {r.dataset_name: r.metric_value for r in ModelCard(card).data.eval_results if r.metric_type == "accuracy"}
    assert values == {"blood, held-out cells": 0.75, "blood.h5ad": 0.5}
    kept = json.loads((tmp_path / "mine" / "evaluation.json").read_text())
    assert set(kept["models"]) == {"mine", "log counts + PCA"} and done.files["evaluation.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [("{}", "contains no results of cellglot evaluate"),
     ('{"results": {"x": {}}, "models": {"a": {}, "b": {}}}', "has results of a, b, not of classifier")],
)  # fmt: skip
def test_a_file_that_is_no_evaluation_of_the_model(folders, details, tmp_path, content, message):
    (tmp_path / "evaluation.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        publish(
            folders["classifier"], output=tmp_path / "new", details=details(), evaluation=tmp_path / "evaluation.json"
        )
