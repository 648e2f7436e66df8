"""References as data sets of the Hub."""

import json

import pandas as pd
import pytest
from huggingface_hub import RepoCard

import cellglot
from cellglot.model_cards.card.details import CardError
from cellglot.model_cards.publishing import publish


@pytest.fixture(scope="module")
def reference(blood, gene_classifiers, tmp_path_factory):
    cells = blood[:20].copy()
    ages = [None if n == 3 else float(n) for n in range(20)]
    cells.obs = pd.DataFrame(
        {"cell_type": cells.obs["cell_type"].astype(str), "age": pd.Series(ages, index=cells.obs_names)},
        index=cells.obs_names,
    )
    folder = tmp_path_factory.mktemp("references") / "blood"
    cellglot.index(cells, gene_classifiers["base"], folder, device="cpu")
    return folder


def test_a_reference_is_published_and_mapped_to(reference, details, blood, gene_classifiers, either_process, tmp_path):
    done = publish(reference, output=tmp_path / "shared", details=details(base_model="owner/model"))
    assert done.kind == "index" and done.compared > 8 * 16
    assert set(done.files) == {"README.md", "reference.json", "embeddings.npy", "cells.parquet", "own_distances.npy"}
    record = json.loads((tmp_path / "shared" / "reference.json").read_text())
    assert (record["model"]["name"], record["license"]) == ("owner/model", "apache-2.0")
    assert str(tmp_path) not in json.dumps(record)
    card = RepoCard((tmp_path / "shared" / "README.md").read_text())
    assert card.data["configs"][0]["data_files"] == [{"split": "train", "path": "cells.parquet"}]
    assert 'cellglot.map(adata, "shared")' in card.text and "https://huggingface.co/owner/model" in card.text
    found = cellglot.map(
        blood[:4].copy(), tmp_path / "shared", k=1, model=gene_classifiers["base"], copy=True, device="cpu"
    )
    assert found.obs["cellglot_mapping_cell_type"].tolist() == blood.obs["cell_type"][:4].tolist()


def test_the_model_of_this_machine_needs_a_name_for_others(reference, details):
    with pytest.raises(CardError, match="base_model, the repository of the model"):
        publish(reference, dry_run=True, details=details())


def test_a_damaged_reference_is_not_published(reference, details, tmp_path):
    from shutil import copytree

    folder = copytree(reference, tmp_path / "damaged")
    (folder / "embeddings.npy").write_bytes((folder / "embeddings.npy").read_bytes()[:-2])
    with pytest.raises(ValueError, match="embeddings.npy is damaged"):
        publish(folder, dry_run=True, details=details(base_model="owner/model"))
