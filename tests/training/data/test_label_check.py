"""Cells with unlikely labels: found where they were planted, counted, left out if asked; overlapping classes stay."""

import dataclasses
import json

import numpy as np
import pytest

from cellglot.tokenization import tokenize_corpus
from cellglot.training.config import TrainingConfig, load_config
from cellglot.training.data.expression import CorpusExpression
from cellglot.training.data.label_check import check_labels
from cellglot.training.data.labels import labels_of
from cellglot.training.finetuning.finetune import finetune
from cellglot.training.run import RUN_FILE


B, MONOCYTE, T = "CD19+ B", "CD14+ Monocyte", "CD8+ Cytotoxic T"
CLASSES = [MONOCYTE, B, T]


@pytest.fixture(scope="module")
def planted(blood, tmp_path_factory):
    """Blood cells of three types, 8 of the B cells among them labelled as monocytes, as tokens of both kinds."""
    cells = blood[blood.obs["cell_type"].isin(CLASSES)].copy()
    true = cells.obs["cell_type"].astype(str).to_numpy()
    wrong = np.flatnonzero(true == B)[::11][:8]
    given = true.copy()
    given[wrong] = MONOCYTE
    cells.obs["cell_type"] = given
    cells.obs["true_type"] = true
    folder = tmp_path_factory.mktemp("planted")
    cells.write_h5ad(folder / "cells.h5ad")
    common = {"validation_fraction": 0.1, "processes": 1, "progress": False, "obs_columns": ["true_type"]}
    options = {"add_cls_token": True, "return_expression_values": True}
    return {
        "exceiver": tokenize_corpus([folder / "cells.h5ad"], folder / "exceiver", **common),
        "rank-value": tokenize_corpus(
            [folder / "cells.h5ad"], folder / "rank", tokenizer="rank-value", tokenizer_options=options, **common
        ),
        "without values": tokenize_corpus(
            [folder / "cells.h5ad"],
            folder / "plain",
            tokenizer="rank-value",
            tokenizer_options={"add_cls_token": True},
            **common,
        ),
    }


def numbers(corpus, column="cell_type"):
    return np.array([CLASSES.index(name) for name in labels_of(corpus, "train", column)])


@pytest.mark.parametrize("kind", ["exceiver", "rank-value"])
def test_planted_labels_are_found(planted, kind):
    corpus = planted[kind]
    given, true = numbers(corpus), numbers(corpus, "true_type")
    check = check_labels(CorpusExpression(corpus), given)
    swapped = given != true
    assert swapped.sum() >= 6
    assert (check.looks_like[swapped] == true[swapped]).all()
    assert (check.unlikely & ~swapped).mean() < 0.03
    assert check.pairs(given, CLASSES)[MONOCYTE][B] >= swapped.sum()
    assert (check.margin[check.unlikely] < 0).all() and not np.isnan(check.margin).any()


def test_both_kinds_of_tokens_say_the_same(planted):
    margins = {}
    for kind in ("exceiver", "rank-value"):
        margins[kind] = check_labels(CorpusExpression(planted[kind]), numbers(planted[kind])).margin
    assert np.corrcoef(margins["exceiver"], margins["rank-value"])[0, 1] > 0.999, "but for values that were clipped"


def test_margins_are_differences_of_correlations(planted):
    """By dense matrices, with the genes and fifths that the function documents."""
    corpus = planted["rank-value"]
    labels = numbers(corpus)
    logs = np.concatenate([part.toarray() for part in CorpusExpression(corpus).logs()])
    fifths = np.random.default_rng([7, 2]).integers(5, size=len(labels))
    margin = check_labels(CorpusExpression(corpus), labels, seed=7).margin
    for cell in range(0, len(labels), 17):
        rest = fifths != fifths[cell]
        means = np.array([logs[rest & (labels == c)].mean(axis=0) for c in range(3)])
        genes = np.argsort(-means.std(axis=0), kind="stable")[:500]
        near = [np.corrcoef(logs[cell, genes], mean[genes])[0, 1] for mean in means]
        own = near.pop(labels[cell])
        assert margin[cell] == pytest.approx(own - max(near), abs=1e-4)


