"""The page's work without a browser: results, reasons, genes, texts, files, visits; the Space and its publication."""

import json
import pickle
import sys
import types
from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import yaml
from huggingface_hub import HfApi

import cellglot
from cellglot.model_cards.space import publishing
from cellglot.model_cards.space.gradio import words
from cellglot.model_cards.space.gradio.annotator import Annotator
from cellglot.model_cards.space.gradio.building import labels
from cellglot.model_cards.space.gradio.limits import Limits
from cellglot.model_cards.space.gradio.pasted import read_pasted
from cellglot.model_cards.space.gradio.visits import Visits
from cellglot.model_cards.space.publishing import publish_space


@pytest.fixture
def some(blood, tmp_path):
    """Forty blood cells as a file."""
    path = tmp_path / "blood.h5ad"
    cells = blood[:40].copy()
    cells.uns["mine"] = "stays"
    cells.write_h5ad(path)
    return path


def test_results_are_those_of_annotate(page_of, blood_annotator, visit_of, some):
    visit, shown = visit_of(page_of(blood_annotator), [some])
    expected = cellglot.annotate(ad.read_h5ad(some), copy=True)
    assert visit.result.found.predicted == list(expected.obs["cellglot_cell_type"])
    home, table = ad.read_h5ad(shown["files"][0]), shown["files"][1]
    assert home.uns["mine"] == "stays"
    assert list(home.obs["cellglot_cell_type"]) == visit.result.found.predicted
    assert home.obsm["X_cellglot_umap"].shape == (40, 2)
    assert np.allclose(home.obs["cellglot_confidence"], expected.obs["cellglot_confidence"], atol=1e-6)
    assert len(Path(table).read_text().splitlines()) == 41
    rows = words.type_rows(visit.result)
    assert sum(row["cells"] for row in rows) == 40
    assert all(row["name"] in shown["types"].replace("&#34;", '"') for row in rows)


def test_steps_are_shown_in_their_order(page_of, blood_annotator, some):
    page = page_of(blood_annotator)
    parts = [list(part) for part in page.annotate(page.visits.of("visitor"), [str(some)])]
    first = {name: next(i for i, part in enumerate(parts) if i and name in part) for name in ("types", "map", "files")}
    assert first["types"] < first["map"] < first["files"]


def test_a_cell_is_explained_by_the_genes_that_its_type_rests_on(page_of, blood_annotator, visit_of, some):
    page = page_of(blood_annotator)
    visit, _ = visit_of(page, [some])
    cell = visit.result.found.predicted.index("memory B cell")
    found = page.annotator.reasons(visit.result, cell)
    assert found.type_name == "memory B cell"
    assert found.lost == sorted(found.lost, reverse=True)
    assert found.lost[0] > 0
    assert found.probability == pytest.approx(float(visit.result.found.decisions.probabilities[cell].max()), abs=1e-4)
    hidden = visit.result.cells.adata[[cell]].copy()  # a gene that is hidden is a gene that is not there
    gene = list(hidden.var_names).index(found.genes[0]) if found.genes[0] in hidden.var_names else None
    assert gene is not None
    said = page.explain(visit, cell)
    assert "memory B cell" in said
    assert found.genes[0] in said
    for wrong in (-1, 40, None, "0", 1.5, True):
        assert "Choose a cell" in page.explain(visit, wrong)


def test_genes_are_completed_and_coloured(page_of, blood_annotator, visit_of, some):
    page = page_of(blood_annotator)
    visit, shown = visit_of(page, [some])
    assert json.loads(shown["map"])["visit"] == visit.key
    asked = {"visit": visit.key}
    assert page.complete(asked | {"text": "cd3"})[:3] == ["CD33", "CD37", "CD3D"]
    assert page.complete(asked | {"text": ""}) == []
    assert page.gene(asked | {"gene": "cd3d"})["name"] == "CD3D"
    assert page.gene(asked | {"gene": "NOT-A-GENE"}) is None
    for other in ("", "guess", None):
        assert page.gene({"visit": other, "gene": "CD3D"}) is None
        assert page.complete({"visit": other, "text": "cd3"}) == []
    values = visit.result.gene_values(visit.result.genes.find("CD3D"))
    counts = visit.result.cells.adata[:, "CD3D"].X.toarray().ravel()
    assert ((values > 0) == (counts > 0)).all()


