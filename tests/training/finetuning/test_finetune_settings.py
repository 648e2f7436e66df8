"""Settings of fine-tuning: weights of classes, early stopping, a probe's memory, resuming; and input that is wrong."""

import hashlib
import json

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from cellglot.modeling import ExceiverForSequenceClassification
from cellglot.modeling.adapters import load_with_adapter, weights_fingerprint
from cellglot.tokenization import tokenize_corpus
from cellglot.training.config import TrainingConfig
from cellglot.training.data.label_collators import balanced_weights
from cellglot.training.data.labels import gene_classes, read_gene_labels
from cellglot.training.data.splits import draw_by_stratum
from cellglot.training.families.records import FAMILIES
from cellglot.training.finetuning import finetune as module
from cellglot.training.finetuning.finetune import config_name, finetune, finetune_on
from cellglot.training.metrics import GeneClassMetrics, ValueMetrics
from cellglot.training.run import RUN_FILE


@pytest.fixture(scope="module")
def labelled(pretrained, blood, tmp_path_factory):
    """Some cells whose metadata are of every kind, tokenized with the model's vocabulary."""
    cells, folder = blood[:150].copy(), tmp_path_factory.mktemp("labelled")
    rare = np.where(np.arange(150) % 10 == 0, "rare", "common")
    number = np.where(np.arange(150) % 5 == 0, np.nan, np.arange(150) % 7)
    cells.obs = pd.DataFrame(
        {"cell_type": cells.obs["cell_type"].astype(str), "rare": rare, "number": number, "same": 3.0},
        index=cells.obs_names,
    )
    cells.write_h5ad(folder / "cells.h5ad")
    options = {"validation_fraction": 0.2, "test_fraction": 0.2, "processes": 1, "progress": False}
    options["obs_columns"] = ["rare", "number", "same"]
    return tokenize_corpus([folder / "cells.h5ad"], folder / "corpus", vocabulary=pretrained, **options)


def settings(trainer=(), data=(), **finetuning):
    given = {
        "max_steps": 4, "per_device_train_batch_size": 32, "learning_rate": 1e-2, "logging_steps": 1, "use_cpu": True,
        "eval_strategy": "no", "save_strategy": "no", "seed": 0,
    }  # fmt: skip
    return TrainingConfig(trainer=given | dict(trainer), data=dict(data), finetuning=finetuning)


def record(folder):
    return json.loads((folder / RUN_FILE).read_text())


# -------------------------------------------------------------------- what settings do


def test_classes_can_count_alike(pretrained, labelled, tmp_path):
    losses = {}
    for weights in ("balanced", "none"):
        config = settings({"max_steps": 1, "per_device_train_batch_size": 128}, class_weights=weights)
        finetune(config, pretrained, labelled, tmp_path / weights, label_column="rare")
        losses[weights] = record(tmp_path / weights)["log"][0]["classification_loss"]
    counts = record(tmp_path / "none")["cells_of_each_class"]
    assert losses["balanced"] != pytest.approx(losses["none"], rel=1e-3)
    weights = balanced_weights(np.array(list(counts.values())))
    assert weights @ list(counts.values()) == pytest.approx(sum(counts.values())), "the mean weight is one"
    assert weights[0] * counts["common"] == pytest.approx(weights[1] * counts["rare"])


