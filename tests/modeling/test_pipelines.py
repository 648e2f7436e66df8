"""The pipelines with cellglot imported: every form of cells, of models and of classes."""

import json
import shutil

import anndata as ad
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, pipeline

from cellglot.evaluation.annotation.by_texts import annotate_cells
from cellglot.modeling import (
    CellEmbeddingPipeline,
    CellTypeAnnotationPipeline,
    ExceiverModel,
    ScCelloForSequenceClassification,
    ScCelloModel,
)
from cellglot.modeling.adapter_folders import weights_fingerprint
from cellglot.modeling.any_model import load_cell_text_model
from cellglot.modeling.cell_pipeline import opened_cells
from cellglot.tokenization import GeneCoverageError, NotCountsError, read_cells


EMBED, ANNOTATE = "cell-embedding", "cell-type-annotation"
CPU = {"device": "cpu"}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tiny tensors are computed by one thread: waiting for others takes longer."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def few(blood, tmp_path_factory):
    """Forty cells, and the file of them."""
    path = tmp_path_factory.mktemp("few") / "few.h5ad"
    blood[:40].write_h5ad(path)
    return blood[:40].copy(), path


@pytest.fixture(scope="module")
def embed(gene_classifiers):
    return pipeline(EMBED, model=str(gene_classifiers["classifier"]), **CPU)


@pytest.fixture(scope="module")
def annotate(gene_classifiers):
    return pipeline(ANNOTATE, model=str(gene_classifiers["classifier"]), **CPU)


@pytest.fixture(scope="module")
def logits(gene_classifiers, few):
    """Of all cells at once."""
    folder = gene_classifiers["classifier"]
    batch = AutoTokenizer.from_pretrained(folder)(few[0], return_tensors="pt")
    with torch.no_grad():
        return AutoModelForSequenceClassification.from_pretrained(folder).eval()(**batch).logits


def cell(cells, number):
    """A cell as {gene: count}."""
    row = cells.X[number].toarray().ravel()
    return {gene: int(count) for gene, count in zip(cells.var_names, row, strict=True) if count}


def test_embeddings_of_every_form_of_cells(embed, gene_classifiers, few):
    cells, path = few
    batch = embed.tokenizer(cells, return_tensors="pt")
    with torch.no_grad():
        expected = AutoModel.from_pretrained(gene_classifiers["classifier"]).eval()(**batch).pooler_output.numpy()
    backed = ad.read_h5ad(path, backed="r")
    genes = list(cells.var_names)
    with read_cells(path) as opened:
        given = {
            "AnnData": cells, "path": path, "name of a path": str(path), "backed": backed, "opened": opened,
            "columns": ad.AnnData(sp.csc_matrix(cells.X), var=cells.var), "view": cells[::-1][::-1],
            "dictionaries": [cell(cells, i) for i in range(40)], "data frame": cells.to_df(),
            "series": [cells.to_df().iloc[i] for i in range(40)],
        }  # fmt: skip
        for name, form in given.items():
            found = embed(form, batch_size=7)
            assert found.dtype == np.float32 and found.shape == expected.shape, name
            np.testing.assert_allclose(found, expected, atol=2e-6, err_msg=name)
    for matrix in (cells.X, cells.X.toarray(), cells.X.todok(), torch.from_numpy(cells.X.toarray()).to_sparse_csr()):
        np.testing.assert_allclose(embed(matrix, genes=genes), expected, atol=2e-6)
    np.testing.assert_allclose(embed(cell(cells, 3)), expected[3], atol=2e-6)
    assert embed(cell(cells, 3)).shape == embed(cells.to_df().iloc[3]).shape == (16,)


def test_report_and_audit(embed, few, blood_log):
    cells, _ = few
    embed(cells)
    assert embed.last_report is embed.tokenizer.last_report
    assert embed.last_report.cells == 40 and embed.last_report.matched == 765
    with pytest.raises(NotCountsError, match="no raw counts"):
        embed(blood_log.X, genes=list(blood_log.var_names))
    with pytest.raises(GeneCoverageError, match="no gene of these cells"):
        embed({"Gapdh-mouse": 3})
    with pytest.raises(GeneCoverageError, match="below 50%"):
        embed({"CD79A": 1, "unknown": 9})
    assert embed({"CD79A": 1, "unknown": 9}, min_coverage=0.05).shape == (16,)
    embed(blood_log[:5])
    assert "recovered" in embed.last_report.counts_in


