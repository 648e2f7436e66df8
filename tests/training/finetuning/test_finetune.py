import json

import anndata as ad
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from cellglot.tokenization.corpus.tokenize import tokenize_corpus
from cellglot.training.config import TrainingConfig
from cellglot.training.finetuning.cells import corpus_for, divide_as_fits
from cellglot.training.finetuning.finetune import finetune
from cellglot.training.pretraining.pretrain import pretrain
from cellglot.training.run import RUN_FILE


@pytest.fixture(scope="module")
def classifier(pretrained, corpus, tiny_training, tmp_path_factory):
    """A classifier after an epoch of nine steps and one more."""
    folder = tmp_path_factory.mktemp("finetuned") / "model"
    settings = tiny_training(
        "trainer.max_steps=10",
        "trainer.per_device_train_batch_size=64",
        "trainer.learning_rate=1e-2",
        "trainer.eval_strategy=epoch",
    )
    settings.data["mask_fraction"] = 0.2
    settings.model = {}
    return folder, finetune(settings, pretrained, corpus, folder)


@pytest.fixture(scope="module")
def labelled(pretrained, blood, tmp_path_factory):
    """Some cells whose metadata are of every kind, tokenized with the model's vocabulary."""
    cells = blood[:120].copy()
    types = cells.obs["cell_type"].astype(str).to_numpy(dtype=object)
    types[::10] = None
    cells.obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical(types),
            "one": "only this",
            "cluster": np.arange(120) % 3,
            "score": np.where(np.arange(120) % 4 == 0, np.nan, np.arange(120) % 2),
            "empty": np.nan,
        },
        index=cells.obs_names,
    )
    folder = tmp_path_factory.mktemp("labelled")
    cells.write_h5ad(folder / "cells.h5ad")
    return tokenize_corpus(
        [folder / "cells.h5ad"],
        folder / "corpus",
        vocabulary=pretrained,
        obs_columns=["one", "cluster", "score", "empty"],
        validation_fraction=0.25,
        processes=1,
        progress=False,
    )


@pytest.fixture
def short(tiny_training):
    """One small step, without changes to the model."""

    def make(*changes):
        config = tiny_training("trainer.max_steps=1", "trainer.per_device_train_batch_size=32", *changes)
        return TrainingConfig(trainer=config.trainer, optimizer=config.optimizer)

    return make


def record(folder):
    return json.loads((folder / RUN_FILE).read_text())


def test_both_losses_fall_and_are_logged(classifier):
    folder, metrics = classifier
    logged = [e for e in record(folder)["log"] if "loss" in e]
    for name in ("classification_loss", "expression_loss"):
        values = [e[name] for e in logged]
        assert np.isfinite(values).all()
        assert np.mean(values[-3:]) < np.mean(values[:3])
    assert 0 < metrics["eval_macro_f1"] < 1


def test_classes_are_saved(classifier, corpus, blood):
    folder, metrics = classifier
    names = sorted(blood.obs["cell_type"].unique())
    config = json.loads((folder / "config.json").read_text())
    assert config["id2label"] == {str(i): name for i, name in enumerate(names)}
    assert config["label2id"] == {name: i for i, name in enumerate(names)}
    assert {path.suffix for path in folder.iterdir()} == {".safetensors", ".json", ".py"}
    facts = record(folder)
    assert facts["classes"] == names
    assert (facts["training_cells"], facts["held_out_cells"]) == (552, 148)
    assert facts["cells_without_label"] == facts["held_out_cells_of_other_classes"] == 0


def test_the_saved_classifier_gives_the_same_accuracy(classifier, blood, corpus):
    folder, metrics = classifier
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    held_out = pq.read_table(corpus.shards("validation")[0], columns=["cell_id"])["cell_id"].to_pylist()
    cells = blood[held_out]
    with torch.no_grad():
        predicted = model(**tokenizer(cells, return_tensors="pt")).logits.argmax(1).tolist()
    names = [model.config.id2label[i] for i in predicted]
    assert np.mean(names == cells.obs["cell_type"].to_numpy()) == pytest.approx(metrics["eval_accuracy"], abs=0.01)


def test_cells_without_label_are_left_out_and_counted(pretrained, labelled, short, tmp_path, capsys):
    finetune(short(), pretrained, labelled, tmp_path / "model")
    facts = record(tmp_path / "model")
    assert facts["cells_without_label"] == 12
    others = facts["held_out_cells_of_other_classes"]
    assert others == sum(facts["other_classes"].values())
    assert facts["training_cells"] + facts["held_out_cells"] == 108
    assert "12 without label" in capsys.readouterr().out


