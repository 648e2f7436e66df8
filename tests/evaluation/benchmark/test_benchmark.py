"""The whole evaluation, from files and from Python: all tasks, kept results, table, pictures, errors."""

import json
import shutil

import numpy as np
import pytest
import torch

from cellglot.evaluation.benchmark.evaluate import evaluate_models
from cellglot.evaluation.benchmark.gene_sets import BASELINES as OF_GENES
from cellglot.evaluation.benchmark.jobs import BASELINES
from cellglot.evaluation.benchmark.models import load_evaluated_model, weights_checksum
from cellglot.evaluation.drug_response.baselines import BASELINES as OF_DRUGS
from cellglot.evaluation.labelled_cells import open_labelled_cells


MARKERS = {"B cell": ["CD79A", "CD74", "MS4A1"], "NK cell": ["GNLY", "NKG7", "PRF1"]}
SMALL = {"draws": 20, "marker_cells": 4, "shots": 3, "progress": False, "device": "cpu"}
MODELS = ["exceiver", "sccello", "langcell"]


@pytest.fixture(scope="module")
def cells(blood):
    """250 cells of the blood, in two made-up batches, two without a label."""
    cells = blood[:250].copy()
    cells.obs["batch"] = np.where(np.arange(250) % 2, "a", "b")
    labels = cells.obs["cell_type"].astype(str).to_numpy(dtype=object)
    labels[:2] = None
    cells.obs["cell_type"] = labels
    return cells


@pytest.fixture(scope="module")
def cells_file(cells, tmp_path_factory):
    path = tmp_path_factory.mktemp("cells") / "blood.h5ad"
    cells.write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def folders(vocabulary, cell_text_folder, blood, tmp_path_factory):
    """A classifier, a pretrained model and a model of texts, tiny and with random weights."""
    from cellglot.modeling import ExceiverConfig, ExceiverForSequenceClassification, ScCelloConfig, ScCelloModel
    from cellglot.tokenization import ExceiverTokenizer, RankValueTokenizer

    home = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    tokenizer = ExceiverTokenizer.from_vocabulary(vocabulary)
    names = sorted(set(blood.obs["cell_type"].astype(str)))[:4]
    sizes = {"gene_embedding_size": 8, "hidden_size": 8, "num_latents": 4, "num_hidden_layers": 1}
    config = ExceiverConfig(vocab_size=tokenizer.vocab_size, intermediate_size=16, **sizes)
    config.id2label, config.label2id = dict(enumerate(names)), {n: i for i, n in enumerate(names)}
    ExceiverForSequenceClassification(config).save_pretrained(home / "exceiver")
    tokenizer.save_pretrained(home / "exceiver")
    tokenizer = RankValueTokenizer.from_vocabulary(vocabulary)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = ScCelloConfig(vocab_size=tokenizer.vocab_size, num_cell_types=0, **sizes)
    ScCelloModel(config).save_pretrained(home / "sccello")
    tokenizer.save_pretrained(home / "sccello")
    shutil.copytree(cell_text_folder, home / "langcell")
    return {name: home / name for name in MODELS}


@pytest.fixture(scope="module")
def done(folders, cells_file, tmp_path_factory):
    output = tmp_path_factory.mktemp("evaluation") / "all"
    return evaluate_models(
        list(folders.values()), cells_file, batches="batch", markers=MARKERS, output=output, **SMALL
    )


def test_every_task_is_done_for_every_model_that_can(done):
    others = (*OF_DRUGS, *OF_GENES, "log counts + PCA + Harmony")
    assert done.record.columns == [*MODELS, *(name for name in BASELINES if name not in others)]
    results = done.results
    embeddings = {*MODELS, "log counts + PCA"}
    for task in ("novel", "annotation: 3 cells per class"):
        assert set(results[task]) == embeddings
    assert set(results["clustering"]) == set(results["integration"]) == embeddings | {"HVG"}
    assert set(results["annotation: probe"]) == embeddings | {"HVG + kNN", "most frequent class"}
    assert set(results["annotation: fine-tuned"]) == {"exceiver"}
    assert set(results["annotation: zero-shot by texts"]) == {"langcell"}
    assert set(results["markers"]) == embeddings | {"expression"}
    for by_model in results.values():
        for result in by_model.values():
            assert result.metrics and not result.undefined
            assert all(np.isfinite(s.value) for s in result.metrics.values())