def test_annotation_by_a_head(annotate, logits, few):
    cells, path = few
    scores = logits.softmax(1).numpy()
    names, types = ["B cell", "T cell", "monocyte", "odd"], {"B cell": "CL:0000236", "T cell": "CL:0000084"}
    found = annotate(path, batch_size=9)
    assert [f["label"] for f in found] == [names[i] for i in scores.argmax(1)]
    np.testing.assert_allclose([f["score"] for f in found], scores.max(1), atol=1e-6)
    assert all(f["cell_type_ontology_term_id"] == types.get(f["label"]) for f in found)
    ranked = annotate(cells, top_k=3)
    assert [[f["label"] for f in of_cell] for of_cell in ranked] == [
        [names[i] for i in np.argsort(-row)[:3]] for row in scores
    ]
    assert annotate(cells, top_k=99)[0][3]["score"] == pytest.approx(scores[0].min(), abs=1e-6)
    one = annotate(cell(cells, 5))
    assert one["label"] == found[5]["label"] and one["score"] == pytest.approx(found[5]["score"], abs=1e-6)
    assert json.loads(json.dumps(found)) == found


def test_a_cell_without_known_genes_has_no_label(annotate, few):
    cells, _ = few
    counts = cells.X[:3].tolil()
    counts[1] = 0
    found = annotate(sp.csr_matrix(counts), genes=list(cells.var_names))
    assert found[1] == {"label": None, "score": None, "cell_type_ontology_term_id": None}
    assert found[0]["label"] and annotate.last_report.cells_without_genes == 1


def test_annotation_by_texts(cell_text_folder, few):
    cells, _ = few
    candidates = {"B cell": ["cell type: B cell. ", "makes antibodies"], "T cell": "cell type: T cell. "}
    found = pipeline(ANNOTATE, model=str(cell_text_folder), candidate_labels=candidates, top_k=2, **CPU)(cells)
    expected = annotate_cells(*load_cell_text_model(cell_text_folder), cells, candidates, device="cpu", progress=False)
    assert [f[0]["label"] for f in found] == expected.predicted
    np.testing.assert_allclose([f[0]["score"] for f in found], expected.score, atol=1e-5)
    named = pipeline(ANNOTATE, model=str(cell_text_folder), **CPU)
    by_name = named(cells, candidate_labels=["T cell", "B cell"], alpha=0.5)
    texts = {name: f"cell type: {name}. " for name in ("T cell", "B cell")}
    same = named(cells, candidate_labels=texts, alpha=0.5)
    assert by_name == same
    with pytest.raises(ValueError, match="no candidates"):
        named(cells)


def test_an_adapter_on_its_base(gene_classifiers, few):
    from cellglot.modeling.adapters import load_with_adapter

    cells, _ = few
    model = load_with_adapter(gene_classifiers["adapter"])
    tokenizer = AutoTokenizer.from_pretrained(gene_classifiers["base"])
    with torch.no_grad():
        scores = model(**tokenizer(cells, return_tensors="pt")).logits.softmax(1).numpy()
    base, adapter = str(gene_classifiers["base"]), str(gene_classifiers["adapter"])
    for given in ({"model": base, "adapter": adapter}, {"model": adapter}):
        found = pipeline(ANNOTATE, **given, **CPU)(cells)
        assert [f["label"] for f in found] == [["T cell", "NK", "other"][i] for i in scores.argmax(1)]
        np.testing.assert_allclose([f["score"] for f in found], scores.max(1), atol=1e-6)
        assert {f["cell_type_ontology_term_id"] for f in found if f["label"] == "T cell"} <= {"CL:0000084"}
    loaded = AutoModelForSequenceClassification.from_pretrained(adapter)
    assert loaded.config.id2label[1] == "NK"


def test_an_adapter_on_another_base(gene_classifiers, model_folders_of_others, tmp_path):
    adapter = str(gene_classifiers["adapter"])
    for folder, message in model_folders_of_others.items():
        with pytest.raises(ValueError, match=rf"adapter was trained on .*base \(sccello.*\), not on .*{message}"):
            pipeline(ANNOTATE, model=str(folder), adapter=adapter, **CPU)
    with pytest.raises(ValueError, match="is not an adapter: it has no adapter_config.json"):
        pipeline(ANNOTATE, model=str(gene_classifiers["base"]), adapter=str(tmp_path), **CPU)


@pytest.fixture
def adapter_of_repository(gene_classifiers, repository, tmp_path):
    """An adapter that names a repository as its base, at a revision that is no longer the main one; the revision."""
    commit = repository(gene_classifiers["base"], "lab/base")
    changed = ScCelloModel.from_pretrained(gene_classifiers["base"])
    with torch.no_grad():
        next(changed.parameters()).add_(1)
    shutil.copytree(gene_classifiers["base"], tmp_path / "changed")
    changed.save_pretrained(tmp_path / "changed")
    for name in ("lab/base", "lab/other"):
        repository(tmp_path / "changed", name, "f" * 40)
    folder = tmp_path / "lora"
    shutil.copytree(gene_classifiers["adapter"], folder)
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings |= {"base_model_name_or_path": "lab/base", "revision": commit}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    record = {"base_model_fingerprint": weights_fingerprint(gene_classifiers["base"])}
    (folder / "training_run.json").write_text(json.dumps(record))
    return folder, commit