def test_early_stopping_keeps_the_best_state(pretrained, labelled, tmp_path):
    """A rate at which training soon gets worse: it stops, and the adapter is that of the best evaluation."""
    trainer = {"max_steps": 40, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    config = settings(trainer | {"learning_rate": 0.3}, patience=2)
    metrics = finetune(config, pretrained, labelled, tmp_path / "model", method="lora")
    facts = record(tmp_path / "model")
    scores = {e["step"]: e["eval_macro_f1"] for e in facts["log"][:-1] if "eval_macro_f1" in e}
    assert facts["steps"] < 40 and facts["best_step"] <= facts["steps"] - 2
    assert metrics["eval_macro_f1"] == max(scores.values()) == facts["best_metric"] == scores[facts["best_step"]]
    saved = load_file(tmp_path / "model" / "adapter_model.safetensors")
    best = load_file(tmp_path / "model" / f"checkpoint-{facts['best_step']}" / "adapter_model.safetensors")
    assert all(torch.equal(saved[name], best[name]) for name in best)
    with pytest.raises(ValueError, match=r"finetuning.patience counts evaluations: set trainer.eval_strategy"):
        finetune(settings(patience=2), pretrained, labelled, tmp_path / "other")


def test_a_probe_computes_every_cell_once(pretrained, labelled, tmp_path, monkeypatch):
    made, original = [], module.EncoderMemory

    def remembering(*arguments):
        made.append(original(*arguments))
        return made[-1]

    monkeypatch.setattr(module, "EncoderMemory", remembering)
    metrics = finetune(settings({"max_steps": 12}), pretrained, labelled, tmp_path / "once", method="probe")
    facts = record(tmp_path / "once")
    every = facts["training_cells"] + facts["held_out_cells"] + facts["test_cells"]
    assert every <= made[0].computed < every + 32, "some rows fill up the last batch"
    monkeypatch.setattr(module, "_is_same_every_epoch", lambda collator: False)
    again = finetune(settings({"max_steps": 12}), pretrained, labelled, tmp_path / "always", method="probe")
    assert len(made) == 1 and {n for n in metrics if "runtime" not in n} == {n for n in again if "runtime" not in n}
    once, always = (load_file(tmp_path / name / "model.safetensors") for name in ("once", "always"))
    assert all(torch.allclose(once[name], always[name], atol=1e-4) for name in once)
    assert metrics["test_accuracy"] == pytest.approx(again["test_accuracy"])


def test_a_probe_of_masked_cells_computes_them_every_time(pretrained, labelled, tmp_path):
    config = settings(data={"mask_fraction": 0.2})
    finetune(config, pretrained, labelled, tmp_path / "model", method="probe")
    log = record(tmp_path / "model")["log"]
    assert log[0]["expression_loss"] > 0


def test_an_adapter_goes_on_from_its_last_checkpoint(pretrained, labelled, tmp_path):
    trainer = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "lr_scheduler_type": "constant"}
    finetune(settings(trainer), pretrained, labelled, tmp_path / "whole", method="lora")
    finetune(settings(trainer | {"max_steps": 3}), pretrained, labelled, tmp_path / "parts", method="lora")
    finetune(settings(trainer), pretrained, labelled, tmp_path / "parts", method="lora")
    whole, parts = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "parts"))
    assert all(torch.allclose(whole[name], parts[name], atol=1e-6) for name in whole)
    assert isinstance(load_with_adapter(tmp_path / "parts").get_base_model(), ExceiverForSequenceClassification)


def test_test_cells_are_scored_apart(pretrained, labelled, tmp_path):
    metrics = finetune(settings(), pretrained, labelled, tmp_path / "model", task="regression", label_column="number")
    facts = record(tmp_path / "model")
    assert {"eval_mse", "eval_r2", "eval_pearson", "test_mse", "test_r2"} <= set(metrics)
    assert facts["cells_without_label"] == 30
    assert facts["training_cells"] + facts["held_out_cells"] + facts["test_cells"] == 120
    assert facts["log"][0]["regression_loss"] > 0 and 2 < facts["target_mean"] < 4


def test_a_new_model_learns_from_a_corpus(corpus, tmp_path):
    sizes = {"type": "exceiver", "gene_embedding_size": 8, "hidden_size": 8, "num_latents": 4, "num_hidden_layers": 1}
    config = settings(data={"initialize_gene_embeddings": True})
    config.model = sizes | {"num_attention_heads": 2, "intermediate_size": 16}
    metrics = finetune(config, None, corpus, tmp_path / "model")
    assert 0 <= metrics["eval_accuracy"] <= 1 and "base_model" not in record(tmp_path / "model")
    assert (tmp_path / "model" / "gene_vocab.json").exists()
    with pytest.raises(ValueError, match="method 'lora' needs a pretrained model"):
        finetune(config, None, corpus, tmp_path / "other", method="lora")
    with pytest.raises(
        ValueError, match="model.type, without a pretrained model: model type None is unsupported; there are exc"
    ):
        finetune(settings(), None, corpus, tmp_path / "other")
    with pytest.raises(ValueError, match="pass labelled cells, or their tokens as a corpus"):
        finetune_on(config, None, None, None, tmp_path / "other")


