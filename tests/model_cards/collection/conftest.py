"""Data sets of a collection on a small scale."""

import hashlib

import numpy as np
import pytest
import yaml
from scipy.sparse import csr_matrix

from cellglot.model_cards import publishing
from cellglot.model_cards.checks import clean_process


TYPES = {
    "CD14+ Monocyte": "CL:0001054", "Dendritic": "CL:0000451", "CD19+ B": "CL:0000236", "CD56+ NK": "CL:0000623",
    "CD8+ Cytotoxic T": ["CL:0000625", "CL:0000623"],
}  # fmt: skip


def checksum(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def checked_here():
    """Let the check of what is built run in this process: tests of publishing, and long ones, start the other one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publishing, "visit_as_stranger", clean_process.visit_here)
        yield


@pytest.fixture(scope="session")
def data(blood, tmp_path_factory):
    """Blood cells as three data sets of two laboratories."""
    folder = tmp_path_factory.mktemp("data")
    kinds = blood.obs["cell_type"].astype(str)
    sets = {}
    for number, name in enumerate(("first", "second", "third")):
        part = blood[np.arange(blood.n_obs) % 3 == number].copy()
        part.obs = part.obs[[]].assign(kind=kinds[part.obs_names].to_numpy())
        part.write_h5ad(folder / f"{name}.h5ad")
        present = set(part.obs["kind"])
        types = {label: meant for label, meant in TYPES.items() if label in present} | {"CD34+": None}
        sets[name] = {
            "file": f"{name}.h5ad", "sha256": checksum(folder / f"{name}.h5ad"), "source": f"part {name}",
            "license": "CC BY 4.0", "laboratory": "one" if name == "first" else "two", "tissue": "blood",
            "column": "kind", "types": {label: types[label] for label in types if label in present},
        }  # fmt: skip
    foreign = blood[:40].copy()
    foreign.X = csr_matrix(np.random.default_rng(0).poisson(0.6, foreign.shape).astype(np.float32))
    foreign.obs = foreign.obs[[]]
    foreign.write_h5ad(folder / "foreign.h5ad")
    sets["foreign"] = sets["first"] | {
        "file": "foreign.h5ad", "sha256": checksum(folder / "foreign.h5ad"), "laboratory": "three", "every": "other",
        "column": None, "types": {}, "training": True,
    }  # fmt: skip
    recipe = {
        "name": "tiny-exceiver", "title": "Tiny", "summary": "A trial.", "license": "cc-by-4.0", "default": True,
        "data": list(sets), "foreign": "other", "genes": {"fewest_cells": 3}, "seed": 1,
        "classes": ["CL:0001054", "CL:0000451", "CL:0000236", "CL:0000623", "CL:0000625"],
        "groups": {"coarse": {"myeloid": ["CL:0001054", "CL:0000451"], "B": "CL:0000236", "NK": "CL:0000623"}},
        "training": {
            "model": {"type": "exceiver", "gene_embedding_size": 16, "hidden_size": 8, "num_latents": 4,
                      "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "pooling": "mean",
                      "gene_sums": True, "gene_sum_weight": 0.4},
            "trainer": {"max_steps": 30, "per_device_train_batch_size": 32, "learning_rate": 1e-2},
        },
        "gene_sums": {"share": 0.75, "cells": 200, "as_they_are": 0.25, "iterations": 5},
    }  # fmt: skip
    (folder / "data_sets.yaml").write_text(yaml.safe_dump(sets, sort_keys=False))
    (folder / "tiny-exceiver.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return folder
