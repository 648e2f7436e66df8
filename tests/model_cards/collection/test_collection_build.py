"""Building a model of the collection: recipes, data sets, scores of laboratories that were left out, the folder."""

import json
import shutil
import sys

import anndata as ad
import numpy as np
import pytest
import torch
import yaml
from transformers import AutoConfig, pipeline

import cellglot
from cellglot.model_cards.collection.build import Build
from cellglot.model_cards.collection.cells import GIVEN, LABEL, prepare
from cellglot.model_cards.collection.genes import find_genes, make_vocabulary
from cellglot.model_cards.collection.recipe import RecipeError, read_data_sets, read_recipe
from cellglot.model_cards.collection.scores import Group, baseline_scores, groups_of, type_scores
from cellglot.model_cards.endpoint.staging import HANDLER_FILES
from cellglot.modeling import collection
from cellglot.tokenization.ontology.cell_ontology import CellOntology


BLOOD = CellOntology.blood()


@pytest.fixture(scope="module")
def built(data, checked_here, tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("build")
    build = Build(read_recipe(str(data / "tiny-exceiver.yaml")), data, folder)
    return build.run(), folder


def test_the_folder_is_a_whole_model(built, blood, data):
    finished, folder = built
    assert finished == folder / "tiny-exceiver"
    names = {path.name for path in finished.iterdir()}
    assert {
        "config.json", "model.safetensors", "gene_vocab.json", "README.md", "modeling_exceiver.py", "examples.json",
        "collection.json",
    } <= names  # fmt: skip
    from safetensors.torch import load_file

    kinds = {w.dtype for w in load_file(finished / "model.safetensors").values()}
    assert kinds == {torch.float16, torch.int32}  # ids of imputed genes are whole numbers
    assert AutoConfig.from_pretrained(finished).dtype == torch.float32
    annotate = pipeline("cell-type-annotation", model=str(finished), device="cpu")
    assert annotate.model.dtype == torch.float32 and annotate(blood[:3])[0]["label"] is not None
    vocabulary = json.loads((finished / "gene_vocab.json").read_text())
    assert "PRL" in vocabulary["symbols"].values() and "H19" not in vocabulary["symbols"].values()


def test_the_card_says_where_it_comes_from_and_how_it_was_tested(built):
    finished, folder = built
    card = (finished / "README.md").read_text()
    for words in ("| second |", "part third | CC BY 4.0 |", "types known", "| myeloid |", "license: cc-by-4.0"):
        assert words in card, words
    record = json.loads((folder / "collection_run.json").read_text())
    assert [fold["laboratory"] for fold in record["folds"]] == ["one", "two"]
    for fold in record["folds"]:
        assert not {"one": {"first"}, "two": {"second", "third"}}[fold["laboratory"]] & set(fold["training"])
    assert {row["data_set"] for row in record["scores"]} == {"first", "second", "third"}
    row = record["scores"][0]
    assert set(row["model"]["types"]) == {"myeloid", "B", "NK"} and len(row["baselines"]) == 3
    assert row["model"]["macro_f1"]["low"] <= row["model"]["macro_f1"]["value"] <= row["model"]["macro_f1"]["high"]


def test_the_finished_model_is_one_of_the_collection(built, blood, tmp_path, monkeypatch):
    finished, _ = built
    shutil.copytree(finished, tmp_path / "collection" / "tiny-exceiver")
    monkeypatch.setattr(collection, "collection_folder", lambda: tmp_path / "collection")
    (found,) = cellglot.models()
    assert found.default and found.types["B cell"] == "CL:0000236" and found.data_sets == 4 and found.parameters > 1000
    assert found.scores[0]["name"].startswith("coarse, macro F1 over 3 data sets")
    assert set(found.scores[0]["baselines"]) == {"logistic regression"}
    cells = blood[:8].copy()
    cellglot.annotate(cells, device="cpu")
    assert cells.obs["cellglot_cell_type"].notna().any()
    published = cellglot.publish("tiny-exceiver", output=tmp_path / "out", cells=cells)
    assert "part third | CC BY 4.0 |" in (tmp_path / "out" / "README.md").read_text()
    assert published.kind == "model" and published.compared > 0


def test_gene_sums_are_fitted_after_the_network(built):
    finished, folder = built
    config = AutoConfig.from_pretrained(finished)
    assert config.gene_sums and config.gene_sum_weight == 0.75
    from safetensors.torch import load_file

    before, after = (load_file(folder / "folds" / "one" / name / "model.safetensors") for name in ("model", "fitted"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"gene_sums.weight", "gene_sums.bias"} and after["gene_sums.weight"].isfinite().all()
    imputation = {name for name in after if name not in before}
    parts = ("token_ids", "means", "loadings", "variances")
    assert imputation == {f"gene_sums.imputation.{part}" for part in parts}
    loadings = after["gene_sums.imputation.loadings"]
    of_fold = AutoConfig.from_pretrained(folder / "folds" / "one" / "fitted")
    assert loadings.shape == (of_fold.imputed_genes, of_fold.imputation_factors) and loadings.isfinite().all()
    assert loadings.any() and (after["gene_sums.imputation.variances"] > 0).all()
    card = (finished / "README.md").read_text()
    assert "`gene_sum_weight=0.75`" in card and "for 75% those of gene sums" in card


@pytest.mark.long
def test_an_adapter_is_built_on_a_model_of_the_collection(built, data, blood, tmp_path, monkeypatch):
    shutil.copytree(built[0], tmp_path / "collection" / "tiny-exceiver")
    monkeypatch.setattr(collection, "collection_folder", lambda: tmp_path / "collection")
    recipe = yaml.safe_load((data / "tiny-exceiver.yaml").read_text())
    recipe |= {"name": "tiny-lora", "base": "tiny-exceiver", "method": "lora", "held_out": ["one"], "default": False}
    recipe["training"].pop("model")
    recipe.pop("gene_sums")
    (data / "tiny-lora.yaml").write_text(yaml.safe_dump(recipe))
    finished = Build(read_recipe(str(data / "tiny-lora.yaml")), data, tmp_path / "build").run()
    assert (finished / "adapter_model.safetensors").exists() and not (finished / "model.safetensors").exists()
    shutil.copytree(finished, tmp_path / "collection" / "tiny-lora")
    listed = {model.name: model for model in cellglot.models()}
    assert listed["tiny-lora"].base == "tiny-exceiver" and "adapter of tiny-exceiver" in str(cellglot.models())
    cells = blood[:8].copy()
    cellglot.annotate(cells, "tiny-lora", device="cpu")
    assert cells.uns["cellglot"]["model"].endswith("tiny-lora") and len(cells.uns["cellglot"]["classes"]) == 6


def test_finished_steps_are_kept(built, data, capsys, monkeypatch):
    _, folder = built
    weights = (folder / "folds" / "one" / "model" / "model.safetensors").stat().st_mtime_ns
    calls = []
    monkeypatch.setattr("cellglot.model_cards.collection.build.baseline_scores", lambda *args: calls.append(args))
    monkeypatch.setattr("cellglot.model_cards.collection.folds.classify_cells", lambda *a, **k: calls.append(a))
    again = Build(read_recipe(str(data / "tiny-exceiver.yaml")), data, folder)
    monkeypatch.setattr(again, "_final", lambda *args: None)
    monkeypatch.setattr(again, "_finish", lambda *args: args[-1])
    assert len(again.run()) == 3 and not calls
    assert (folder / "folds" / "one" / "model" / "model.safetensors").stat().st_mtime_ns == weights


def test_data_sets_are_read_in_one_form(data, tmp_path):
    sets = read_data_sets(data / "data_sets.yaml")
    prepared = prepare(sets["second"], data, tmp_path, BLOOD, 0)
    adata = ad.read_h5ad(prepared.path)
    assert adata.var_names[0].startswith("ENSG") and "CD8+ Cytotoxic T" in set(adata.obs[GIVEN].dropna())
    meant = dict(zip(adata.obs[GIVEN].astype(object), adata.obs[LABEL].astype(object), strict=True))
    assert meant["CD8+ Cytotoxic T"] == "CL:0000623 | CL:0000625" and meant["CD19+ B"] == "CL:0000236"
    assert meant["CD4+/CD25 T Reg"].startswith("CL:")  # by the ontology
    assert prepared.labelled == int(adata.obs[LABEL].notna().sum())
    foreign = prepare(sets["foreign"], data, tmp_path, BLOOD, 0)
    assert foreign.notes["meant"] == {"other": 40}
    assert find_genes(["MLL", "no gene", "KMT2A", "ENSG00000118058.3"]).tolist() == [
        "ENSG00000118058", "", "ENSG00000118058", "ENSG00000118058",
    ]  # fmt: skip


def test_markers_tell_cells_apart(data, tmp_path, blood):
    sets = read_data_sets(data / "data_sets.yaml")
    one = sets["first"]
    from cellglot.model_cards.collection.recipe import Gate

    gene = str(blood.var_names[np.asarray((blood.X > 0).mean(axis=0)).ravel().argmax()])
    one.gates = [
        Gate(label="CL:0000786", genes=[gene], above=0.0),
        Gate(label="other", genes=[gene], above=0.9, share=True),
    ]
    adata = ad.read_h5ad(prepare(one, data, tmp_path, BLOOD, 0).path)
    counts = adata[:, adata.var["symbol"] == gene].X.toarray().ravel()
    assert (adata.obs[LABEL][counts > 0] == "CL:0000786").all()
    assert (adata.obs[LABEL][counts == 0].astype(object) != "CL:0000786").all()
    one.gates = [Gate(label="CL:0000786", genes=["NONE1", "NONE2"], above=0.0)]
    with pytest.raises(RecipeError, match="fewer than half of the markers NONE1, NONE2"):
        prepare(one, data, tmp_path, BLOOD, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file": "none.h5ad"}, "none.h5ad does not exist: first is part first"),
        ({"sha256": "0" * 64}, "it is another file"),
        ({"column": "weather"}, "has no column 'weather' in obs; it has kind"),
        ({"types": {"sunny": "CL:0000236"}}, "types names labels that no cell has: sunny"),
        ({"types": {"CD19+ B": "CL:9999999"}}, "CL:9999999 is not in the ontology"),
    ],
)
def test_wrong_data_sets_are_refused(data, tmp_path, change, message):
    one = read_data_sets(data / "data_sets.yaml")["first"]
    for name, value in change.items():
        setattr(one, name, value)
    with pytest.raises(RecipeError, match=message.replace("+", r"\+")):
        prepare(one, data, tmp_path, BLOOD, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1}, "colour"),
        ({"data": ["first", "nothing"]}, "data names nothing"),
        ({"held_out": ["five"]}, "held_out names five"),
        ({"title": 3}, "title"),
        ({"genes": {"coding": True}}, "coding"),
        ({"gene_sums": {"steps": 5}}, "gene_sums 'steps' does not exist"),
        ({"training": {}}, "gene_sums needs method full, and gene_sums: true in training: model"),
    ],
)
def test_wrong_recipes_are_refused(data, tmp_path, change, message):
    shutil.copy(data / "data_sets.yaml", tmp_path)
    content = yaml.safe_load((data / "tiny-exceiver.yaml").read_text()) | change
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(RecipeError, match=message):
        read_recipe(str(tmp_path / "wrong.yaml"))


