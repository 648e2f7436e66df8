"""Switches of the section ``trainer`` that change how a step is computed, not what: three models, a few steps each."""

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from scipy.sparse import csr_matrix

from cellglot.tokenization.corpus.tokenize import tokenize_corpus
from cellglot.training.config import load_config
from cellglot.training.pretraining.pretrain import pretrain
from cellglot.training.run import RUN_FILE


NAMES = {"exceiver": "exceiver_tiny.yaml", "sccello": "sccello_tiny.yaml", "langcell": "langcell_tiny.yaml"}
QUICK = [
    "trainer.use_cpu=true", "trainer.logging_steps=1", "trainer.eval_strategy=no", "trainer.save_strategy=no",
    "trainer.max_steps=2", "trainer.adam_epsilon=1e-4", "trainer.per_device_train_batch_size=24",
]  # fmt: skip
STILL = {
    "exceiver": ["model.hidden_dropout=0"],
    "sccello": ["model.hidden_dropout_prob=0", "model.attention_probs_dropout_prob=0"],
    "langcell": [
        f"model.{tower}.{name}=0"
        for tower in ("cell_config", "text_config")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob")
    ],
}
# A batch of objectives between cells is what is accumulated: only objectives of genes are those of one large batch.
GENES_ONLY = {
    "exceiver": [],
    "sccello": [f"model.{name}_weight=0" for name in ("coherence", "regularization", "relational_alignment")],
    "langcell": ["model.stage=1", "model.cell_cell_weight=0"],
}


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """48 cells of three types and 45 genes, as tokens of both kinds."""
    folder = tmp_path_factory.mktemp("switches")
    random = np.random.default_rng(0)
    kind = np.arange(48) % 3
    counts = random.poisson(np.where(np.arange(45)[None, :] // 15 == kind[:, None], 4.0, 0.8)).astype(np.float32)
    obs = pd.DataFrame(
        {"cell_type": np.array(["B cell", "T cell", "monocyte"])[kind]}, index=[f"c{i}" for i in range(48)]
    )
    genes = pd.DataFrame(index=[f"ENSG{i:011d}" for i in range(1, 46)])
    ad.AnnData(csr_matrix(counts), obs=obs, var=genes).write_h5ad(folder / "cells.h5ad")
    ranked = {
        "tokenizer": "rank-value",
        "tokenizer_options": {"add_cls_token": True, "return_expression_values": True},
    }
    quiet = {"processes": 1, "progress": False, "validation_fraction": 0.0}
    exceiver = tokenize_corpus([folder / "cells.h5ad"], folder / "tokens", **quiet)
    ranks = tokenize_corpus([folder / "cells.h5ad"], folder / "ranks", **quiet, **ranked)
    return {"exceiver": exceiver, "sccello": ranks, "langcell": ranks}


@pytest.fixture(scope="module")
def trained(corpora, tmp_path_factory):
    """Train a family in a few steps; the same settings once. Gives the losses and the weights."""
    made = {}

    def train(family, *settings):
        key = (family, settings)
        if key not in made:
            folder = tmp_path_factory.mktemp("trained") / "model"
            config = load_config(NAMES[family], [*QUICK, *STILL[family], *settings])
            pretrain(config, corpora[family], folder)
            log = json.loads((folder / RUN_FILE).read_text())["log"]
            losses = [entry["loss"] for entry in log if "loss" in entry]
            made[key] = losses, load_file(folder / "model.safetensors")
        return made[key]

    return train


def assert_same(found, expected, tolerance):
    """The same losses, and weights that differ by a part of what a step changes (0.001)."""
    assert found[0] == pytest.approx(expected[0], rel=tolerance)
    assert len(found[0]) == 2 and found[1].keys() == expected[1].keys()
    for name, weights in expected[1].items():
        assert found[1][name].dtype == weights.dtype
        assert torch.allclose(found[1][name].float(), weights.float(), atol=10 * tolerance), name


SWITCHES = {
    "bf16": (["trainer.bf16=true"], 0.03),
    "checkpointing, not fused": (["trainer.gradient_checkpointing=true", "trainer.optim=adamw_torch"], 1e-5),
    "compiled": (["trainer.torch_compile=true", "trainer.torch_compile_backend=aot_eager"], 1e-5),
}


@pytest.mark.parametrize("family", list(NAMES))
@pytest.mark.parametrize("switch", ["bf16", "checkpointing, not fused"])
def test_a_switch_does_not_change_what_is_learned(trained, family, switch):
    settings, tolerance = SWITCHES[switch]
    assert_same(trained(family, *settings), trained(family), tolerance)


@pytest.mark.long
def test_a_compiled_model_learns_the_same(trained):
    """One of the systems: compiled = eager is a check of every model."""
    settings, tolerance = SWITCHES["compiled"]
    torch.compiler.reset()
    assert_same(trained("exceiver", *settings), trained("exceiver"), tolerance)


@pytest.mark.parametrize("family", list(NAMES))
def test_accumulated_batches_of_genes_are_one_batch(trained, family):
    """Cells have different numbers of masked genes: each counts as much as in one large batch."""
    parts = ["trainer.per_device_train_batch_size=16", "trainer.gradient_accumulation_steps=3"]
    once = ["trainer.per_device_train_batch_size=48"]
    assert_same(trained(family, *parts, *GENES_ONLY[family]), trained(family, *once, *GENES_ONLY[family]), 1e-5)


def test_cached_gradients_as_a_setting(trained):
    assert_same(trained("sccello", "trainer.grad_cache=10"), trained("sccello"), 1e-5)