def test_the_json_says_how_it_was_done(done, cells_file):
    content = json.loads((done.folder / "evaluation.json").read_text())
    assert content["data"]["cells_without_label"] == 2 and len(content["data"]["sha256"]) == 64
    assert content["arguments"]["seed"] == 0 and content["arguments"]["draws"] == 20
    assert {"python", "torch", "scikit-learn", "igraph"} <= set(content["software"])
    assert content["split"]["by"] == "cell, stratified by class"
    assert content["split"]["training_cells"] + content["split"]["test_cells"] == 248
    model = content["models"]["sccello"]
    assert len(model["weights_sha256"]) == 64 and model["embedding_size"] == 16 and model["genes"]["cells"] == 250
    assert content["results"]["markers"]["sccello"]["details"]["sampled_cells"] == 4
    accuracy = content["results"]["annotation: probe"]["sccello"]["metrics"]["accuracy"]
    assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
    assert content["finished"]["sccello"]["markers"]["seconds"] >= 0 and content["seconds"] > 0


def test_the_table_and_the_pictures(done):
    text = (done.folder / "evaluation.md").read_text()
    rows = [line for line in text.split("\n") if line.startswith("|")]
    assert rows[0].startswith("| | exceiver | sccello | langcell | *log counts + PCA* |")
    assert len({row.count("|") for row in rows}) == 1
    assert all(row.count("**") in (2, 4, 6, 8, 10, 12, 14) for row in rows[2:])
    assert "250 cells, 2 without a label" in text and str(done) in text
    names = {p.name for p in done.folder.glob("*.png")}
    assert {"scores.png", "umap_sccello_cell_type.png", "umap_sccello_batch.png"} <= names
    assert len(names) == 1 + 2 * 4 and (done.folder / "umap_sccello.html").is_file()


def test_what_is_finished_is_not_done_again(done, folders, cells_file, monkeypatch):
    from cellglot.evaluation.benchmark import evaluate as benchmark

    before = json.loads((done.folder / "evaluation.json").read_text())
    worked = []
    run = benchmark.EvaluationRecord.add
    monkeypatch.setattr(
        benchmark.EvaluationRecord, "add", lambda self, *given: (worked.append(given[:2]), run(self, *given))
    )
    again = {"batches": "batch", "markers": MARKERS, "output": done.folder}
    evaluate_models(list(folders.values()), cells_file, **again, **SMALL)
    assert worked == []
    content = json.loads((done.folder / "evaluation.json").read_text())
    assert content["results"] == before["results"] and content["models"] == before["models"]
    evaluate_models([folders["sccello"]], cells_file, ["annotation"], **again, **(SMALL | {"shots": 2}))
    assert {name for name, task in worked if task == "annotation"} == {
        "sccello", "log counts + PCA", "HVG + kNN", "most frequent class"
    } and {task for _, task in worked} == {"annotation"}  # fmt: skip
    content = json.loads((done.folder / "evaluation.json").read_text())
    assert set(content["results"]["annotation: 2 cells per class"]) == {"sccello", "log counts + PCA"}
    assert set(content["results"]["annotation: 3 cells per class"]) == {"exceiver", "langcell"}
    evaluate_models([folders["sccello"]], cells_file, ["annotation"], **again, **SMALL)


def test_another_file_of_cells_is_not_mixed_in(done, folders, cells):
    with pytest.raises(
        ValueError, match="is an evaluation with a different .*cells.*: use another folder, or overwrite"
    ):
        evaluate_models([folders["sccello"]], cells[:100].copy(), ["clustering"], output=done.folder, **SMALL)


def test_the_same_from_python_without_a_folder(done, folders, cells):
    model = load_evaluated_model(folders["sccello"], device="cpu")
    found = evaluate_models([model], cells, ["clustering", "annotation"], with_baselines=False, **SMALL)
    assert found.folder is None and found.record.columns == ["sccello"]
    for task in ("clustering", "annotation: probe"):
        assert found.results[task]["sccello"].metrics == done.results[task]["sccello"].metrics


def test_cells_without_batches_or_donors_say_so(folders, cells):
    tasks = ["integration", "annotation"]
    found = evaluate_models({"m": folders["sccello"]}, cells, tasks, with_baselines=False, **SMALL)
    assert found.results["integration"]["m"].undefined["asw_batch"] == "no batches were given"
    assert "– (1)" in found.table() and "1. no batches were given" in found.table()
    assert "the cells have no donors" in found.record.summary()


