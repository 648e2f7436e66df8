import json
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cellglot.modeling import ScCelloForPreTraining, ScCelloForSequenceClassification
from cellglot.tokenization import CellOntology, RankValueTokenizer, tokenize_corpus
from cellglot.training.config import configs_folder, load_config
from cellglot.training.data.cell_types import cell_types_of, open_ontology
from cellglot.training.data.dataset import CellDataset
from cellglot.training.data.rank_value_collator import rank_value_collator
from cellglot.training.finetuning.finetune import finetune
from cellglot.training.pretraining.pretrain import pretrain
from cellglot.training.run import RUN_FILE


QUIET = {"tokenizer": "rank-value", "validation_fraction": 0.2, "processes": 1, "progress": False}
SETTINGS = [
    "model.max_position_embeddings=48",
    "model.hidden_dropout_prob=0",  # noise is drawn by each process
    "trainer.max_steps=5",
    "trainer.logging_steps=1",
    "trainer.eval_strategy=no",
    "trainer.save_strategy=no",
    "trainer.use_cpu=true",
    "trainer.adam_epsilon=1e-4",
]
# A step is 160 cells; an epoch of 552 ends with a step of 72, filled up by cells without tokens.
ONE = ["trainer.per_device_train_batch_size=160", "trainer.per_device_eval_batch_size=50"]
TWO = ["trainer.per_device_train_batch_size=80", "trainer.per_device_eval_batch_size=25"]


def settings(*changes):
    return load_config("sccello_tiny.yaml", [*SETTINGS, *ONE, *changes])


@pytest.fixture(scope="module")
def labelled(blood):
    """The blood cells with some labels missing and some that no ontology knows."""
    cells = blood.copy()
    names = cells.obs["cell_type"].astype(str).to_numpy(dtype=object)
    names[:40] = None
    names[40:60] = "weather"
    cells.obs["cell_type"] = names
    return cells