@pytest.mark.parametrize(
    "text",
    [
        "CD3D\t4\t0\nCD79A\t0\t7",
        "gene,cell a,cell b\nCD3D,4,0\nCD79A,0,7",
        '"cell a";"cell b"\n"CD3D";4;0\nCD79A;0;7\n',
        "CD3D 4 0\nCD79A 0 7\n\n",
        "cell\tCD3D\tCD79A\na\t4\t0\nb\t0\t7",
        '[{"CD3D": 4}, {"CD79A": 7}]',
    ],
)
def test_tables_are_read_as_they_are_pasted(blood_annotator, text):
    found = read_pasted(text, blood_annotator.known_genes)
    assert list(found.var_names) == ["CD3D", "CD79A"]
    assert found.X.toarray().tolist() == [[4, 0], [0, 7]]


def test_texts_choose_among_types_that_the_visitor_names(page_of, visit_of, cell_text_folder, some):
    page = page_of(Annotator(cell_text_folder, Limits(candidates=20)), cell_text_folder)
    visit, shown = visit_of(page, [some], candidates="B cell, T cell\nmonocyte")
    assert set(visit.result.found.predicted) <= {"B cell", "T cell", "monocyte"}
    assert page.annotator.reasons(visit.result, 0).lost is None
    assert "Genes that move the cell most" in page.explain(visit, 0)
    _, shown = visit_of(page, [some], branch="T cell")
    assert "at most 20" in shown["summary"]
    _, shown = visit_of(page, [some], branch="monocyte", leaves_only=True)
    assert "were not annotated" not in shown["summary"]
    for wrong in ({"candidates": ""}, {"branch": "no such type"}):
        _, shown = visit_of(page, [some], **wrong)
        assert "were not annotated" in shown["summary"]


def test_adapters_and_classifiers_without_a_calibration(page_of, visit_of, gene_classifiers, some):
    for name in ("classifier", "adapter"):
        page = page_of(Annotator(gene_classifiers[name]), gene_classifiers[name])
        visit, shown = visit_of(page, [some])
        assert len(visit.result.found) == 40, shown["summary"]
        assert '"novelty"' not in shown["map"]
        assert len(page.annotator.reasons(visit.result, 0).lost) == 12
    with pytest.raises(ValueError, match="for embeddings: the page annotates cells"):
        Annotator(gene_classifiers["base"])


def test_a_visit_leaves_nothing(tmp_path):
    visits = Visits(tmp_path / "visits", idle_seconds=0)
    shared, own = tmp_path / "shared" / "a.h5ad", tmp_path / "own" / "b.h5ad"
    for path in (shared, own):
        path.parent.mkdir()
        path.write_text("cells")
    first, second = visits.remember("first", [shared, own]), visits.remember("second", [shared])
    (first.folder / "result.h5ad").write_text("result")
    assert visits.by_key(first.key) is first
    visits.end("first")
    assert (first.folder.exists(), own.exists(), own.parent.exists(), shared.exists()) == (False, False, False, True)
    assert visits.by_key(first.key) is None
    visits.sweep()
    assert (second.folder.exists(), shared.exists(), len(visits)) == (False, False, 0)
    visits.end("nobody")


def test_on_zero_gpu_all_is_sent_between_processes(monkeypatch, gene_classifiers, cell_text_folder, blood):
    lent = []

    def sent(function):
        def run(*given):
            lent.append(function.__name__)
            return pickle.loads(pickle.dumps(function(*pickle.loads(pickle.dumps(given)))))

        return run

    spaces = types.SimpleNamespace(GPU=lambda duration: sent)
    monkeypatch.setitem(sys.modules, "spaces", spaces)
    from cellglot.model_cards.space.gradio import annotator as module
    from cellglot.model_cards.space.gradio.reading import read_table
    from cellglot.model_cards.space.gradio.zero_gpu import gpu

    for name in ("_annotate_on_gpu", "_reasons_on_gpu"):
        monkeypatch.setattr(module, name, gpu(getattr(module, name)))
    for folder, options in (
        (gene_classifiers["classifier"], {}),
        (cell_text_folder, {"candidates": "B cell, T cell"}),
    ):
        annotator = Annotator(folder)
        result = annotator.annotate(read_table(blood[:6].copy(), annotator.limits), **options)
        assert annotator.reasons(result, 0).genes
    assert lent == ["_annotate_on_gpu", "_reasons_on_gpu"] * 2