def test_the_weights_of_a_repository_are_compared(adapter_of_repository, gene_classifiers):
    folder, commit = adapter_of_repository
    for base in ("lab/other", "lab/base"):
        message = (
            rf"lora was trained on lab/base \(sccello at revision {commit[:12]}, weights \w+\), not on {base}, whose"
        )
        with pytest.raises(ValueError, match=message):
            pipeline(ANNOTATE, model=base, adapter=str(folder), **CPU)
    loaded = AutoModelForSequenceClassification.from_pretrained(folder)
    here = AutoModelForSequenceClassification.from_pretrained(gene_classifiers["adapter"])
    for name, weight in loaded.state_dict().items():
        assert torch.equal(weight, here.state_dict()[name]) or "original_module" in name, name
    record = folder / "training_run.json"
    record.write_text(json.dumps({"base_model_fingerprint": "0" * 32}))
    with pytest.raises(ValueError, match=r"weights 0{12}\), not on lab/base, whose weights \(\w{12}\) differ"):
        AutoModelForSequenceClassification.from_pretrained(folder)


def test_an_adapter_of_the_hub_alone(adapter_of_repository, gene_classifiers, repository, few):
    folder, _ = adapter_of_repository
    repository(folder, "lab/lora", "a" * 40)
    cells, _ = few
    expected = pipeline(ANNOTATE, model=str(gene_classifiers["adapter"]), **CPU)(cells)
    assert pipeline(ANNOTATE, model="lab/lora", **CPU)(cells) == expected
    by_class = ScCelloForSequenceClassification.from_pretrained("lab/lora")
    by_auto_class = AutoModelForSequenceClassification.from_pretrained("lab/lora")
    assert list(by_class.config.id2label.values()) == ["T cell", "NK", "other"]
    assert all(torch.equal(by_class.state_dict()[name], weight) or "original_module" in name
               for name, weight in by_auto_class.state_dict().items())  # fmt: skip
    (folder / "training_run.json").write_text(json.dumps({"base_model_fingerprint": "0" * 32}))
    repository(folder, "lab/lora", "b" * 40)
    with pytest.raises(
        ValueError, match=r"lab/lora was trained on lab/base .*weights 0{12}\), not on lab/base, whose weights"
    ):
        pipeline(ANNOTATE, model="lab/lora", **CPU)
    earlier = ScCelloForSequenceClassification.from_pretrained("lab/lora", revision="a" * 40)
    assert torch.equal(earlier.classifier.weight, by_class.classifier.weight)


@pytest.fixture
def model_folders_of_others(gene_classifiers, cell_text_folder, sccello_config, vocabulary, tmp_path):
    """Folders of models on which the adapter was not trained -> what is said of them."""
    tokenizer = AutoTokenizer.from_pretrained(gene_classifiers["base"])
    changed = ScCelloModel.from_pretrained(gene_classifiers["base"])
    with torch.no_grad():
        next(changed.parameters()).add_(1)
    changed.save_pretrained(tmp_path / "changed")
    wide = sccello_config(vocab_size=tokenizer.vocab_size, hidden_size=32)
    ScCelloModel(wide).save_pretrained(tmp_path / "wide")
    for name in ("changed", "wide"):
        tokenizer.save_pretrained(tmp_path / name)
    record = gene_classifiers["adapter"] / "training_run.json"
    record.write_text(json.dumps({"base_model_fingerprint": weights_fingerprint(gene_classifiers["base"])}))
    yield {
        cell_text_folder: r"\(langcell\): they are models of different types",
        tmp_path / "wide": "wide, which has hidden_size=32 instead of 16",
        tmp_path / "changed": r"changed, whose weights \(.*\) differ",
    }
    record.unlink()