def test_classes_can_be_numbers(pretrained, labelled, short, tmp_path):
    for column, classes, without in (("cluster", ["0", "1", "2"], 0), ("score", ["0", "1"], 30)):
        finetune(short(), pretrained, labelled, tmp_path / column, label_column=column)
        facts = record(tmp_path / column)
        assert facts["classes"] == classes
        assert facts["cells_without_label"] == without
        assert facts["log"][0]["classification_loss"] > 0.1


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("one", r"'one' has 1 classes among the training cells \(only this\): classification needs two"),
        ("empty", r"'empty' has 0 classes among the training cells \(none\)"),
        ("celltype", r"no column 'celltype' in .*; there are .*cell_type.*cluster"),
    ],
)
def test_columns_that_give_no_classes(pretrained, labelled, short, tmp_path, column, message):
    with pytest.raises(ValueError, match=message):
        finetune(short(), pretrained, labelled, tmp_path / "model", label_column=column)
    assert not (tmp_path / "model" / "model.safetensors").exists()


@pytest.fixture(scope="module")
def two_donors(pretrained, blood, tmp_path_factory):
    """Ninety cells of two donors: the second is held out, and half of its cells are of a class of its own."""
    cells = blood[:90].copy()
    donor = np.where(np.arange(90) < 70, "donor a", "donor b")
    kinds = np.where(np.arange(90) % 2, "of both", np.where(donor == "donor a", "of a", "of b"))
    cells.obs = pd.DataFrame({"cell_type": kinds, "donor_id": donor, "its donor": donor}, index=cells.obs_names)
    folder = tmp_path_factory.mktemp("donors")
    cells.write_h5ad(folder / "cells.h5ad")
    few = {"validation_fraction": 0.2, "processes": 1, "progress": False}
    return corpus_for(pretrained, [folder / "cells.h5ad"], folder, "its donor", **few)


def test_held_out_classes_without_training_cells_count_as_errors(pretrained, two_donors, short, tmp_path, capsys):
    assert two_donors.n_cells("validation") == 20
    changes = ("trainer.max_steps=12", "trainer.learning_rate=1e-2")
    metrics = finetune(short(*changes), pretrained, two_donors, tmp_path / "model")
    facts = record(tmp_path / "model")
    assert facts["held_out_cells"] == 20 and facts["divided_by"] == "donor_id"
    assert facts["other_classes"] == {"of b": 10} and facts["held_out_cells_of_other_classes"] == 10
    assert "which count as errors: of b (10)" in capsys.readouterr().out
    assert metrics["eval_accuracy"] <= 0.5
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    assert set(model.config.id2label.values()) == {"of a", "of both"}


def test_held_out_cells_of_unknown_classes_alone(pretrained, two_donors, short, tmp_path):
    with pytest.raises(ValueError, match=r"'its donor' has 1 classes among the training cells \(donor a\)"):
        finetune(short(), pretrained, two_donors, tmp_path / "model", label_column="its donor")


def test_one_donor_is_never_on_both_sides(pretrained, two_donors, short, tmp_path):
    config = short()
    config.finetuning = {"split": "stratified"}
    with pytest.raises(ValueError, match=r"holds out cells by donor_id; finetuning.split=stratified would put"):
        finetune(config, pretrained, two_donors, tmp_path / "model")
    assert divide_as_fits(short(), two_donors).finetuning == {}


@pytest.mark.parametrize("task", ["cell-type", "regression"])
def test_held_out_donors_without_a_label_are_named(pretrained, blood, short, tmp_path, task):
    """Donors are drawn before labels are looked at."""
    cells = blood[:90].copy()
    donor = np.where(np.arange(90) < 70, "d1", "d0")
    values = np.where(donor == "d0", np.nan, np.arange(90) % 2)
    cells.obs = pd.DataFrame({"mix": values, "donor_id": donor}, index=cells.obs_names)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    few = {"validation_fraction": 0.2, "processes": 1, "progress": False}
    corpus = corpus_for(pretrained, [tmp_path / "cells.h5ad"], tmp_path, "mix", **few)
    message = r"none of the 20 held-out cells \(donor d0\) of .* has a label in 'mix'.*or set trainer.eval_strategy=no"
    with pytest.raises(ValueError, match=message):
        finetune(
            short("trainer.eval_strategy=epoch"), pretrained, corpus, tmp_path / "x", task=task, label_column="mix"
        )
    finetune(short("trainer.eval_strategy=no"), pretrained, corpus, tmp_path / "x", task=task, label_column="mix")
    assert record(tmp_path / "x")["held_out_cells"] == 0