def test_the_shipped_recipes_are_whole():
    with pytest.raises(RecipeError, match="no recipe nothing; there are blood-exceiver"):
        read_recipe("nothing")
    for name in ("blood-exceiver", "blood-sccello", "blood-langcell", "human-exceiver", "human-sccello"):
        recipe = read_recipe(name)
        assert recipe.name == name and recipe.config().model["type"] == name.split("-")[1]
        trained = [d for d in recipe.sets if d.training]
        assert all(d.license != "not stated in the file" and not d.license.startswith("GPL") for d in trained)
        by_file = {d.name: d.laboratory for d in recipe.sets}
        assert by_file["pbmc_facs"] == by_file["pbmc_sorted_all_genes"]  # one experiment
        if any("BY-SA" in d.license for d in trained):
            assert recipe.license == "cc-by-sa-4.0"


def test_models_that_ship_are_small_and_carry_our_code():
    shipped = collection.shipped_models()
    sizes = {m.name: m.size for m in cellglot.models()}
    assert sum(sizes.values()) <= 40_000_000 and all(size <= 8_000_000 for size in sizes.values())
    rooms = ("modeling", "tokenization", "model_cards/endpoint")
    places = [collection.collection_folder().parents[1] / room for room in rooms]
    for folder in shipped.values():
        for file in folder.glob("*.py"):
            ours = next(place / file.name for place in places if (place / file.name).exists())
            assert file.read_bytes() == ours.read_bytes(), f"{file}: python -m cellglot.model_cards.collection --code"
        assert all((folder / name).exists() for name in (*HANDLER_FILES, "requirements.txt"))


