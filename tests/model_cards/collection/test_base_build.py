"""Building a base: an encoder that is scored by its embedding of laboratories and tissues that it did not see."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression

import cellglot
from cellglot.model_cards.collection import base_card, embedding_scores
from cellglot.model_cards.collection.__main__ import check_base
from cellglot.model_cards.collection.builds import build
from cellglot.model_cards.collection.recipe import RecipeError, read_recipe
from cellglot.modeling import collection


@pytest.fixture(scope="module")
def base(data, checked_here, tmp_path_factory):
    """A base of two data sets; a third one is never seen."""
    folder = tmp_path_factory.mktemp("base")
    sets = yaml.safe_load((data / "data_sets.yaml").read_text())
    sets["third"] |= {"laboratory": "four", "training": False, "tissue": "spleen"}
    sets["second"]["laboratory"] = "two"
    recipe = yaml.safe_load((data / "tiny-exceiver.yaml").read_text()) | {
        "name": "human-tiny", "kind": "base", "default": False, "data": ["first", "second", "third"], "foreign": None,
        "held_out": [["one"]],
    }  # fmt: skip
    (folder / "data_sets.yaml").write_text(yaml.safe_dump(sets, sort_keys=False))
    (folder / "human-tiny.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    torch.set_num_threads(1)
    return build(str(folder / "human-tiny.yaml"), data, folder / "build")


def test_a_base_is_an_encoder_without_a_head(base, blood):
    weights = load_file(base / "model.safetensors")
    assert not any(name.startswith(("classifier", "decoder")) for name in weights)
    assert {w.dtype for w in weights.values()} == {torch.float16}
    assert not cellglot.load_model(base).classes
    assert cellglot.embed(blood[:5].copy(), base, device="cpu", copy=True).obsm["X_cellglot"].shape == (5, 8)


def test_its_record_and_its_card_have_scores_beside_plain_methods(base):
    record = json.loads((base / "collection_run.json").read_text())
    seen, unseen = record["scores"]
    assert (seen["data_set"], seen["tissue_seen"]) == ("first", True) and seen["types"] >= 2
    assert (unseen["data_set"], unseen["tissue_seen"], unseen["tissue"]) == ("third", False, "spleen")
    for row in record["scores"]:
        assert set(row["scores"]) == {
            "this model", "random weights", "principal components", "logistic regression"
        }  # fmt: skip
        for scores in row["scores"].values():
            assert all(len(few["draws"]) == 5 and 0 <= few["mean"] <= 1 for few in scores["few_labels"].values())
        assert row["scores"]["this model"]["clustering"]["avg_bio"] <= 1
    means = base_card.mean_scores(record["scores"], True)
    own, components = means["this model"], means["principal components"]
    assert record["better_than_principal_components"] == all(own[name] > components[name] for name in own)
    card = (base / "README.md").read_text()
    for words in (
        "| third | spleen, never seen |",
        "random weights",
        "principal components",
        "AvgBIO",
        "| part first |",
    ):
        assert words in card, words


def test_a_base_is_listed_trained_on_and_embeds_by_its_name(base, blood, tmp_path, monkeypatch):
    shutil.copytree(base, tmp_path / "collection" / "human-tiny")
    monkeypatch.setattr(collection, "collection_folder", lambda: tmp_path / "collection")
    (listed,) = cellglot.models()
    assert listed.purpose == "embedding" and listed.types["B cell"] == "CL:0000236" and not listed.default
    assert {score["name"].split(",")[0] for score in listed.scores} == {"clustering AvgBIO", "ten labels a type"}
    assert set(listed.scores[0]["baselines"]) == {"random weights", "principal components"}
    cells = blood[blood.obs["cell_type"].astype(str).isin(["CD19+ B", "CD14+ Monocyte"])].copy()
    cells.obs["kind"] = cells.obs["cell_type"].astype(str)
    tune = ["trainer.max_steps=3", "trainer.eval_strategy=no", "trainer.save_strategy=no"]
    cellglot.finetune(cells, "human-tiny", tmp_path / "tuned", labels="kind", settings=tune)
    assert cellglot.load_model(tmp_path / "tuned").classes == ("CD14+ Monocyte", "CD19+ B")


def test_a_base_that_loses_is_not_installed(base, tmp_path):
    loser = tmp_path / "human-tiny"
    loser.mkdir()
    (loser / "collection_run.json").write_text(json.dumps({"better_than_principal_components": False}))
    with pytest.raises(RecipeError, match="human-tiny loses to principal components"):
        check_base(loser)
    (loser / "collection_run.json").write_text(json.dumps({"better_than_principal_components": True}))
    check_base(loser)
    recipe = yaml.safe_load((base.parent.parent / "human-tiny.yaml").read_text()) | {"kind": "basis"}
    shutil.copy(base.parent.parent / "data_sets.yaml", tmp_path)
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(RecipeError, match="kind 'basis': it is one of classifier, base"):
        read_recipe(str(tmp_path / "wrong.yaml"))


def test_few_labels_are_drawn_alike_for_all_features():
    random = np.random.default_rng(1)
    labels = np.repeat(["a", "b", "c"], [60, 30, 8])
    features = random.normal(size=(98, 4)) + 3 * (labels[:, None] == np.array(["a", "b", "c", "a"]))
    drawn = embedding_scores.drawn_cells(labels, 10, [0, 10, 0])
    assert [int((labels[drawn] == name).sum()) for name in "abc"] == [10, 10, 4]
    found = embedding_scores.few_label_scores(features, labels, numbers=(10,), draws=2)
    assert found["10"]["mean"] > 0.9 and found == embedding_scores.few_label_scores(features, labels, (10,), 2)
    scaled = embedding_scores.few_label_scores(7 * features + 3, labels, (10,), 2)
    assert scaled == found  # the unit of an embedding does not count
    sparse = embedding_scores.few_label_scores(csr_matrix(np.maximum(features, 0)), labels, (10,), 1)
    test = np.setdiff1d(np.arange(98), drawn)
    model = LogisticRegression(max_iter=300).fit(np.maximum(features, 0)[drawn], labels[drawn])
    right = model.predict(np.maximum(features, 0)[test]) == labels[test]
    assert sparse["10"]["draws"][0] == pytest.approx(right.mean(), abs=0.1)
    moved = embedding_scores.transfer_scores(features, labels, features[::2], labels[::2], (5,), 1)
    assert moved["5"]["mean"] > 0.9
    assert embedding_scores.frequent(np.array(["a"] * 25 + [""] * 30 + ["b"] * 3)).sum() == 25