@pytest.fixture(params=["here", pytest.param("process", marks=pytest.mark.long)])
def checked_space(request, monkeypatch):
    """Let the labels of a Space's model be computed here and, which takes long, in a process with the Space's code."""
    if request.param == "process":
        return

    def check(model, folder):
        found = labels(folder / "model")
        assert found == labels(model)
        return len(found)

    kind = replace(publishing.space_kinds()["gradio"], check=check)
    monkeypatch.setattr(publishing, "space_kinds", lambda: {"gradio": kind})


def test_a_space_carries_model_and_code(checked_space, tmp_path):
    folder = cellglot.model_path("blood-exceiver")
    done = publish_space(folder, "cells", output=tmp_path / "cells", models=["owner/blood"])
    assert done.compared == 40
    assert (
        "a process with the Space's own code computed the types of example cells and returned the same 40 values"
        in (done.summary())
    )
    space = tmp_path / "cells"
    head = yaml.safe_load((space / "README.md").read_text().split("---")[1])
    assert (head["sdk"], head["app_file"], head["models"]) == ("gradio", "app.py", ["owner/blood"])
    assert head["license"] == "cc-by-sa-4.0"
    assert len(head["short_description"]) <= 60
    needed = (space / "requirements.txt").read_text()
    assert "torch>=" in needed
    assert "pytest" not in needed
    assert (space / "model" / "model.safetensors").is_file()
    assert not list(space.glob("cellglot/model_cards/collection/*/config.json"))
    compile((space / "app.py").read_text(), "app.py", "exec")
    with pytest.raises(ValueError, match="is not empty"):
        publish_space(folder, "cells", output=space)


def test_what_is_not_a_model_of_cells_has_no_space(gene_classifiers, tmp_path):
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens" / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="for embeddings"):
        publish_space(gene_classifiers["base"], "cells", output=tmp_path / "space")
    with pytest.raises(ValueError, match="is not a model"):
        publish_space(tmp_path / "tokens", "cells", output=tmp_path / "space")
    with pytest.raises(ValueError, match="without an owner"):
        publish_space(gene_classifiers["classifier"], "cells")


def test_app_says_what_to_install(monkeypatch):
    from typer.testing import CliRunner

    from cellglot.cli import app

    monkeypatch.setitem(sys.modules, "gradio", None)
    said = CliRunner().invoke(app, ["app"]).exception
    assert "pip install 'cellglot[app]'" in str(said)
    monkeypatch.undo()
    for wrong, expected in ((["nowhere"], "not a folder"), (["--most-cells", "0"], "at least 1")):
        assert expected in str(CliRunner().invoke(app, ["app", *wrong]).exception)


def test_publish_space_uploads_one(monkeypatch, gene_classifiers):
    from unittest.mock import create_autospec

    api = create_autospec(HfApi, instance=True)
    api.repo_exists.return_value = False
    api.create_commit.return_value.commit_url = "https://huggingface.co/spaces/owner/cells/commit/1"
    kind = replace(publishing.space_kinds()["gradio"], check=lambda model, folder: 40)
    monkeypatch.setattr(publishing, "space_kinds", lambda: {"gradio": kind})
    done = publish_space(gene_classifiers["adapter"], "owner/cells", license="mit", api=api)
    assert done.place.endswith("commit/1")
    assert api.create_repo.call_args.kwargs == {
        "repo_type": "space", "private": True, "exist_ok": False, "space_sdk": "gradio",
    }  # fmt: skip
    names = {operation.path_in_repo for operation in api.create_commit.call_args.args[1]}
    assert {"README.md", "app.py", "requirements.txt", "model/model.safetensors", "cellglot/__init__.py"} <= names
    assert not any("adapter_model" in name or "__pycache__" in name for name in names)