# -------------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    ("options", "finetuning", "message"),
    [
        ({"task": "dosage"}, {}, "task 'dosage': the tasks are cell-type, gene, regression, multi-label"),
        ({"task": "gene", "gene_labels": {"CD3D": "a"}}, {}, "exceiver has no head for the task 'gene'"),
        ({"gene_labels": {"CD3D": "a"}}, {}, "a table of gene labels is for the task 'gene', not for 'cell-type'"),
        ({"method": "qlora"}, {}, "method 'qlora': it is one of full, probe, lora, dora, ia3"),
        ({}, {"rank": 8}, r"finetuning \(cell-type, full\): setting 'rank' does not exist"),
        ({"method": "lora"}, {"rnak": 8}, "is 'rank' meant"),
        ({}, {"class_weights": "square"}, "finetuning.class_weights 'square': it is balanced or none"),
        ({}, {"patience": 0}, "finetuning.patience 0: it is a number of evaluations, at least 1"),
        ({}, {"average_weights": 1.5}, "finetuning.average_weights 1.5: it is a share of the steps"),
        ({}, {"average_weights": 0.5, "patience": 2}, "average_weights a mean: set one of them to null"),
        ({}, {"split": "random"}, "finetuning.split 'random': it is one of corpus, stratified"),
        ({"task": "regression", "label_column": "cell_type"}, {}, "'cell_type' of .* '.*', which is not a number"),
        ({"task": "regression", "label_column": "same"}, {}, "all training cells have the same value 3 in 'same'"),
        ({"task": "regression", "label_column": "height"}, {}, "no column 'height' in .*; there are .*number"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(pretrained, labelled, tmp_path, options, finetuning, message):
    with pytest.raises(ValueError, match=message):
        finetune(settings(**finetuning), pretrained, labelled, tmp_path / "model", **options)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("method", ["probe", "ia3"])
def test_the_record_has_the_revision_of_a_repository(pretrained, labelled, repository, tmp_path, method):
    commit = repository(pretrained, "lab/base")
    finetune(settings({"max_steps": 1}), "lab/base", labelled, tmp_path / "model", method=method)
    facts = record(tmp_path / "model")
    assert (facts["base_model"], facts["base_model_revision"]) == ("lab/base", commit)
    assert facts["base_model_fingerprint"] == weights_fingerprint(pretrained)


def test_an_adapter_is_no_base(pretrained, labelled, tmp_path):
    finetune(settings({"max_steps": 1}), pretrained, labelled, tmp_path / "adapter", method="ia3")
    with pytest.raises(ValueError, match="adapter is an adapter: fine-tune its base model, or merge it first"):
        finetune(settings(), tmp_path / "adapter", labelled, tmp_path / "model")


def test_tables_of_gene_labels(vocabulary, tmp_path):
    symbols = {vocabulary.symbol(g): g for g in vocabulary.genes}
    (tmp_path / "genes.tsv").write_text("# from a paper\ngene\tclass\nCD3D\tT\nLYZ\tmonocyte\nnone\tT\nCD79A\t\n")
    assert read_gene_labels(tmp_path / "genes.tsv") == {"CD3D": "T", "LYZ": "monocyte", "none": "T"}
    found = gene_classes(read_gene_labels(tmp_path / "genes.tsv"), vocabulary)
    assert found == {vocabulary.token_ids[symbols["CD3D"]]: "T", vocabulary.token_ids[symbols["LYZ"]]: "monocyte"}
    (tmp_path / "genes.json").write_text('{"CD3D": "T"}')
    assert read_gene_labels(tmp_path / "genes.json") == {"CD3D": "T"}
    (tmp_path / "one.csv").write_text("gene\nCD3D\n")
    with pytest.raises(ValueError, match="has only one column"):
        read_gene_labels(tmp_path / "one.csv")
    (tmp_path / "twice.csv").write_text("gene,class\nCD3D,T\nCD3D,B\n")
    with pytest.raises(ValueError, match="names CD3D as 'T' and as 'B'"):
        read_gene_labels(tmp_path / "twice.csv")


# -------------------------------------------------------------------- parts


def test_the_table_of_gene_labels_is_recorded(blood, cell_text_folder, tmp_path):
    blood[:60].write_h5ad(tmp_path / "cells.h5ad")
    table = "gene,class\n" + "".join(f"{gene},{'ab'[i % 2]}\n" for i, gene in enumerate(blood.var_names[:40]))
    (tmp_path / "genes.csv").write_text(table)
    labels, found = read_gene_labels(tmp_path / "genes.csv"), []
    for name, given in (("first", tmp_path / "genes.csv"), ("second", labels)):
        config, folder = settings({"max_steps": 1}), tmp_path / name
        finetune_on(
            config, cell_text_folder, [tmp_path / "cells.h5ad"], None, folder, task="gene", method="probe",
            gene_labels=given,
        )  # fmt: skip
        found.append(record(folder)["gene_labels"])
    written = tmp_path / "second" / "gene_labels.json"
    assert found == [
        {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in (tmp_path / "genes.csv", written)
    ]
    assert read_gene_labels(written) == labels and not (tmp_path / "first" / "gene_labels.json").exists()


def test_every_stratum_is_drawn_from_and_none_whole():
    strata = ["a"] * 50 + ["b"] * 7 + ["c"] * 2 + ["d"] + [None] * 10
    drawn = draw_by_stratum(strata, 0.1, seed=0)
    taken = {s: int(drawn[[x == s for x in strata]].sum()) for s in ("a", "b", "c", "d", None)}
    assert taken == {"a": 5, "b": 1, "c": 1, "d": 0, None: 1}
    assert (drawn == draw_by_stratum(strata, 0.1, seed=0)).all()
    assert (drawn != draw_by_stratum(strata, 0.1, seed=1)).any()
    assert not draw_by_stratum(strata, 0.0, seed=0).any()


class Batch:
    def __init__(self, predictions, label_ids):
        self.predictions, self.label_ids = predictions, label_ids


def test_values_are_scored_as_by_scikit_learn():
    from scipy.stats import pearsonr
    from sklearn.metrics import mean_squared_error, r2_score

    random = np.random.default_rng(0)
    values, predicted, metrics = random.normal(size=20), random.normal(size=20), ValueMetrics()
    values[3] = np.nan
    assert metrics(Batch(predicted[:9, None], values[:9]), compute_result=False) == {}
    found, known = metrics(Batch(predicted[9:, None], values[9:])), ~np.isnan(values)
    pair = values[known], predicted[known]
    expected = {"mse": mean_squared_error(*pair), "r2": r2_score(*pair), "pearson": pearsonr(*pair)[0]}
    assert found == pytest.approx(expected, abs=1e-9)
    assert set(metrics(Batch(np.ones((2, 1)), np.array([1.0, 2.0])))) == {"mse", "r2"}, "no correlation of a constant"
    assert set(metrics(Batch(np.ones((2, 1)), np.array([1.0, 1.0])))) == {"mse"}
    assert metrics(Batch(np.ones((1, 1)), np.array([np.nan]))) == {}


def test_undefined_metrics_are_said_and_left_out(pretrained, labelled, tmp_path, capsys):
    """At a rate of nothing and with a head of zeros every prediction is the same: there is no correlation."""
    zero = ExceiverForSequenceClassification.from_pretrained(pretrained, num_labels=1)
    with torch.no_grad():
        zero.classifier[3].weight.zero_()
    zero.save_pretrained(tmp_path / "zero")
    zero_tokenizer = FAMILIES["exceiver"].tokenizer_class.from_pretrained(pretrained)
    zero_tokenizer.save_pretrained(tmp_path / "zero")
    config = settings({"max_steps": 1, "learning_rate": 0.0})
    options = {"task": "regression", "label_column": "number"}
    metrics = finetune(config, tmp_path / "zero", labelled, tmp_path / "model", **options)
    assert "eval_mse" in metrics and "eval_pearson" not in metrics
    assert "metrics that are undefined for these cells: eval_pearson, test_pearson" in capsys.readouterr().out
    assert record(tmp_path / "model")["undefined_metrics"] == ["eval_pearson", "test_pearson"]


def test_genes_are_scored_by_their_mean_over_cells():
    """Gene 7 is of class 1: one cell is sure of it, two are slightly of another mind."""
    metrics = GeneClassMetrics(2)
    scores = torch.tensor([[[0.0, 5.0], [9.0, 0.0]], [[0.3, 0.0], [0.0, 0.0]], [[0.3, 0.0], [0.0, 0.0]]])
    truth = torch.tensor([[[1, 7], [0, 8]], [[1, 7], [-100, 0]], [[1, 7], [-100, 0]]])
    assert metrics(Batch(scores[:1], truth[:1]), compute_result=False) == {}
    found = metrics(Batch(scores[1:], truth[1:]))
    assert found == pytest.approx({"accuracy": 1.0, "macro_f1": 1.0, "token_accuracy": 0.5, "token_macro_f1": 0.5})
    assert metrics(Batch(scores[:1], truth[:1] * 0 - 100)) == {}


def test_configurations_by_method():
    assert config_name("sccello", "full") == "sccello_finetune.yaml"
    assert config_name("exceiver", "lora") == config_name("exceiver", "probe") == "exceiver_finetune_adapter.yaml"
