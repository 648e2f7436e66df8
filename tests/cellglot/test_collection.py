"""Models that ship with the package: how their names are found, and what is listed of them."""

import json
import logging
import re
import shutil
from pathlib import Path

import anndata as ad
import pytest

import cellglot
from cellglot.modeling import collection
from cellglot.modeling.collection import FACTS_FILE, default_model, in_collection
from cellglot.modeling.model_names import resolve_model


FACTS = {
    "family": "exceiver", "purpose": "cell classification", "summary": "Blood.", "license": "cc-by-4.0",
    "types": {"B cell": "CL:0000236", "monocyte": "CL:0000576"}, "tissues": ["blood"], "cells": 800, "data_sets": 2,
    "parameters": 1234, "default": True,
    "scores": [
        {"name": "macro F1", "value": 0.91, "low": 0.9, "high": 0.92, "baselines": {"logistic regression": 0.8}}
    ],
}  # fmt: skip


@pytest.fixture
def shipped(gene_classifiers, cell_text_folder, tmp_path, monkeypatch):
    """A collection of a classifier, its base, an adapter and a model of texts."""
    folder = tmp_path / "collection"
    made = {
        "blood-exceiver": gene_classifiers["classifier"], "tissue-lora": gene_classifiers["adapter"],
        "human-langcell": cell_text_folder,
    }  # fmt: skip
    for name, source in made.items():
        shutil.copytree(source, folder / name)
        facts = FACTS if name == "blood-exceiver" else {"family": "exceiver", "purpose": "embedding"}
        (folder / name / FACTS_FILE).write_text(json.dumps(facts))
    (folder / "recipes").mkdir()
    monkeypatch.setattr(collection, "collection_folder", lambda: folder)
    monkeypatch.setattr(collection, "_hidden", set())
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return folder


@pytest.fixture
def cells(blood, tmp_path):
    path = tmp_path / "cells.h5ad"
    blood[:12].write_h5ad(path)
    return path


def test_a_name_is_a_folder_of_the_package(shipped):
    assert cellglot.model_path("blood-exceiver") == str(shipped / "blood-exceiver")
    assert resolve_model("human-langcell") == str(shipped / "human-langcell")
    assert (
        in_collection("recipes") is in_collection("./blood-exceiver") is in_collection("owner/blood-exceiver") is None
    )
    assert in_collection("..") is None


def test_a_local_folder_of_the_name_goes_first_and_is_announced_once(shipped, gene_classifiers, tmp_path, caplog):
    shutil.copytree(gene_classifiers["base"], tmp_path / "work" / "blood-exceiver")
    with caplog.at_level(logging.WARNING):
        assert resolve_model("blood-exceiver") == "blood-exceiver"
        assert resolve_model("blood-exceiver") == "blood-exceiver"
    assert [r.message for r in caplog.records if "the folder is used" in r.message] == [
        "blood-exceiver is a folder here, and a model of the collection: the folder is used. The model of the "
        "collection is cellglot.model_path('blood-exceiver')"
    ]
    assert cellglot.model_path("blood-exceiver") == str(shipped / "blood-exceiver")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: cellglot.model_path("blood-exciver"), ["is blood-exceiver meant?", "human-langcell, tissue-lora"]),
        (
            lambda: cellglot.load_model("blod-exceiver"),
            ["not a folder, and not", "blood-exceiver meant?"],
        ),
        (lambda: resolve_model("xyz"), ["nor in the collection: it has blood-exceiver, human-langcell"]),
    ],
)
def test_a_name_that_is_nothing_lists_the_collection(shipped, call, words):
    with pytest.raises(ValueError) as caught:
        call()
    assert all(word in str(caught.value) for word in words)