def test_classes_without_a_difference_are_left_alone(planted):
    corpus = planted["rank-value"]
    labels = np.random.default_rng(0).integers(3, size=len(numbers(corpus)))
    check = check_labels(CorpusExpression(corpus), labels)
    assert (check.margin < 0).mean() > 0.4 and check.unlikely.mean() < 0.02


def test_small_classes_and_cells_without_label_are_not_checked(planted):
    corpus = planted["rank-value"]
    labels = numbers(corpus)
    labels[np.flatnonzero(labels == 2)[9:]] = -1
    check = check_labels(CorpusExpression(corpus), labels)
    assert np.isnan(check.margin[labels == -1]).all()
    assert not check.unlikely[(labels == -1) | (labels == 2)].any()


# -------------------------------------------------------------------- in fine-tuning


def settings(**finetuning):
    config = load_config("exceiver_small_finetune.yaml", ["trainer.max_steps=1", "trainer.eval_strategy=no"])
    sizes = {"gene_embedding_size": 8, "hidden_size": 8, "num_latents": 2}
    return dataclasses.replace(config, model=config.model | sizes, finetuning=finetuning)


def test_unlikely_labels_are_left_out_or_kept_and_counted(planted, tmp_path, capsys):
    facts = {}
    for how in ("leave_out", "keep", "unchecked"):
        finetune(settings(unlikely_labels=how), None, planted["exceiver"], tmp_path / how)
        facts[how] = json.loads((tmp_path / how / RUN_FILE).read_text())
    printed = capsys.readouterr().out
    found = facts["keep"]["unlikely_labels"]["looks_like"]
    number = sum(n for others in found.values() for n in others.values())
    assert found[MONOCYTE][B] >= 6
    assert facts["leave_out"]["unlikely_labels"] == {"left_out": True, "looks_like": found}
    assert facts["keep"]["unlikely_labels"]["left_out"] is False and facts["unchecked"]["unlikely_labels"] is None
    assert facts["keep"]["training_cells"] - facts["leave_out"]["training_cells"] == number
    assert facts["keep"]["held_out_cells"] == facts["leave_out"]["held_out_cells"], "held-out cells keep their labels"
    for how in ("leave_out", "keep"):
        assert sum(facts[how]["cells_of_each_class"].values()) == facts[how]["training_cells"]
    assert f"and {number} training cells that look like another class: {MONOCYTE} like {B}" in printed
    assert "finetuning.unlikely_labels=leave_out leaves them out" in printed


def test_small_configurations_leave_them_out():
    for kind in ("exceiver", "langcell", "sccello"):
        assert load_config(f"{kind}_small_finetune.yaml", []).finetuning["unlikely_labels"] == "leave_out"


def test_tokens_without_values_and_settings_that_there_are_not(planted, tmp_path):
    model = {"type": "sccello", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    trainer = {"max_steps": 1, "use_cpu": True, "save_strategy": "no"}

    def run(**finetuning):
        made = TrainingConfig(model=model, trainer=trainer, finetuning=finetuning)
        finetune(made, None, planted["without values"], tmp_path / str(finetuning.get("unlikely_labels")))

    run()
    assert json.loads((tmp_path / "None" / RUN_FILE).read_text())["unlikely_labels"] is None
    with pytest.raises(
        ValueError, match=r"no expression values, which the check of labels needs.*return_expression_v"
    ):
        run(unlikely_labels="leave_out")
    with pytest.raises(ValueError, match="unlikely_labels 'drop': it is one of keep, leave_out, unchecked"):
        run(unlikely_labels="drop")


@pytest.mark.parametrize("kind", ["exceiver", "langcell", "sccello"])
def test_small_configurations_serve_values_too(planted, kind, tmp_path):
    """What they say of classes means nothing there."""
    changes = ["trainer.max_steps=1", "trainer.eval_strategy=no", "trainer.use_cpu=true"]
    config = load_config(f"{kind}_small_finetune.yaml", changes)
    corpus = planted["exceiver" if kind == "exceiver" else "rank-value"]
    finetune(config, None, corpus, tmp_path, task="regression", label_column="cell_index")
    assert json.loads((tmp_path / RUN_FILE).read_text())["task"] == "regression"