def test_one_class_alone_is_undefined_everywhere(folders, cells):
    same = cells.copy()
    same.obs["cell_type"] = "CD19+ B"
    found = evaluate_models([folders["exceiver"], folders["langcell"]], same, markers=MARKERS, **SMALL)
    assert found.results["clustering"]["exceiver"].metrics == {}
    annotation = {row: by_model for row, by_model in found.results.items() if row.startswith("annotation")}
    assert {name for by_model in annotation.values() for name in by_model} == {
        "langcell", "exceiver", "log counts + PCA", "HVG + kNN", "most frequent class"
    }  # fmt: skip
    for row, by_model in annotation.items():
        for name, result in by_model.items():
            if row != "annotation: fine-tuned":  # the classifier chooses among four classes
                assert result.metrics == {} and "1 class" in result.undefined["accuracy"], (row, name)
    for name in ("exceiver", "log counts + PCA"):
        assert "1 cell type" in found.results["novel"][name].undefined["accuracy"]
    assert "auroc" in found.results["markers"]["exceiver"].metrics


def test_classes_of_donors_that_training_never_saw(folders, cells):
    cells = cells.copy()
    lone = cells.obs["cell_type"] == "CD34+"
    cells.obs["donor_id"] = np.where(lone, "other", "one")
    found = evaluate_models([folders["sccello"]], cells, ["annotation"], donors="donor_id", seed=1, **SMALL)
    probe = found.results["annotation: probe"]["sccello"]
    assert found.record.content["split"]["held_out"] == ["other"]
    assert probe.metrics["accuracy"].value == 0 and probe.details["unseen_classes"] == {"CD34+": int(lone.sum())}
    assert "Classes that are not in the training cells, counted as errors: CD34+" in found.record.summary()


def test_a_classifier_of_other_classes_says_so(folders, cells):
    cells = cells.copy()
    cells.obs["cell_type"] = [f"made-up type {i % 3}" for i in range(cells.n_obs)]
    found = evaluate_models([folders["exceiver"]], cells, ["annotation"], with_baselines=False, **SMALL)
    why = found.results["annotation: fine-tuned"]["exceiver"].undefined["accuracy"]
    assert "exceiver predicts" in why and "none matches a label of the cells" in why


def test_cells_without_known_genes_are_left_out(folders, cells):
    empty = cells.copy()
    counts = empty.X.tolil()
    counts[5:8] = 0
    empty.X = counts.tocsr()
    model = load_evaluated_model(folders["sccello"], device="cpu")
    found = evaluate_models([model], empty, ["clustering", "annotation"], with_baselines=False, **SMALL)
    assert found.results["clustering"]["sccello"].details["cells_without_embedding"] == 3


def test_the_checksum_is_that_of_the_weights(folders):
    first, second = load_evaluated_model(folders["sccello"]), load_evaluated_model(folders["sccello"])
    assert first.facts["weights_sha256"] == second.facts["weights_sha256"]
    with torch.no_grad():
        second.network.embeddings.norm.bias[0] += 1e-3
    assert weights_checksum(second.network) != first.facts["weights_sha256"]


def test_the_revision_of_a_repository_is_recorded(folders, repository):
    commit = repository(folders["sccello"], "lab/model")
    assert load_evaluated_model("lab/model").facts["revision"] == commit
    assert load_evaluated_model(folders["sccello"]).facts["revision"] is None