def test_models_that_name_no_cell_type(gene_classifiers, exceiver_config, annotate, cell_text_folder):
    with pytest.raises(ValueError, match=r"base has no classes: ScCelloModel embeds cells\. Fine-tune it"):
        pipeline(ANNOTATE, model=str(gene_classifiers["base"]), **CPU)
    with pytest.raises(ValueError, match="the model was not loaded from a folder: pass its tokenizer"):
        CellEmbeddingPipeline(ExceiverModel(exceiver_config()), **CPU)
    with pytest.raises(ValueError, match="tokenizer has 768 ids, but the model's vocab_size is 42"):
        CellEmbeddingPipeline(ExceiverModel(exceiver_config()), annotate.tokenizer, **CPU)
    model = AutoModelForSequenceClassification.from_pretrained(gene_classifiers["classifier"])
    model.config.problem_type = "regression"
    with pytest.raises(ValueError, match="predicts a value of cells, not classes"):
        CellTypeAnnotationPipeline(model, annotate.tokenizer, **CPU)


def test_wrong_options(annotate, embed, few, tmp_path, monkeypatch):
    cells, path = few
    wrong = {
        r"is a classifier of 4 fixed classes \(B cell, T cell, monocyte, odd\)": {"candidate_labels": ["B cell"]},
        "top_k=0": {"top_k": 0},
        "batch_size=0": {"batch_size": 0},
    }
    for message, options in wrong.items():
        with pytest.raises(ValueError, match=message):
            annotate(cells, **options)
    with pytest.raises(TypeError, match="CellEmbeddingPipeline does not take top_k, truncation"):
        embed(cells, top_k=3, truncation=True)
    with pytest.raises(ValueError, match=r"pipelines open \.h5ad only; open other files by .*read_cells"):
        embed("cells.zarr")
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none\.h5ad"):
        embed(tmp_path / "none.h5ad")
    with pytest.raises(ValueError, match="no cells"):
        embed([])
    monkeypatch.setitem(__import__("sys").modules, "anndata", None)
    with pytest.raises(ImportError, match="needs anndata: pip install anndata"):
        embed(path)


def test_wrong_candidates(cell_text_folder, few):
    named = pipeline(ANNOTATE, model=str(cell_text_folder), **CPU)
    for message, options in {
        "candidate '' has an empty name": {"candidate_labels": ["B cell", ""]},
        "candidate 'a' has an empty name or text": {"candidate_labels": {"a": []}},
        "has no field {name}": {"candidate_labels": ["a"], "template": "cell"},
    }.items():
        with pytest.raises(ValueError, match=message):
            named(few[0], **options)


def test_a_saved_pipeline_is_a_whole_folder(annotate, cell_text_folder, few, tmp_path):
    annotate.save_pretrained(tmp_path / "head")
    assert pipeline(ANNOTATE, model=str(tmp_path / "head"), **CPU)(few[0]) == annotate(few[0])
    texts = pipeline(ANNOTATE, model=str(cell_text_folder), candidate_labels=["a", "b"], **CPU)
    expected = texts(few[0])
    texts.save_pretrained(tmp_path / "texts")
    loaded = pipeline(ANNOTATE, model=str(tmp_path / "texts"), candidate_labels=["a", "b"], **CPU)
    assert loaded(few[0]) == expected
    recorded = json.loads((tmp_path / "head" / "config.json").read_text())["custom_pipelines"]
    assert set(recorded) == {EMBED, ANNOTATE}
    assert all((tmp_path / "head" / f"{p['impl'].split('.')[0]}.py").exists() for p in recorded.values())


def test_a_bar_for_many_cells(embed, few, capsys, monkeypatch):
    monkeypatch.setattr("transformers.utils.logging._tqdm_active", True)  # whatever tests before it left
    embed(few[0])
    assert "cells" not in capsys.readouterr().err
    embed(few[0], progress=True)
    assert "40/40" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"cells", b"\x89HDF\r\n\x1a\n" + bytes(600)])
def test_a_file_that_is_not_cells_is_named(tmp_path, content):
    (tmp_path / "a.h5ad").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.h5ad cannot be read"), opened_cells(tmp_path / "a.h5ad"):
        pass


@pytest.mark.parametrize("kind", ["link", "bytes", "virtual"])
def test_data_of_another_file_are_refused(blood, tmp_path, kind):
    blood[:5].write_h5ad(tmp_path / "a.h5ad")
    (tmp_path / "secret").write_bytes(b"secret" * 5)
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["secret"] = np.zeros(5)
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        if kind == "link":
            file["obs/donor"] = h5py.ExternalLink("other.h5", "/secret")
        elif kind == "bytes":
            file["obs"].create_dataset("donor", shape=(5,), dtype="S6", external=[(str(tmp_path / "secret"), 0, 30)])
        else:
            layout = h5py.VirtualLayout((5,), dtype=float)
            layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "secret", shape=(5,))
            file["obs"].create_virtual_dataset("donor", layout)
    with pytest.raises(ValueError, match=r"a\.h5ad .*/obs/donor are in another"), opened_cells(tmp_path / "a.h5ad"):
        pass