def test_every_verb_takes_a_name(shipped, blood, cells, tmp_path):
    few = blood[:12].copy()
    assert len(cellglot.load_model("blood-exceiver").classes) == 4
    cellglot.annotate(few, "blood-exceiver", device="cpu")
    cellglot.embed(few, "blood-exceiver", device="cpu")
    cellglot.query(few, "a B cell", "human-langcell", device="cpu")
    assert {"cellglot_cell_type", "cellglot_query"} <= set(few.obs)
    corpus = cellglot.tokenize(cells, tmp_path / "tokens", tokenizer="rank-value", vocabulary="blood-exceiver")
    assert (
        corpus.tokenizer().vocabulary.token_ids == cellglot.load_model("blood-exceiver").tokenizer.vocabulary.token_ids
    )
    few.obs["kind"] = ["a", "b"] * 6
    done = cellglot.evaluate("blood-exceiver", few, tasks=["clustering"], labels="kind", baselines=False, device="cpu")
    assert "blood-exceiver" in done.table()
    tune = ["trainer.max_steps=1", "finetuning.unlikely_labels=unchecked", "trainer.eval_strategy=no"]
    cellglot.finetune(few, "blood-exceiver", tmp_path / "tuned", labels="kind", settings=tune)
    assert (tmp_path / "tuned" / "model.safetensors").exists()


def test_cells_are_annotated_without_naming_a_model(shipped, blood, cells, cellglot_command):
    assert default_model() == "blood-exceiver"
    few = blood[:12].copy()
    cellglot.annotate(few, device="cpu")
    done = cellglot_command("annotate", cells, "--device", "cpu")
    assert done.status == 0, done.err
    written = ad.read_h5ad("cells_annotated.h5ad")
    assert list(written.obs["cellglot_cell_type"]) == list(few.obs["cellglot_cell_type"])
    named = cellglot_command("annotate", "blood-exceiver", cells, "-o", "named.h5ad", "--device", "cpu")
    assert named.status == 0 and list(ad.read_h5ad("named.h5ad").obs["cellglot_cell_type"]) == list(
        few.obs["cellglot_cell_type"]
    )
    for words, message in (
        (("annotate", "a", "b", "c"), "pass a model and a file of cells, not 3 names"),
        (("annotate", "blood-exceiver"), "blood-exceiver is a model: name a file of cells after it"),
        (
            ("annotate", cells, "--candidates", "B cell", "-o", "x.h5ad"),
            "candidates: name the model that they are for",
        ),
        (("annotate", cells), "cells_annotated.h5ad"),
    ):
        refused = cellglot_command(*words)
        assert refused.status == 2 and message in refused.err


def test_the_models_are_listed(shipped, cellglot_command):
    listed = cellglot.models()
    assert [model.name for model in listed] == ["blood-exceiver", "human-langcell", "tissue-lora"]
    first = listed[0]
    assert first.types["monocyte"] == "CL:0000576" and first.tissues == ("blood",) and first.default
    assert first.size == sum(p.stat().st_size for p in (shipped / "blood-exceiver").rglob("*") if p.is_file())
    done = cellglot_command("models")
    for words in ("2 types: B cell; monocyte", "macro F1: 0.910 (0.900 to 0.920); logistic regression 0.800", "blood"):
        assert words in done.out
    facts = json.loads(cellglot_command("models", "--json").out)
    assert facts[0]["license"] == "cc-by-4.0" and facts[0]["scores"] == FACTS["scores"]


def test_an_installation_without_models_says_so(tmp_path, monkeypatch, blood, cellglot_command):
    monkeypatch.setattr(collection, "collection_folder", lambda: tmp_path / "none")
    assert cellglot.models() == [] and "no models" in cellglot_command("models").out
    with pytest.raises(ValueError, match="name a model: this installation ships none"):
        cellglot.annotate(blood[:5].copy())


def test_damaged_facts_name_their_file(shipped):
    (shipped / "blood-exceiver" / FACTS_FILE).write_text('{"family": "exceiver"')
    with pytest.raises(ValueError, match=r"blood-exceiver/collection.json is damaged"):
        cellglot.models()