# -------------------------------------------------------------------- scores


def test_types_are_scored_where_labels_are_sure():
    classes = ["CD4", "CD8", "B", "NK"]
    group = Group(["T", "B"], np.array([[True, True, False, False], [False, False, True, False]]))
    allowed = np.array([[1, 1, 0, 0], [1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]], dtype=bool)
    assert group.truth(allowed).tolist() == [0, 0, -1, 1, -1]
    chances = np.array([[0.3, 0.3, 0.4, 0], [0, 0, 0.4, 0.6], [0.1, 0.1, 0.7, 0.1]])
    assert group.predicted(chances).tolist() == [0, 2, 1]
    truth, guess = np.array([0] * 8 + [1] * 8 + [-1] * 3), np.array([0] * 6 + [1] * 2 + [1] * 8 + [0] * 3)
    found = type_scores(truth, guess, group.names)
    assert found["cells"] == 16 and found["types"]["T"]["recall"]["value"] == 0.75
    assert found["types"]["B"]["precision"]["value"] == 0.8
    assert found["macro_f1"]["value"] == pytest.approx((12 / 14 + 16 / 18) / 2, abs=1e-4)
    assert type_scores(truth[:8], guess[:8], group.names) == {}
    wanted = {"one": {"T": ["CD4", "CD8"], "rest": ["CD8"]}}
    with pytest.raises(ValueError, match="CD8 belongs to several types"):
        groups_of(wanted, classes, lambda ids: np.isin(classes, ids))