@pytest.fixture(scope="module")
def rank_corpus(labelled, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    labelled.write_h5ad(folder / "cells.h5ad")
    options = {"return_expression_values": True}
    return tokenize_corpus([folder / "cells.h5ad"], folder / "corpus", tokenizer_options=options, **QUIET)


@pytest.fixture(scope="module")
def pretrained(rank_corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sccello") / "model"
    pretrain(settings(), rank_corpus, folder)
    return folder


def test_labels_without_cell_type_are_counted_and_their_cells_kept(rank_corpus):
    found = cell_types_of(rank_corpus, CellOntology.blood())
    assert found.columns == ["cell_type"]
    assert found.report.labels == rank_corpus.n_cells("train")
    assert found.report.missing + found.report.unresolved["weather"] == found.training_without > 30
    assert 0 < found.held_out_without < 40
    assert sorted(set(found.rows.values())) == list(range(len(found.tables.cell_types)))
    assert "weather" not in found.rows and found.tables.cell_types[found.rows["CD19+ B"]] == "CL:0000236"


def test_a_label_without_cell_type_gives_way_to_the_next_column(blood, tmp_path):
    cells = blood.copy()
    cells.obs["cell_type"] = ["CD19+ B"] * 640 + ["weather"] * 60
    ids = ["unknown"] * 300 + ["CL:0009999"] * 100 + [""] * 100 + ["CL:0000084"] * 100 + ["CL:0000236"] * 40
    cells.obs["cell_type_ontology_term_id"] = ids + ["unknown"] * 60
    cells.write_h5ad(tmp_path / "cells.h5ad")
    corpus = tokenize_corpus([tmp_path / "cells.h5ad"], tmp_path / "corpus", **QUIET)
    found = cell_types_of(corpus, CellOntology.blood())
    assert found.tables.cell_types == ["CL:0000084", "CL:0000236"]
    train = CellDataset(corpus, "train", columns=found.columns)
    examples = train.__getitems__(range(len(train)))
    kinds = Counter((e["cell_type_ontology_term_id"], e["cell_type"]) for e in examples)
    over = {"CL:0009999": kinds["CL:0009999", "CD19+ B"]}  # "unknown" is not a label
    assert found.report.passed_over == over
    assert found.report.unresolved == {"weather": kinds["unknown", "weather"]}
    assert found.training_without == kinds["unknown", "weather"]
    assert f"another column is used: 'CL:0009999' ({over['CL:0009999']:,})" in found.report.summary()
    collator = rank_value_collator(
        corpus.tokenizer(), cell_types=found.rows, cell_type_columns=found.columns, max_length=8
    )
    expected = {"CL:0000084": 0, "CL:0000236": 1}
    for example, row in zip(examples, collator(examples)["cell_type_ids"].tolist(), strict=True):
        by_name = 1 if example["cell_type"] == "CD19+ B" else -100
        assert row == expected.get(example["cell_type_ontology_term_id"], by_name)


def test_every_part_of_the_loss_is_logged_and_the_folder_loads(pretrained, rank_corpus):
    record = json.loads((pretrained / RUN_FILE).read_text())
    steps = [entry for entry in record["log"] if "loss" in entry]
    parts = ["masked_gene_loss", "relational_alignment_loss", "coherence_loss", "regularization_loss"]
    assert len(steps) == 5
    for entry in steps:
        assert all(np.isfinite(entry[part]) and entry[part] > 0 for part in parts)
        assert sum(entry[part] for part in parts) == pytest.approx(entry["loss"], rel=1e-4)
    assert 0 < record["metrics"]["eval_masked_gene_accuracy"] < 1
    assert 0 <= record["metrics"]["eval_cell_type_accuracy"] <= 1
    assert record["ontology"]["release"] == "2024-04-05"
    assert record["cell_labels"]["unresolved"]["weather"] > 0
    model = ScCelloForPreTraining.from_pretrained(pretrained)
    tables = cell_types_of(rank_corpus, CellOntology.shipped()).tables
    assert model.config.cell_types == tables.cell_types
    assert (model.similarity_levels.numpy() == tables.levels).all()
    assert (model.ancestor_mask.numpy() == tables.ancestor_mask).all()
    tokenizer = RankValueTokenizer.from_pretrained(pretrained)
    assert tokenizer.model_max_length == 48 and not tokenizer.return_expression_values
    left = {p.name for p in pretrained.iterdir()}
    assert "training_args.bin" not in left and "modeling_sccello.py" in left and "cell_losses.py" in left


def test_held_out_metrics_are_those_of_the_saved_model(pretrained, rank_corpus):
    from cellglot.training.families.rank_value import PretrainingData
    from cellglot.training.families.sccello import sccello_recipe, summarize_sccello

    recipe = sccello_recipe(settings().model, PretrainingData(), rank_corpus, 0)
    model = ScCelloForPreTraining.from_pretrained(pretrained).eval()
    batch = recipe.collator(recipe.held_out.__getitems__(range(len(recipe.held_out))))
    with torch.no_grad():
        output = model(**batch)
    predictions, labels = summarize_sccello(model, batch, output)
    metrics = json.loads((pretrained / RUN_FILE).read_text())["metrics"]
    assert metrics["eval_masked_gene_loss"] == pytest.approx(output.masked_gene_loss.item(), rel=1e-5)
    assert metrics["eval_masked_gene_loss"] == pytest.approx((predictions[:, 0].sum() / labels[:, 0].sum()).item())
    known = batch["cell_type_ids"] != -100
    assert labels[:, 1].sum() == known.sum() < len(known)


@pytest.mark.long
def test_two_processes_are_one_on_the_joined_batch(rank_corpus, pretrained, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "cellglot", "pretrain", "--config", str(configs_folder() / "sccello_tiny.yaml")]
    command += ["--corpus", str(rank_corpus.folder), "--output", str(tmp_path / "two")]
    for setting in [*SETTINGS, *TWO]:
        command += ["--set", setting]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (json.loads((folder / RUN_FILE).read_text()) for folder in (pretrained, tmp_path / "two"))
    assert (one["processes"], two["processes"]) == (1, 2)
    for name in ("loss", "masked_gene_loss", "relational_alignment_loss", "coherence_loss", "regularization_loss"):
        losses = [[e[name] for e in record["log"] if "loss" in e] for record in (one, two)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-3), name
    for name in ("eval_masked_gene_loss", "eval_cell_type_accuracy"):
        assert one["metrics"][name] == pytest.approx(two["metrics"][name], rel=1e-2)
    a, b = (load_file(folder / "model.safetensors") for folder in (pretrained, tmp_path / "two"))
    assert a.keys() == b.keys()
    for name in a:
        assert torch.allclose(a[name].float(), b[name].float(), atol=3e-4), name


def test_packed_batches_train_as_padded_ones(rank_corpus, tmp_path):
    """With cells of different lengths, cells without a label, and a last batch that is filled up."""
    small = ["trainer.max_steps=4", "trainer.per_device_train_batch_size=140", "model.max_position_embeddings=10"]
    small += ["trainer.per_device_eval_batch_size=60", "data.mask_fraction=0.3"]
    for folder, changes in (("padded", []), ("packed", ["data.pack_cells=true", "model.attn_implementation=sdpa"])):
        pretrain(settings(*small, *changes), rank_corpus, tmp_path / folder)
    padded, packed = (json.loads((tmp_path / name / RUN_FILE).read_text()) for name in ("padded", "packed"))
    for name in ("loss", "masked_gene_loss", "relational_alignment_loss", "coherence_loss", "regularization_loss"):
        losses = [[e[name] for e in record["log"] if "loss" in e] for record in (padded, packed)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4), name
    for name in ("eval_masked_gene_loss", "eval_cell_type_accuracy"):
        assert padded["metrics"][name] == pytest.approx(packed["metrics"][name], rel=1e-4)
    assert packed["work"]["tokens"] == padded["work"]["tokens"]


def test_objectives_can_be_switched_off(rank_corpus, tmp_path):
    off = [f"model.{name}_weight=0" for name in ("coherence", "regularization", "relational_alignment")]
    pretrain(settings("trainer.max_steps=2", *off), rank_corpus, tmp_path)
    entry = next(e for e in json.loads((tmp_path / RUN_FILE).read_text())["log"] if "loss" in e)
    assert entry["loss"] == pytest.approx(entry["masked_gene_loss"])
    assert not any(name in entry for name in ("coherence_loss", "relational_alignment_loss", "regularization_loss"))


def test_gene_embeddings_start_from_co_expression(rank_corpus, tmp_path):
    pretrain(settings("trainer.max_steps=1", "data.initialize_gene_embeddings=true"), rank_corpus, tmp_path)
    weight = ScCelloForPreTraining.from_pretrained(tmp_path).get_input_embeddings().weight
    assert 0.9 < weight[2:-1].std() < 1.1, "those of genes; a random start has 0.02"
    assert weight[:2].std() < 0.1


def test_a_classifier_from_the_pretrained_model(pretrained, rank_corpus, tmp_path):
    changes = ["trainer.max_steps=3", "trainer.eval_strategy=no", "trainer.save_strategy=no", "trainer.use_cpu=true"]
    metrics = finetune(load_config("sccello_finetune.yaml", changes), pretrained, rank_corpus, tmp_path)
    model = ScCelloForSequenceClassification.from_pretrained(tmp_path)
    assert "weather" in model.config.label2id and model.config.num_labels == 11
    assert 0 <= metrics["eval_accuracy"] <= 1
    kept = load_file(pretrained / "model.safetensors")["sccello.embeddings.word_embeddings.weight"]
    moved = model.sccello.embeddings.word_embeddings.weight - kept
    assert 0 < moved.abs().max() < 0.1, "trained from the pretrained weights"


def test_wrong_corpora_are_refused(corpus, labelled, tmp_path):
    with pytest.raises(ValueError, match="--tokenizer rank-value"):
        pretrain(settings(), corpus, tmp_path / "m")
    bare = labelled[:60].copy()
    del bare.obs["cell_type"]
    bare.write_h5ad(tmp_path / "bare.h5ad")
    without = tokenize_corpus([tmp_path / "bare.h5ad"], tmp_path / "a", **QUIET)
    with pytest.raises(ValueError, match="no column cell_type_ontology_term_id or cell_type"):
        pretrain(settings(), without, tmp_path / "m")
    with pytest.raises(ValueError, match="no expression values.*return_expression_values=true"):
        pretrain(
            settings("data.initialize_gene_embeddings=true", "data.label_columns=[cell_index]"),
            without,
            tmp_path / "m",
        )
    no_cls = tokenize_corpus(
        [tmp_path / "bare.h5ad"], tmp_path / "b", tokenizer_options={"add_cls_token": False}, **QUIET
    )
    with pytest.raises(ValueError, match="add_cls_token=true"):
        pretrain(settings(), no_cls, tmp_path / "m")


@pytest.mark.parametrize("name", ["nowhere", "2024", "blood.obo"])
def test_an_ontology_that_is_not_there(name):
    with pytest.raises(ValueError, match=f"'{name}' is not a file: write 'shipped' or 'blood' "):
        open_ontology(name)
