"""References, and cells that are mapped to them."""

import json
import shutil

import anndata as ad
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

import cellglot
from cellglot.cli import app
from cellglot.evaluation.mapping import neighbours
from cellglot.evaluation.mapping.mapped import novelty_of, vote, vote_weights
from cellglot.evaluation.mapping.neighbours import NeighbourGraph, exact_neighbours, unit_rows, without_self
from cellglot.evaluation.mapping.reference import Reference


CPU = {"device": "cpu"}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def cells(blood):
    """Three dozen cells with columns of every kind, the fifth without counts."""
    made = blood[:36].copy()
    counts = made.X.tolil()
    counts[4] = 0
    made.X = counts.tocsr()
    types = made.obs["cell_type"].astype(str).to_numpy()
    types[7] = "unknown"
    numbers = np.arange(36)
    made.obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical(types),
            "age": np.where(numbers == 9, np.nan, numbers * 2.0),
            "smoker": numbers % 2 == 0,
            "cluster": pd.Categorical(numbers % 3),
            "cell_id": [f"row {n}" for n in numbers],
        },
        index=made.obs_names,
    )
    return made


@pytest.fixture(scope="module")
def model(gene_classifiers):
    return cellglot.load_model(gene_classifiers["base"])


@pytest.fixture(scope="module")
def reference(cells, model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("references") / "reference"
    report = cellglot.index(cells, model, folder, **CPU)
    assert "1 cells express no gene of the model" in report
    return folder


def command(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


# -------------------------------------------------------------------- the folder


def test_a_reference_has_embeddings_and_columns(reference, cells, model):
    opened, kept = Reference.open(reference), np.delete(np.arange(36), 4)
    embedded = cellglot.embed(cells, model, copy=True, **CPU).obsm["X_cellglot"][kept]
    np.testing.assert_allclose(opened.vectors, unit_rows(embedded), atol=1e-3)
    assert opened.columns == {
        "cell_type": "labels", "age": "numbers", "smoker": "labels", "cluster": "labels", "cell_id": "labels",
    }  # fmt: skip
    assert opened.names().tolist() == cells.obs_names[kept].tolist()
    codes, labels = opened.labels("cell_type")
    assert "unknown" not in labels and codes[6] == -1
    known = [i for i in range(35) if i != 6]
    assert [labels[codes[i]] for i in known] == cells.obs["cell_type"].astype(str).to_numpy()[kept][known].tolist()
    np.testing.assert_array_equal(opened.numbers("age"), cells.obs["age"].to_numpy()[kept])
    assert pq.read_table(reference / "cells.parquet").column_names[0] == "cell_id_"
    assert {path.name for path in reference.iterdir()} == {
        "reference.json", "embeddings.npy", "cells.parquet", "own_distances.npy", ".cellglot-output.json",
    }  # fmt: skip


def test_some_columns_are_kept_and_a_folder_is_replaced_only_when_asked(cells, model, tmp_path):
    cellglot.index(cells, model, tmp_path / "r", columns=["age"], **CPU)
    (tmp_path / "r" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="a reference for mapping.*overwrite"):
        cellglot.index(cells, model, tmp_path / "r", **CPU)
    assert list(Reference.open(tmp_path / "r").columns) == ["age"]
    with pytest.raises(ValueError, match="no column 'tissue' in obs; it has cell_type, age"):
        cellglot.index(cells, model, tmp_path / "r", columns=["tissue"], overwrite=True, **CPU)
    assert list(Reference.open(tmp_path / "r").columns) == ["age"]
    cellglot.index(cells, model, tmp_path / "r", columns=["smoker"], overwrite=True, **CPU)
    assert list(Reference.open(tmp_path / "r").columns) == ["smoker"]
    assert (tmp_path / "r" / "notes.txt").read_text() == "mine"


def test_cells_without_a_gene_of_the_model_make_no_reference(cells, model, tmp_path):
    nothing = cells[:3].copy()
    nothing.X = nothing.X * 0
    with pytest.raises(ValueError, match="none of 3 cells"):
        cellglot.index(nothing, model, tmp_path / "r", min_coverage=0.0, **CPU)
    with pytest.raises(ValueError, match="the AnnData is empty: 0 cells"):
        cellglot.index(cells[:0].copy(), model, tmp_path / "r", **CPU)
    assert not (tmp_path / "r").exists()


# -------------------------------------------------------------------- mapping


def test_cells_map_to_themselves(reference, cells, model):
    found = cells.copy()
    before = found.copy()
    assert cellglot.map(found, reference, columns=["cell_type", "age", "smoker"], k=1, model=model, **CPU) is None
    obs, kept = found.obs, np.delete(np.arange(36), [4, 7])
    assert (
        obs["cellglot_mapping_cell_type"].astype(str).iloc[kept].tolist() == cells.obs["cell_type"].iloc[kept].tolist()
    )
    assert pd.isna(obs["cellglot_mapping_cell_type"].iloc[[4, 7]]).all()
    np.testing.assert_array_equal(obs["cellglot_mapping_age"].drop(obs.index[4]), cells.obs["age"].drop(obs.index[4]))
    assert obs["cellglot_mapping_smoker"].iloc[0] == "True"
    assert (obs["cellglot_mapping_share_cell_type"].iloc[kept] == 1).all()
    assert obs["cellglot_mapping_share_cell_type"].iloc[7] == 0
    np.testing.assert_allclose(obs["cellglot_mapping_distance"].drop(obs.index[4]), 0, atol=1e-3)
    assert (obs["cellglot_mapping_novelty"].drop(obs.index[4]) < 0.5).mean() > 0.8
    assert np.isnan(obs["cellglot_mapping_distance"].iloc[4]) and np.isnan(obs["cellglot_mapping_novelty"].iloc[4])
    assert found.obsm["cellglot_mapping_neighbours"][:, 0].tolist() == [*range(4), -1, *range(4, 35)]
    pd.testing.assert_frame_equal(found.obs[before.obs.columns], before.obs)
    facts = found.uns["cellglot_mapping"]
    assert (facts["reference"], facts["neighbours"], facts["model"]) == (str(reference), 1, model.name)


def test_labels_are_voted_and_numbers_are_averaged(reference, cells, model):
    found = cellglot.map(cells, reference, columns=["age", "cluster"], k=5, model=model, copy=True, **CPU)
    assert "cellglot_mapping_age" not in cells.obs
    kept = np.delete(np.arange(36), 4)
    for row in (0, 20, 35):
        near = kept[found.obsm["cellglot_mapping_neighbours"][row]]
        assert found.obs["cellglot_mapping_age"].iloc[row] == pytest.approx(np.nanmean(cells.obs["age"].iloc[near]))
        beyond = found.obsm["cellglot_mapping_distances"][row] - found.obsm["cellglot_mapping_distances"][row, 0]
        clusters = cells.obs["cluster"].astype(str)
        weights = np.exp(-beyond / beyond.mean()) / np.sqrt(clusters.iloc[kept].value_counts()[clusters.iloc[near]])
        votes = pd.Series(weights.to_numpy(), index=clusters.iloc[near].to_numpy()).groupby(level=0).sum()
        chosen = found.obs["cellglot_mapping_cluster"].iloc[row]
        assert votes[chosen] == votes.max()
        share = (clusters.iloc[near] == chosen).mean()
        assert found.obs["cellglot_mapping_share_cluster"].iloc[row] == pytest.approx(share)
    distances = found.obsm["cellglot_mapping_distances"]
    assert (np.diff(np.delete(distances, 4, axis=0), axis=1) >= 0).all()


def test_three_cells_of_a_file_are_mapped_by_the_command(reference, cells, gene_classifiers, tmp_path):
    cells[10:13].copy().write_h5ad(tmp_path / "few.h5ad")
    names = [tmp_path / name for name in ("out.h5ad", "cells.csv", "similar.parquet")]
    done = command(
        "map", reference, tmp_path / "few.h5ad", "-o", names[0], "--table", names[1], "--similar", names[2],
        "--columns", "cell_type,age", "--device", "cpu",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "30 nearest of 35 cells" in done.output and "median share of neighbours" in done.output
    written, table, similar = ad.read_h5ad(names[0]), pd.read_csv(names[1]), pd.read_parquet(names[2])
    direct = cellglot.map(cells[10:13].copy(), reference, columns=["cell_type", "age"], copy=True, **CPU)
    for name in ("cell_type", "share_cell_type", "age", "distance", "novelty"):
        assert written.obs[f"cellglot_mapping_{name}"].tolist() == direct.obs[f"cellglot_mapping_{name}"].tolist()
    assert table["cell_type"].tolist() == written.obs["cellglot_mapping_cell_type"].tolist()
    assert written.uns["cellglot_mapping"]["model"] == str(gene_classifiers["base"])
    assert len(similar) == 3 * 30 and similar["rank"].tolist()[:30] == list(range(1, 31))
    assert similar["similar_cell"].iloc[[0, 30, 60]].tolist() == cells.obs_names[10:13].tolist()
    assert similar["similar_age"].iloc[0] == cells.obs["age"].iloc[10]
    again = command("map", reference, tmp_path / "few.h5ad", "-o", names[0])
    assert again.exit_code and "exists" in str(again.exception)


def test_a_small_reference_gives_all_of_its_cells(cells, model, tmp_path):
    cellglot.index(cells[:3].copy(), model, tmp_path / "three", **CPU)
    found = cellglot.map(cells[5:8].copy(), tmp_path / "three", model=model, copy=True, **CPU)
    assert np.sort(found.obsm["cellglot_mapping_neighbours"], axis=1).tolist() == [[0, 1, 2]] * 3
    cellglot.index(cells[:1].copy(), model, tmp_path / "one", **CPU)
    found = cellglot.map(cells[5:8].copy(), tmp_path / "one", model=model, copy=True, **CPU)
    assert np.isnan(found.obs["cellglot_mapping_novelty"]).all()


def test_cells_unlike_the_reference_are_announced_first(reference, cells, model, tmp_path):
    other = cells[:6].copy()
    other.X = np.random.default_rng(0).poisson(3.0, other.shape).astype(np.float32)
    other.write_h5ad(tmp_path / "other.h5ad")
    report = cellglot.map(tmp_path / "other.h5ad", reference, model=model, output=tmp_path / "o.h5ad", **CPU)
    far = ad.read_h5ad(tmp_path / "o.h5ad").obs["cellglot_mapping_novelty"] > 0.99
    assert report.startswith("most of these cells are unlike the reference") == (far.mean() > 0.5)
    own = np.array([[0.1, 0.2], [0.2, 0.3], [0.3, 0.4], [0.4, 0.5]])
    found = novelty_of(np.array([[0.0, 0.1, 9.0], [0.2, 0.3, 0.0], [0.9, 0.9, 0.9], [np.nan] * 3]), own)
    np.testing.assert_array_equal(found, [0.0, 0.25, 1.0, np.nan])


def test_nearer_cells_and_rarer_labels_count_more():
    voters, distances = np.array([[1, 0, 0, -1], [0, 0, 1, 1]]), np.array([[0.0, 0.3, 0.3, 0.3], [0.1] * 4])
    weights = vote_weights(voters, distances, np.array([400, 100]))
    np.testing.assert_allclose(weights[1], [0.05, 0.05, 0.1, 0.1])
    near = np.exp(-0.3 / 0.225)
    np.testing.assert_allclose(weights[0], [0.1, near / 20, near / 20, 0], rtol=1e-6)
    chosen, share = vote(voters, weights)
    assert (chosen.tolist(), share.tolist()) == ([1, 1], [0.25, 0.5])
    few = vote_weights(voters, distances, np.array([400, 1]))
    assert few[1, 2] == pytest.approx(1 / np.sqrt(4))  # labels of fewer cells than neighbours count as that many
    assert vote(np.array([[-1, -1]]), np.zeros((1, 2)))[0].tolist() == [-1]


# -------------------------------------------------------------------- by a classifier


def test_a_classifier_compares_its_classes_too(cells, gene_classifiers, tmp_path):
    classifier = cellglot.load_model(gene_classifiers["classifier"])
    cellglot.index(cells, classifier, tmp_path / "r", **CPU)
    opened, kept = Reference.open(tmp_path / "r"), np.delete(np.arange(36), 4)
    done = cellglot.annotate(cells, classifier, copy=True, **CPU)
    embedded, scores = done.obsm["X_cellglot"][kept], done.obsm["cellglot_scores"][kept]
    size = embedded.shape[1]
    assert (opened.score_weight, opened.size) == (2.0, size + len(classifier.classes))
    np.testing.assert_allclose(opened.vectors[:, :size], unit_rows(embedded) / np.sqrt(5), atol=1e-3)
    np.testing.assert_allclose(opened.vectors[:, size:], np.sqrt(scores * 4 / 5), atol=1e-3)
    found = cellglot.map(cells, tmp_path / "r", k=1, copy=True, **CPU)
    assert found.obsm["cellglot_mapping_neighbours"][kept, 0].tolist() == list(range(35))
    np.testing.assert_allclose(found.obsm["X_cellglot_mapping"][kept], embedded, atol=1e-5)
    changed = cellglot.load_model(gene_classifiers["classifier"])
    with torch.no_grad():
        next(changed.network.classifier.parameters()).add_(1.0)
    with pytest.raises(ValueError, match="is another one .weights"):
        cellglot.map(cells, tmp_path / "r", model=changed, **CPU)


def test_references_of_embeddings_alone_are_read(cells, gene_classifiers, tmp_path, monkeypatch):
    classifier = cellglot.load_model(gene_classifiers["classifier"])
    monkeypatch.setattr("cellglot.evaluation.mapping.coordinates.SCORE_WEIGHT", 0.0)
    cellglot.index(cells, classifier, tmp_path / "r", **CPU)
    record = json.loads((tmp_path / "r" / "reference.json").read_text())
    assert record.pop("score_weight") == 0
    (tmp_path / "r" / "reference.json").write_text(json.dumps(record))
    monkeypatch.undo()
    found = cellglot.map(cells, tmp_path / "r", k=1, copy=True, **CPU)
    np.testing.assert_allclose(found.obs["cellglot_mapping_distance"].drop(cells.obs_names[4]), 0, atol=1e-3)


# -------------------------------------------------------------------- similar cells


def test_similar_cells_of_a_reference_are_its_nearest_other_cells(reference, cells, tmp_path):
    names = [str(name) for name in cells.obs_names[[20, 2]]]
    found = cellglot.similar(reference, names, k=4, columns=["cell_type", "age"])
    assert found["cell_id"].tolist() == [names[0]] * 4 + [names[1]] * 4 and found["rank"].tolist() == [1, 2, 3, 4] * 2
    vectors = Reference.open(reference).vectors.astype(np.float32)
    for name, rows in found.groupby("cell_id", sort=False):
        number = rows["cell_number"].iloc[0]
        distances = 1 - vectors @ vectors[number]
        distances[number] = 2
        np.testing.assert_allclose(rows["distance"], np.sort(distances)[:4], atol=1e-5)
        assert name not in set(rows["similar_cell"])
    near = cells.obs.loc[found["similar_cell"]]
    np.testing.assert_array_equal(found["similar_age"], near["age"])
    assert (found["age"] == cells.obs.loc[found["cell_id"], "age"].to_numpy()).all()
    printed = command("similar", reference, *names, "--k", 4)
    assert not printed.exit_code and len(printed.output.strip().split("\n")) == 9
    assert "similar_cell_type" in printed.output and found["similar_cell"].iloc[0] in printed.output
    written = command("similar", reference, names[0], "-o", tmp_path / "s.csv")
    assert "15 rows" in written.output
    assert pd.read_csv(tmp_path / "s.csv")["similar_cell"].tolist()[:4] == found["similar_cell"].tolist()[:4]
    assert "exists" in str(command("similar", reference, names[0], "-o", tmp_path / "s.csv").exception)
    assert len(cellglot.similar(reference, names[1], k=1000)) == 34


def test_cells_that_share_an_id_are_all_looked_up(cells, model, tmp_path):
    few = cells[10:14].copy()
    few.obs_names = ["a", "b", "a", "c"]
    cellglot.index(few, model, tmp_path / "twice", columns=["age"], **CPU)
    found = cellglot.similar(tmp_path / "twice", ["c", "a"], k=2)
    assert found["cell_number"].tolist() == [3, 3, 0, 0, 2, 2]
    assert list(found.columns)[-1] == "distance"
    cellglot.index(few[:1].copy(), model, tmp_path / "one", **CPU)
    with pytest.raises(ValueError, match="a single cell: there are no other cells"):
        cellglot.similar(tmp_path / "one", "a")


@pytest.mark.parametrize(
    ("ids", "options", "said"),
    [
        (["{}x"], {}, "has no cell '{}x'; ids that are spelled alike: '{}'"),
        (["{}", "nothing of the kind"], {}, "has no cell 'nothing of the kind'; the first is"),
        ([], {}, "at least one cell"),
        (["{}"], {"k": 0}, "k 0: it is 1 or more"),
        (["{}"], {"columns": ["tissue"]}, "has no column 'tissue'; it has cell_type"),
        (["{}"], {"output": "similar.xlsx"}, "tables are written as .csv"),
    ],
)
def test_questions_for_similar_cells_that_have_no_answer(reference, cells, ids, options, said):
    name = cells.obs_names[0]
    with pytest.raises(ValueError, match=said.replace("{}", name)):
        cellglot.similar(reference, [text.replace("{}", name) for text in ids], **options)


# -------------------------------------------------------------------- what is refused


def test_another_model_or_vocabulary_is_refused(reference, cells, model, gene_classifiers, tmp_path):
    other = gene_classifiers["classifier"]
    with pytest.raises(ValueError, match=f"made by the model {model.name}, and {other} is another one .weights"):
        cellglot.map(cells, reference, model=other, **CPU)
    changed = tmp_path / "changed"
    shutil.copytree(gene_classifiers["base"], changed)
    vocabulary = json.loads((changed / "gene_vocab.json").read_text())
    genes = [token for token in vocabulary["token_ids"] if token[0] != "<"]
    first, second = genes[:2]
    ids = vocabulary["token_ids"]
    ids[first], ids[second] = ids[second], ids[first]
    (changed / "gene_vocab.json").write_text(json.dumps(vocabulary))
    with pytest.raises(ValueError, match="is another one .vocabulary: "):
        cellglot.map(cells, reference, model=changed, **CPU)
    copied = tmp_path / "copied"
    shutil.copytree(gene_classifiers["base"], copied)
    cellglot.map(cells.copy(), reference, model=copied, **CPU)


def test_a_model_that_is_gone_is_asked_for(reference, cells, tmp_path):
    copied = tmp_path / "reference"
    shutil.copytree(reference, copied)
    record = json.loads((copied / "reference.json").read_text())
    record["model"]["name"] = str(tmp_path / "gone")
    (copied / "reference.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"made by the model .*gone, which cannot be loaded .*--model"):
        cellglot.map(cells, copied, **CPU)


@pytest.mark.parametrize("columns", [["tissue"], ["age", "tissue"]])
def test_a_missing_column_is_refused_with_those_that_are_there(reference, cells, columns):
    with pytest.raises(ValueError, match="has no column 'tissue'; it has cell_type, age, smoker, cluster, cell_id"):
        cellglot.map(cells, reference, columns=columns, **CPU)


def test_no_column_of_types_is_refused_with_those_that_are_there(cells, model, tmp_path):
    cellglot.index(cells, model, tmp_path / "r", columns=["age", "cluster"], **CPU)
    with pytest.raises(ValueError, match="no column 'cell_type': name the columns.*it has age, cluster"):
        cellglot.map(cells, tmp_path / "r", model=model, **CPU)


def test_cells_with_other_genes_are_refused(reference, cells, model):
    other = cells[:4].copy()
    other.var_names = [f"plant gene {n}" for n in range(other.n_vars)]
    with pytest.raises(ValueError, match="the vocabulary covers no gene of these cells"):
        cellglot.map(other, reference, model=model, **CPU)
    with pytest.raises(ValueError, match="no gene of these cells|none of 4 cells"):
        cellglot.map(other, reference, model=model, min_coverage=0.0, **CPU)


@pytest.mark.parametrize("file", ["embeddings.npy", "cells.parquet", "own_distances.npy", "reference.json"])
@pytest.mark.parametrize("damage", ["cut", "changed", "missing"])
def test_a_damaged_reference_is_refused(reference, cells, tmp_path, file, damage):
    folder = tmp_path / "reference"
    shutil.copytree(reference, folder)
    content = (folder / file).read_bytes()
    if damage == "missing":
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content[:-20] if damage == "cut" else content[:40] + b"\xff\xfe" + content[42:])
    with pytest.raises(ValueError, match=r"reference.*(damaged|has no|is not JSON|write the file again)"):
        cellglot.map(cells, folder, **CPU)


@pytest.mark.parametrize(
    "change",
    [
        {"format_version": 2}, {"metric": "hamming"}, {"cells": "many"}, {"columns": {"age": "texts"}},
        {"columns": {"age": ["labels"]}},
        {"model": "m"}, {"files": {}}, {"files": {"../x": "d"}}, {"graph": {}},
    ],
)  # fmt: skip
def test_a_damaged_record_is_refused(reference, tmp_path, change):
    folder = tmp_path / "reference"
    shutil.copytree(reference, folder)
    record = json.loads((folder / "reference.json").read_text())
    (folder / "reference.json").write_text(json.dumps(record | change))
    with pytest.raises(ValueError, match=r"reference\.json"):
        Reference.open(folder)


def test_what_is_not_a_reference_is_refused(cells, gene_classifiers, tmp_path):
    (tmp_path / "file").write_text("x")
    for name, said in (
        (gene_classifiers["base"], "it has no reference.json"),
        (tmp_path / "nowhere", "is not a folder"),
        (tmp_path / "file", "is a file"),
        ("nobody/reference", "cannot|can be reached"),
    ):
        with pytest.raises(ValueError, match=said):
            cellglot.map(cells, name, **CPU)


# -------------------------------------------------------------------- neighbours


def clustered(number, size=24, seed=0):
    """Vectors as embeddings of cells are: types, and few directions in which cells of one type differ."""
    random = np.random.default_rng(seed)
    types = random.normal(size=(12, size))[random.integers(0, 12, number)]
    return unit_rows(types + 0.4 * random.normal(size=(number, 6)) @ random.normal(size=(6, size)))


def test_a_graph_finds_nearly_all_neighbours(tmp_path):
    vectors = clustered(4000).astype(np.float16)
    graph, recall = NeighbourGraph.build(vectors)
    assert recall >= neighbours.RECALL
    with open(tmp_path / "g.usearch", "wb"):
        pass
    graph.save(tmp_path / "g.usearch")
    loaded = NeighbourGraph.load(tmp_path / "g.usearch", vectors, graph.facts())
    asked = clustered(200, seed=1)
    wanted, distances = exact_neighbours(asked, vectors, 15)
    found, their = loaded.search(asked, 15)
    assert (found[:, :, None] == wanted[:, None, :]).any(axis=1).mean() >= 0.97
    same = found[:, 0] == wanted[:, 0]
    np.testing.assert_allclose(their[same, 0], distances[same, 0], atol=1e-5)
    with pytest.raises(ValueError, match="no graph of 3,999 vectors"):
        NeighbourGraph.load(tmp_path / "g.usearch", vectors[:-1], graph.facts())
    few, _ = loaded.search(asked[:1], 3)
    assert few.shape == (1, 3)


def test_a_large_reference_gets_a_graph_and_maps_alike(cells, model, reference, tmp_path, monkeypatch):
    monkeypatch.setattr(neighbours, "LARGE", 30)
    report = cellglot.index(cells, model, tmp_path / "large", **CPU)
    assert "a graph of neighbours finds 100.0%" in report and (tmp_path / "large" / "neighbours.usearch").exists()
    found, exact = (
        cellglot.map(cells, folder, columns=["cluster"], model=model, copy=True, **CPU)
        for folder in (tmp_path / "large", reference)
    )
    np.testing.assert_allclose(
        found.obs["cellglot_mapping_distance"], exact.obs["cellglot_mapping_distance"], atol=1e-5
    )
    content = (tmp_path / "large" / "neighbours.usearch").read_bytes()
    (tmp_path / "large" / "neighbours.usearch").write_bytes(content[:-30])
    with pytest.raises(ValueError, match="neighbours.usearch is damaged"):
        Reference.open(tmp_path / "large")
    monkeypatch.setattr(neighbours, "RECALL", 1.1)
    report = cellglot.index(cells, model, tmp_path / "hard", **CPU)
    assert "the search is exact" in report and not (tmp_path / "hard" / "neighbours.usearch").exists()


def test_cells_are_not_their_own_neighbours():
    vectors = unit_rows(np.array([[1.0, 0], [1, 0], [1, 0], [0, 1]]))
    numbers, distances = without_self(*exact_neighbours(vectors, vectors, 3), np.arange(4))
    assert numbers.shape == distances.shape == (4, 2)
    assert all(row not in found for row, found in enumerate(numbers.tolist()[3:], start=3))
    np.testing.assert_allclose(distances[:3, 0], 0, atol=1e-6)