def test_the_base_of_an_adapter_is_found_in_the_collection(shipped, gene_classifiers, tmp_path):
    from cellglot.modeling.adapter_folders import base_of

    adapter = tmp_path / "adapter"
    shutil.copytree(gene_classifiers["adapter"], adapter)
    settings = json.loads((adapter / "adapter_config.json").read_text())
    for named in ("/gone/site-packages/cellglot/model_cards/collection/human-langcell", "human-langcell"):
        (adapter / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": named}))
        assert base_of(adapter) == str(shipped / "human-langcell")
    (adapter / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": "/gone/model"}))
    assert base_of(adapter) == "/gone/model"


ROOT = Path(__file__).parents[2]


def rows_of(page, heading):
    """Rows of the first table below a heading of a page."""
    text = (ROOT / page).read_text(encoding="utf-8").split(f"{heading}\n", 1)[1]
    lines = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE).group().splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_pages_show_the_scores_of_the_models_that_ship():
    """Figures that are written in README and docs are those of the models' records."""
    measured, shown = {}, {}
    for model in (name for name in collection.shipped_models() if name.startswith("blood-")):
        record = json.loads(Path(cellglot.model_path(model), "collection_run.json").read_text())
        for row in record["scores"]:
            scores = (row["model"], row["baselines"]["logistic regression"])
            measured[model, row["data_set"], row["level"]] = [f"{s['macro_f1']['value']:.3f}" for s in scores]
        for name, _, *scores in rows_of("docs/models/collection.md", f"## `{model}`, measured"):
            shown[model, name, "coarse"], shown[model, name, "fine"] = scores[:2], scores[2:]
    assert shown == measured and len(shown) >= 14
    readme = (ROOT / "README.md").read_text(encoding="utf-8").split("## Measured results", 1)[1]
    facts = json.loads(Path(cellglot.model_path("blood-exceiver"), FACTS_FILE).read_text())
    for score in facts["scores"]:
        value, beside = score["value"], score["baselines"]["logistic regression"]
        assert re.search(rf"{value:.3f} for \w+\s+\w+[^(]*\((?:logistic regression )?{beside:.3f}\)", readme), score


@pytest.mark.parametrize("base", [model.name for model in cellglot.models() if model.purpose == "embedding"])
def test_the_pages_show_the_scores_of_a_base_that_ships(base):
    record = json.loads(Path(cellglot.model_path(base), "collection_run.json").read_text())
    assert record["better_than_principal_components"]
    measured = {}
    for row in record["scores"]:
        own, pca, random = (row["scores"][n] for n in ("this model", "principal components", "random weights"))
        bio = [f"{s['clustering']['avg_bio']:.3f}" for s in (own, pca, random)]
        others = (own, pca, random, row["scores"]["logistic regression"])
        measured[row["data_set"]] = [
            f"{row['cells']:,}", *bio, *(f"{s['few_labels']['10']['mean']:.3f}" for s in others)
        ]  # fmt: skip
    shown = {name: scores for name, *scores in rows_of("docs/models/collection.md", f"## `{base}`, measured")}
    assert shown == measured and len(shown) == 4
    trained = set(record["trained_on"])
    assert not trained & set(shown)
    licenses = {d["license"] for d in record["recipe"]["sets"] if d["name"] in trained}
    assert len(trained) >= 15 and not any("GPL" in text or "not stated" in text for text in licenses)


def test_a_base_that_ships_embeds_and_maps(blood, tmp_path):
    known = blood[blood.obs["cell_type"].isin(["CD19+ B", "CD14+ Monocyte", "CD56+ NK"])]
    reference, query = known[::2].copy(), known[1::2].copy()
    cellglot.embed(query, "human-exceiver", device="cpu")
    assert query.obsm["X_cellglot"].shape == (query.n_obs, 128)
    cellglot.index(reference, "human-exceiver", tmp_path / "index", columns=["cell_type"], device="cpu")
    truth = query.obs["cell_type"].to_numpy().astype(str)
    query.obs = query.obs[[]]
    cellglot.map(query, tmp_path / "index", device="cpu")
    assert (query.obs["cellglot_mapping_cell_type"].to_numpy().astype(str) == truth).mean() > 0.9


def test_the_model_that_ships_names_the_checksums_of_its_data():
    record = json.loads(Path(cellglot.model_path("blood-exceiver"), "collection_run.json").read_text())
    sums = {data["name"]: data["sha256"] for data in record["recipe"]["sets"] if data["training"]}
    assert len(sums) >= 15 and all(re.fullmatch("[0-9a-f]{64}", checksum) for checksum in sums.values())
    used = [data["license"] for data in record["recipe"]["sets"] if data["training"]]
    assert all(used) and not any(terms.startswith("GPL") for terms in used)  # of the cells; packages may be under it