def test_baselines_use_the_genes_that_the_test_set_shares(blood):
    kinds = blood.obs["cell_type"].astype(str).to_numpy()
    truth = np.where(kinds == "CD19+ B", 0, np.where(kinds == "CD14+ Monocyte", 1, -1))
    half = np.arange(blood.n_obs) % 2 == 0
    test = blood[~half].copy()[:, ::2].copy()
    found = baseline_scores([blood[half].copy()], [truth[half]], test, truth[~half], ["B", "monocyte", "NK"])
    assert set(found) == {
        "logistic regression", "logistic regression, types of the test set", "neighbours on variable genes",
    }  # fmt: skip
    assert all(score["macro_f1"]["value"] > 0.9 for score in found.values())
    assert baseline_scores([blood[half].copy()], [truth[half]], test[:, :5].copy(), truth[~half], ["B", "m"]) == {}


def test_statistics_are_over_the_cells_that_measured_a_gene(data, blood):
    ids = find_genes(list(blood.var_names))
    whole = ad.AnnData(blood.X.copy())
    whole.var_names = ids
    panel = whole[:, :50].copy()
    both = make_vocabulary([whole, panel], True, 1)
    alone = make_vocabulary([whole], True, 1)
    other = both.genes.index(next(gene for gene in ids[400:] if gene))
    assert both.means[other] == pytest.approx(alone.means[alone.genes.index(both.genes[other])])
    assert both.stds[other] == pytest.approx(alone.stds[alone.genes.index(both.genes[other])])
    never = both.genes.index("ENSG00000172179")
    assert (both.means[never], both.stds[never], both.medians[never]) == (0, 1, 1)


def test_the_command_names_what_is_wrong(monkeypatch, capsys, tmp_path):
    from cellglot.model_cards.collection.__main__ import main

    monkeypatch.setattr(sys, "argv", ["collection", "nothing", "--data", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and "error: no recipe nothing" in capsys.readouterr().err


def test_a_folder_of_other_files_is_not_taken_for_a_build(data, tmp_path):
    kept = tmp_path / "mine" / "final" / "tiny-exceiver" / "thesis.txt"
    kept.parent.mkdir(parents=True)
    kept.write_text("years of work")
    with pytest.raises(RecipeError, match="mine is not empty, and not the folder of an earlier build"):
        Build(read_recipe(str(data / "tiny-exceiver.yaml")), data, tmp_path / "mine").run()
    assert kept.read_text() == "years of work"