ERRORS = {
    "no model": ({"models": ["empty"]}, "empty holds no config.json: it is not a folder of a model"),
    "nowhere": ({"models": ["nowhere"]}, "nowhere is not a folder, and not a repository of the Hub"),
    "another type": ({"models": ["bert"]}, "model type 'bert' is unsupported; there are exceiver, langcell, sccello"),
    "unknown task": ({"tasks": ["cooking"]}, "unknown task 'cooking': tasks are clustering, integration"),
    "no task": ({"tasks": []}, "task none"),
    "no markers": ({"tasks": ["markers"]}, "the task 'markers' needs a table of marker genes"),
    "no labels": ({"labels": "kind"}, "no column 'kind' in obs"),
    "twice": ({"models": ["sccello", "sccello"]}, "two models have the name 'sccello'"),
    "baseline's name": ({"models": {"HVG + kNN": "sccello"}}, "'HVG \\+ kNN' is the name of a baseline"),
    "output": ({"output": "file"}, "file is a file: choose a folder"),
    "marker type": ({"markers": MARKERS, "marker_types": {"CD34+": "C cell"}}, "no cell type 'C cell'"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_what_is_wrong_is_named(case, folders, cells_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "sccello").symlink_to(folders["sccello"])
    changes, message = ERRORS[case]
    given = {"models": ["sccello"], "cells": cells_file, "with_baselines": False} | changes | SMALL
    with pytest.raises(ValueError, match=message):
        evaluate_models(given.pop("models"), given.pop("cells"), **given)


def test_cells_that_name_nothing_to_score_by(folders, cells):
    plain = cells.copy()
    plain.obs = plain.obs[[]]
    with pytest.raises(ValueError, match="has no column of cell types: pass a column of obs"):
        evaluate_models([folders["sccello"]], plain, **SMALL)


def test_the_command(folders, cells_file, tmp_path, capsys, monkeypatch):
    import typer

    from cellglot.cli import app

    table = tmp_path / "markers.tsv"
    table.write_text("cell_type\tgene\nB cell\tCD79A,CD74,MS4A1\n")
    typer.main.get_command(app).main(
        ["evaluate", f"small={folders['sccello']}", "--cells", str(cells_file), "-o", str(tmp_path / "out"),
         "--tasks", "clustering,markers", "--markers", str(table), "--marker-cells", "2", "--device", "cpu",
         "--marker-type", "CD34+=B cell", "--no-baselines"],
        standalone_mode=False,
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert "| | small |" in printed and "marker genes: AUROC, mean over cells" in printed
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert content["arguments"]["tasks"] == ["clustering", "markers"]
    assert content["results"]["markers"]["small"]["details"]["markers_found_as"]["CD34+"] == ["B cell"]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_classifier_of_genes_has_an_encoder_and_no_classes_of_cells(folders, cells, tmp_path, method):
    from transformers import AutoTokenizer

    from cellglot.modeling import LangCellForTokenClassification, LangCellModel
    from cellglot.training.finetuning.adapters import put_adapter, save_adapter

    names = sorted({str(label) for label in cells.obs["cell_type"] if label is not None})[:2]
    labels = {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
    network = LangCellForTokenClassification.from_pretrained(folders["langcell"], **labels)
    if method == "lora":
        save_adapter(put_adapter(network, "lora", ("classifier",)), tmp_path / "genes")
    else:
        network.save_pretrained(tmp_path / "genes")
        AutoTokenizer.from_pretrained(folders["langcell"]).save_pretrained(tmp_path / "genes")
    model = load_evaluated_model(tmp_path / "genes", device="cpu")
    assert model.facts["model_class"] == "LangCellForTokenClassification" and model.classes == []
    whole = LangCellModel.from_pretrained(folders["langcell"]).eval()
    batch = model.tokenizer(cells[:3], return_tensors="pt")
    with torch.no_grad():
        expected = whole.cell_model(**batch).last_hidden_state[:, 0]
    found = model.embed(open_labelled_cells(cells[:3].copy()), progress=False)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    done = evaluate_models([model], cells, ["annotation"], with_baselines=False, **SMALL)
    assert "annotation: fine-tuned" not in done.results


def test_an_adapter_is_scored_by_its_predictions_and_its_encoder(folders, cells, tmp_path):
    from cellglot.modeling import ScCelloForSequenceClassification
    from cellglot.training.finetuning.adapters import put_adapter, save_adapter

    names = sorted({str(label) for label in cells.obs["cell_type"] if label is not None})
    config = ScCelloForSequenceClassification.config_class.from_pretrained(folders["sccello"])
    config.id2label, config.label2id = dict(enumerate(names)), {n: i for i, n in enumerate(names)}
    torch.manual_seed(1)
    network = ScCelloForSequenceClassification.from_pretrained(folders["sccello"], config=config)
    save_adapter(put_adapter(network, "lora", ("classifier",)), tmp_path / "adapter")
    model = load_evaluated_model(tmp_path / "adapter", device="cpu")
    assert model.classes == names and model.facts["base_model"] == str(folders["sccello"])
    found = evaluate_models([model], cells, ["annotation", "markers"], markers=MARKERS, with_baselines=False, **SMALL)
    assert set(found.results["annotation: fine-tuned"]["adapter"].metrics) >= {"accuracy", "macro_f1", "auroc"}
    assert found.results["markers"]["adapter"].metrics["auroc"].value > 0
