import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor

from cellglot.modeling import LangCellModel
from cellglot.tokenization import tokenize_corpus
from cellglot.training.config import load_config
from cellglot.training.finetuning.few_shot import few_shot
from cellglot.training.finetuning.few_shot_objective import FewShotObjective
from cellglot.training.finetuning.few_shot_task import draw_cells
from cellglot.training.run import RUN_FILE


SETTINGS = [
    "trainer.num_train_epochs=1",
    "trainer.use_cpu=true",
    "trainer.learning_rate=1e-3",
    "data.template='cell type: {name}. '",
]


@pytest.fixture(scope="module")
def few_corpus(blood, cell_text_folder, tmp_path_factory):
    """Sixty blood cells of three labels; one has two cells, and some cells have none or one that is unknown."""
    folder = tmp_path_factory.mktemp("few")
    names = blood.obs["cell_type"].astype(str).to_numpy()
    chosen = [np.flatnonzero(names == n)[:k] for n, k in (("CD19+ B", 40), ("CD56+ NK", 25), ("CD34+", 3))]
    cells = blood[np.concatenate(chosen)].copy()
    labels = cells.obs["cell_type"].astype(str).to_numpy(dtype=object)
    labels[:5] = None
    cells.obs["cell_type"] = labels
    cells.write_h5ad(folder / "cells.h5ad")
    return tokenize_corpus(
        [folder / "cells.h5ad"],
        folder / "corpus",
        tokenizer="rank-value",
        tokenizer_options={"model_max_length": 40},
        vocabulary=cell_text_folder,
        validation_fraction=0.3,
        processes=1,
        progress=False,
    )


@pytest.fixture(scope="module")
def learned(few_corpus, cell_text_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("few-shot") / "model"
    metrics = few_shot(load_config("langcell_few_shot.yaml", SETTINGS), cell_text_folder, few_corpus, folder, 5)
    return folder, metrics


def test_both_encoders_learn_and_the_matching_head_stays(learned, cell_text_folder):
    before, after = (load_file(f / "model.safetensors") for f in (cell_text_folder, learned[0]))
    assert before.keys() == after.keys()
    for name in before:
        same = torch.equal(before[name], after[name])
        assert same == name.startswith("matching_head"), name


def test_the_record_has_both_losses_and_counts_what_is_missing(learned):
    folder, metrics = learned
    record = json.loads((folder / RUN_FILE).read_text())
    steps = [e for e in record["log"] if "loss" in e]
    for entry in steps:
        assert entry["loss"] == pytest.approx(entry["similarity_loss"] + entry["matching_loss"], rel=1e-4)
    assert {"zero_shot_accuracy", "eval_accuracy", "eval_macro_f1"} <= set(metrics)
    drawn = record["cells_drawn"]
    assert drawn["B cell"] == drawn["natural killer cell"] == 5
    assert record["classes_with_fewer"] == {"hematopoietic precursor cell": drawn["hematopoietic precursor cell"]}
    assert record["training_cells"] == sum(drawn.values())
    assert record["cells_without_class"] == 5
    assert record["texts"][0].startswith("cell type: B cell. ")


def test_the_folder_is_a_langcell(learned):
    model, processor = AutoModel.from_pretrained(learned[0]), AutoProcessor.from_pretrained(learned[0])
    assert type(model) is LangCellModel
    texts = processor(text=["cell type: B cell. "], return_tensors="pt")
    assert model.get_text_features(**texts).shape == (1, model.config.projection_dim)


def test_the_command_draws_as_the_function_does(learned, few_corpus, cell_text_folder, tmp_path):
    from cellglot.cli import finetune

    finetune(output=tmp_path, model=str(cell_text_folder), corpus=few_corpus.folder, few_shot=5, set_=SETTINGS)
    a, b = (load_file(f / "model.safetensors") for f in (learned[0], tmp_path))
    assert all(torch.allclose(a[name], b[name], atol=1e-5) for name in a)


@pytest.mark.long
def test_the_installed_command_learns(few_corpus, cell_text_folder, tmp_path):
    """In a process of its own, which registers Auto classes only where they are used."""
    command = [Path(sys.executable).with_name("cellglot"), "finetune", cell_text_folder, "--few-shot", "5"]
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    done = subprocess.run(
        [*command, "--corpus", few_corpus.folder, "-o", tmp_path / "model", *settings],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "eval_accuracy: " in done.stdout


def test_losses_are_those_of_every_pair(cell_text_folder):
    model, processor = LangCellModel.from_pretrained(cell_text_folder), AutoProcessor.from_pretrained(cell_text_folder)
    texts = processor(text=["a b cell", "something longer than that", "c"], return_tensors="pt")
    objective = FewShotObjective(model, texts["text_input_ids"], texts["text_attention_mask"]).eval()
    ids = torch.randint(2, 60, (4, 9), generator=torch.Generator().manual_seed(0))
    mask, labels = torch.ones_like(ids), torch.tensor([0, 2, 1, -100])
    output = objective(ids, mask, labels)
    scores = model.annotate(ids, mask, **texts)
    similarity = model(ids, mask, **texts).logits
    cross_entropy = torch.nn.functional.cross_entropy
    torch.testing.assert_close(output.similarity_loss, cross_entropy(similarity, labels))
    torch.testing.assert_close(output.matching_loss, cross_entropy(scores.matching_probability, labels))
    torch.testing.assert_close(output.logits, scores.scores)
    output.loss.backward()
    assert model.matching_head.weight.grad is None
    assert model.cell_model.projection.weight.grad.abs().sum() > 0
    assert model.text_model.layers[0].cross_attn.k_proj.weight.grad.abs().sum() > 0


def test_draws_depend_on_the_seed_alone_and_take_what_there_is():
    classes = ["a"] * 30 + ["b"] * 3 + [None] * 5
    first = draw_cells(classes, 10, 0)
    assert first.drawn == {"a": 10, "b": 3} and first.short(10) == {"b": 3}
    assert first.keep.sum() == 13 and not first.keep[33:].any()
    assert (first.keep == draw_cells(classes, 10, 0).keep).all()
    assert (first.keep != draw_cells(classes, 10, 1).keep).any()
    with pytest.raises(ValueError, match="needs at least one"):
        draw_cells(classes, 0, 0)


def test_bad_input_is_named(few_corpus, cell_text_folder, corpus, tmp_path):
    config = load_config("langcell_few_shot.yaml", SETTINGS)
    with pytest.raises(ValueError, match="no column 'weather'"):
        few_shot(config, cell_text_folder, few_corpus, tmp_path, 5, label_column="weather")
    with pytest.raises(ValueError, match="another vocabulary"):
        few_shot(config, cell_text_folder, corpus, tmp_path, 5)
    with pytest.raises(ValueError, match="'tempalte' does not exist; is 'template' meant"):
        few_shot(load_config("langcell_few_shot.yaml", ["data.tempalte=x"]), cell_text_folder, few_corpus, tmp_path, 5)