def test_a_corpus_with_statistics_of_its_own_is_refused(pretrained, blood, short, tmp_path):
    blood[:200].write_h5ad(tmp_path / "cells.h5ad")
    own = tokenize_corpus([tmp_path / "cells.h5ad"], tmp_path / "own", processes=1, progress=False)
    with pytest.raises(ValueError, match="was tokenized with another vocabulary than .*: tokenize with --vocabulary"):
        finetune(short(), pretrained, own, tmp_path / "model")


def test_wrong_changes_to_the_model(pretrained, corpus, short, tmp_path):
    for change, message in (({"poling": "mean"}, "is 'pooling' meant"), ({"pooling": "max"}, "pooling='max'")):
        config = short()
        config.model = change
        with pytest.raises(ValueError, match=message):
            finetune(config, pretrained, corpus, tmp_path / "model")


@pytest.mark.reference
def test_sorted_blood_cells_of_the_reference_data(reference_data, tiny_training, short, tmp_path):
    """All genes of a file with many; vocabulary, pretraining and classes of its own."""
    cells = ad.read_h5ad(reference_data / "cells" / "pbmc_sorted_all_genes.h5ad")[::8]
    cells.write_h5ad(tmp_path / "cells.h5ad")
    corpus = tokenize_corpus([tmp_path / "cells.h5ad"], tmp_path / "corpus", processes=1, progress=False)
    small = ["trainer.max_steps=1", "trainer.per_device_train_batch_size=32"]
    metrics = pretrain(tiny_training(*small), corpus, tmp_path / "model")
    assert np.isfinite(metrics["eval_masked_mse"])
    result = finetune(short("trainer.max_steps=2"), tmp_path / "model", corpus, tmp_path / "classifier")
    facts = record(tmp_path / "classifier")
    assert facts["classes"] == sorted(cells.obs["cell_type"].unique())
    assert facts["training_cells"] + facts["held_out_cells"] == cells.n_obs == 100
    assert 0 <= result["eval_accuracy"] <= 1


@pytest.fixture(scope="module")
def of_levels(blood, tmp_path_factory):
    """Cells of two data sets, whose labels stand at several levels."""
    cells = blood[:200].copy()
    fine = cells.obs["cell_type"].astype(str).to_numpy(dtype=object)
    cells.obs["batch"] = np.where(np.arange(200) % 2, "first", "second")
    coarse = {"CD14+ Monocyte": "leukocyte", "CD19+ B": "B cell"}
    cells.obs["level"] = [coarse.get(t, t) if i % 4 == 0 else t for i, t in enumerate(fine)]
    cells.obs.loc[cells.obs_names[:3], "level"] = "erythrocyte"
    folder = tmp_path_factory.mktemp("levels")
    cells.write_h5ad(folder / "cells.h5ad")
    return folder / "cells.h5ad"


def test_labels_at_several_levels_train_the_finest_types(pretrained, of_levels, short, tmp_path, capsys):
    config = short()
    config.finetuning.update(levels=True, fewest_cells=5, balance=0.5, balance_by="batch", split="stratified")
    corpus = tokenize_corpus(
        [of_levels], tmp_path / "corpus", vocabulary=pretrained, obs_columns=["level", "batch"],
        validation_fraction=0.2, processes=1, progress=False,
    )  # fmt: skip
    metrics = finetune(config, pretrained, corpus, tmp_path / "model", label_column="level")
    facts, saved = record(tmp_path / "model"), json.loads((tmp_path / "model" / "config.json").read_text())
    assert facts["labels"]["leukocyte"]["classes"] == [c for c in facts["classes"] if c != "erythrocyte"]
    few, kept = facts["labels_with_too_few_cells"], facts["training_cells"] + facts["held_out_cells"]
    assert "erythrocyte" in few and not set(few) & set(facts["classes"]) and kept == 200 - sum(few.values())
    assert saved["label_cl_ids"]["B cell"] == "CL:0000236" and saved["problem_type"] == "single_label_classification"
    assert list(saved["id2label"].values()) == facts["classes"] and 0 <= metrics["eval_accuracy"] <= 1
    assert "and labels with too few cells: " in capsys.readouterr().out
    config.finetuning["balance_shares"] = {"nothing": 0.1}
    with pytest.raises(ValueError, match="balance_shares has nothing: no label has this name"):
        finetune(config, pretrained, corpus, tmp_path / "other", label_column="level")
