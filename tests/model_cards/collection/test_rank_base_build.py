"""Building a base of rank-value tokens with a linear latent, and an adapter of it for donors of a file."""

import json
import shutil

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file
from scipy.sparse import csr_matrix

import cellglot
from cellglot.model_cards.collection.builds import build
from cellglot.model_cards.collection.cells import LABEL, prepare
from cellglot.model_cards.collection.embedding_scores import log_counts
from cellglot.model_cards.collection.linear_components import label_directions
from cellglot.model_cards.collection.recipe import RecipeError, read_data_sets
from cellglot.modeling import collection
from cellglot.modeling.any_model import load_any_model
from cellglot.modeling.gene_sums import implied_logs
from cellglot.modeling.linear_latent import RankedLinearLatent
from cellglot.tokenization.ontology.cell_ontology import CellOntology


pytestmark = pytest.mark.long

NETWORK = {
    "type": "sccello", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
    "max_position_embeddings": 64, "encoder_tokens": 16, "pooling": "mean",
}  # fmt: skip
LINEAR, DIRECTIONS = 40, 4


@pytest.fixture(scope="module")
def made(data, tmp_path_factory):
    """A base of scCello that never saw the first data set, and an adapter of it; recipes are in the folder."""
    folder = tmp_path_factory.mktemp("rank_base")
    torch.set_num_threads(1)
    sets = yaml.safe_load((data / "data_sets.yaml").read_text())
    for name in ("second", "third"):
        own = {"CD14+ Monocyte", "CD19+ B"}
        sets[f"{name}_part"] = sets[name] | {"laboratory": f"part {name}", "where": {"kind": sorted(own)}}
        sets[f"{name}_part"]["types"] = {label: t for label, t in sets[name]["types"].items() if label in own}
    plain = yaml.safe_load((data / "tiny-exceiver.yaml").read_text()) | {
        "default": False,
        "foreign": None,
        "gene_sums": None,
    }
    trainer = plain["training"]["trainer"]
    base = plain | {
        "name": "human-ranks", "kind": "base", "data": ["first", "second", "third"], "held_out": [["one"]],
        "ships": "tested", "linear_genes": LINEAR, "linear_data": ["second", "third"],
        "linear_labels": DIRECTIONS, "linear_share": 2, "linear_label_data": ["third"],
        "training": {"model": NETWORK, "trainer": trainer},
    }  # fmt: skip
    (folder / "data_sets.yaml").write_text(yaml.safe_dump(sets, sort_keys=False))
    (folder / "human-ranks.yaml").write_text(yaml.safe_dump(base, sort_keys=False))
    shutil.copytree(build(str(folder / "human-ranks.yaml"), data, folder / "base"), folder / "collection/human-ranks")
    adapter = plain | {
        "name": "part-ranks", "base": "human-ranks", "method": "lora", "data": ["second_part", "third_part"],
        "classes": ["CL:0001054", "CL:0000236"], "groups": {}, "genes": {}, "training": {"trainer": trainer},
    }  # fmt: skip
    (folder / "part-ranks.yaml").write_text(yaml.safe_dump(adapter, sort_keys=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collection, "collection_folder", lambda: folder / "collection")
        finished = build(str(folder / "part-ranks.yaml"), data, folder / "adapter", quick=True)
    shutil.copytree(finished, folder / "collection" / "part-ranks")
    return folder


def test_a_base_of_ranks_has_a_linear_latent_of_implied_counts(made, blood):
    loaded = load_any_model(made / "collection/human-ranks")
    latent = loaded.encoder.linear_latent
    assert isinstance(latent, RankedLinearLatent) and loaded.encoder.config.linear_genes == LINEAR
    vocabulary = loaded.tokenizer.vocabulary
    medians = latent.medians[torch.as_tensor(vocabulary.gene_token_ids).long()].numpy()
    np.testing.assert_allclose(medians, vocabulary.medians, rtol=2e-3)
    ids = loaded.tokenizer(blood[:6], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        embedded = loaded.encoder(ids).pooler_output
        rows = latent.rows[ids].long()
        logs = implied_logs(latent.medians, ids)
        expected = (latent.weights(rows) * logs.unsqueeze(-1)).sum(dim=1) - latent.shift
    assert embedded.shape == (6, 32) and (rows > 0).sum() > 20
    torch.testing.assert_close(embedded[:, 16:], expected, atol=1e-3, rtol=1e-3)
    record = json.loads((made / "collection/human-ranks/collection_run.json").read_text())
    assert record["scores"][0]["data_set"] == "first" and record["trained_on"] == ["second", "third"]


def test_the_network_of_an_earlier_base_is_kept(made, data, tmp_path):
    earlier, recipe = made / "collection/human-ranks", yaml.safe_load((made / "human-ranks.yaml").read_text())
    shutil.copyfile(made / "data_sets.yaml", tmp_path / "data_sets.yaml")
    changed = recipe | {"linear_labels": 2, "linear_label_data": ["second", "third"], "linear_shrinkage": 1}
    (tmp_path / "human-ranks.yaml").write_text(yaml.safe_dump(changed))
    finished = build(str(tmp_path / "human-ranks.yaml"), data, tmp_path / "build", network=earlier)
    before, after = (load_file(folder / "model.safetensors") for folder in (earlier, finished))
    assert before.keys() == after.keys()
    differing = {name for name, weights in before.items() if not torch.equal(weights, after[name])}
    assert differing and all(name.startswith("linear_latent.") for name in differing)
    record = json.loads((finished / "collection_run.json").read_text())
    assert "not trained again" in record["network"] and record["scores"]
    for changes, message in (({"ships": "all"}, "ships: tested"), ({"kind": "classifier"}, "--network is for bases")):
        (tmp_path / "human-ranks.yaml").write_text(yaml.safe_dump(changed | changes))
        with pytest.raises(RecipeError, match=message):
            build(str(tmp_path / "human-ranks.yaml"), data, tmp_path / "other", network=earlier)
    (tmp_path / "human-ranks.yaml").write_text(yaml.safe_dump(changed))
    other = shutil.copytree(earlier, tmp_path / "of_another_family")
    (other / "config.json").write_text(json.dumps({"model_type": "exceiver"}))
    (tmp_path / "empty").mkdir()
    for network, message in (
        (other, "is a model of exceiver, not of sccello"),
        (tmp_path / "empty", "no config.json"),
    ):
        with pytest.raises(RecipeError, match=message):
            build(str(tmp_path / "human-ranks.yaml"), data, tmp_path / "other", network=network)
    with pytest.raises(ValueError, match="human-ranks"):  # what it reads lies where it writes
        build(str(tmp_path / "human-ranks.yaml"), data, tmp_path / "build", network=finished)
    assert (finished / "model.safetensors").is_file()
    (tmp_path / "human-ranks.yaml").write_text(yaml.safe_dump(changed | {"linear_shrinkage": -1}))
    with pytest.raises(RecipeError, match="linear_shrinkage is 0 or more"):
        build(str(tmp_path / "human-ranks.yaml"), data, tmp_path / "other")


def test_its_components_are_orthogonal_and_its_directions_tell_labels_apart(made):
    latent = load_any_model(made / "collection/human-ranks").encoder.linear_latent
    components = latent.weights.weight[1:, : 16 - DIRECTIONS].detach().numpy()
    products, norms = components.T @ components, np.linalg.norm(components, axis=0)
    np.testing.assert_allclose(products, np.diag(norms**2), atol=1e-2 * norms.max() ** 2)
    random = np.random.default_rng(0)
    labels = np.repeat(["CL:0000236", "CL:0000623 | CL:0000625", "CL:0001054"], 60)
    rates = np.ones((3, 30))
    rates[:, :9] = np.kron(np.eye(3), np.ones(3)) * 8 + 0.5
    counts = random.poisson(rates[np.unique(labels, return_inverse=True)[1]]).astype(np.float32)
    names = [f"ENSG{n:011d}" for n in range(30)]
    parts = [
        ad.AnnData(csr_matrix(counts[rows]), obs=pd.DataFrame({LABEL: labels[rows]}), var=pd.DataFrame(index=names))
        for rows in (np.arange(0, 180, 2), np.arange(1, 180, 2))
    ]
    found = label_directions(parts, names[:12], 5, seed=0)
    assert found.shape == (12, 5) and not found[:, 3:].any()
    lacking = [parts[0], parts[1][:, 3:].copy()]  # a gene that a data set lacks counts as not expressed
    zero = parts[1].copy()
    zero.X = csr_matrix(zero.X.multiply(np.arange(30) >= 3))
    same = [label_directions(some, names[:12], 5, seed=0) for some in (lacking, [parts[0], zero])]
    np.testing.assert_allclose(*same, atol=1e-6)
    projected = np.concatenate([log_counts(p.X)[:, :12].toarray() @ found for p in parts])
    of_cells = np.concatenate([p.obs[LABEL] for p in parts])
    means = np.stack([projected[of_cells == label].mean(axis=0) for label in np.unique(labels)])
    nearest = np.linalg.norm(projected[:, None] - means, axis=2).argmin(axis=1)
    assert (np.unique(labels)[nearest] == of_cells).mean() > 0.95


def test_an_adapter_of_it_is_a_small_model_of_the_collection(made, blood, monkeypatch):
    monkeypatch.setattr(collection, "collection_folder", lambda: made / "collection")
    listed = {model.name: model for model in cellglot.models()}
    assert listed["part-ranks"].base == "human-ranks" and listed["part-ranks"].purpose == "cell classification"
    assert set(listed["part-ranks"].types) == {"B cell", "CD14-positive monocyte"}
    assert not (made / "collection/part-ranks/model.safetensors").exists()
    record = json.loads((made / "collection/part-ranks/collection_run.json").read_text())
    assert {row["data_set"] for row in record["scores"]} == {"second_part", "third_part"}
    assert all("logistic regression" in row["baselines"] for row in record["scores"])
    card = (made / "collection/part-ranks/README.md").read_text()
    assert "human-ranks" in card and "| second_part |" in card
    cells = blood[:8].copy()
    cellglot.annotate(cells, "part-ranks", device="cpu")
    assert set(cells.obs["cellglot_cell_type"].dropna()) <= {"B cell", "CD14-positive monocyte", "unassigned"}
    assert cellglot.load_model("part-ranks").network.config.linear_genes == LINEAR


def test_cells_of_some_donors_are_a_data_set(data, made, tmp_path):
    sets, ontology = read_data_sets(made / "data_sets.yaml"), CellOntology.blood()
    whole, part = (prepare(sets[name], data, tmp_path, ontology, 0) for name in ("second", "second_part"))
    own = {"CD14+ Monocyte", "CD19+ B"}
    expected = sum(n["cells"] for n in whole.notes["labels"] if n["given"] in own)
    assert part.notes["cells"] == part.labelled == expected
    sets["second_part"].where = {"kind": ["no such"]}
    with pytest.raises(RecipeError, match="second_part: where names values of 'kind' that no cell has: no such"):
        prepare(sets["second_part"], data, tmp_path, ontology, 0)
    sets["second_part"].where = {"donor": ["a"]}
    with pytest.raises(RecipeError, match="has no column 'donor' in obs"):
        prepare(sets["second_part"], data, tmp_path, ontology, 0)
