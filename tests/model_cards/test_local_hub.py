"""Publishing to a Hub on this machine by the real client, and taking everything back in a process without cellglot."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import close_session
from local_hub import TOKEN, LocalHub
from transformers import AutoTokenizer, pipeline

import cellglot
from cellglot.evaluation import metrics
from cellglot.model_cards import publishing
from cellglot.model_cards.card.details import CardDetails
from cellglot.model_cards.checks import clean_process
from cellglot.model_cards.publishing import publish
from cellglot.model_cards.space import publishing as publishing_spaces
from cellglot.model_cards.space.browser.serve import served
from cellglot.model_cards.space.publishing import publish_space
from cellglot.model_cards.upload import RepositoryExistsError
from cellglot.modeling import ExceiverForSequenceClassification
from cellglot.outputs import MANIFEST_FILE


TAKEN_BACK = """
import importlib.util, json, sys
import torch
from datasets import load_dataset
from huggingface_hub import snapshot_download
from huggingface_hub.errors import RepositoryNotFoundError
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

first, cells = json.loads(arguments[0])
given = {}
own = {"trust_remote_code": True}
for revision in (first, "main"):
    model = AutoModelForSequenceClassification.from_pretrained("lab/classifier", revision=revision, **own).eval()
    tokenizer = AutoTokenizer.from_pretrained("lab/classifier", revision=revision, **own)
    batch = tokenizer(cells, return_tensors="pt")
    with torch.inference_mode():
        given[revision] = model(**batch).logits.tolist()
given["classes"] = type(model).__module__.split(".")[0]
given["pipeline"] = pipeline("cell-type-annotation", model="lab/classifier", **own)(cells)
adapted = AutoModelForSequenceClassification.from_pretrained("lab/adapter", **own).eval()
with torch.inference_mode():
    given["adapter"] = adapted(**batch).logits.tolist()
try:
    snapshot_download("lab/classifier", token=False, cache_dir="elsewhere")
except RepositoryNotFoundError as error:
    given["without token"] = str(error)
rows = load_dataset("lab/cells", split="train", streaming=True)
given["rows"] = [{"input_ids": row["input_ids"], "cell_type": row["cell_type"]} for row in rows.take(3)]
folder = snapshot_download("lab/adapter")
spec = importlib.util.spec_from_file_location("handler.EndpointHandler", folder + "/handler.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
given["endpoint"] = module.EndpointHandler(folder)({"inputs": cells})["labels"]
print(json.dumps(given))
"""


HEADERS = {"Authorization": f"Bearer {TOKEN}"}
DETAILS = {"license": "apache-2.0", "training_data": "700 blood cells.", "training_data_license": "CC BY 4.0"}


@pytest.fixture(scope="module")
def hub():
    """An empty Hub, which the client of this process reaches; waiting before it tries again takes no time."""
    with LocalHub() as hub, pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
        patch.setattr(publishing, "visit_as_stranger", clean_process.visit_here)  # a stranger comes at the end
        close_session()
        yield hub
    close_session()


@pytest.fixture(scope="module")
def api(hub):
    return HfApi(hub.address, token=TOKEN)


@pytest.fixture(scope="module")
def first(hub, api, folders):
    """The number of the first commit of lab/classifier, whose upload was interrupted once."""
    details = CardDetails(**DETAILS)
    hub.break_after = 1
    with pytest.raises(RuntimeError, match="Error while uploading '.*safetensors'"):
        publish(folders["classifier"], "lab/classifier", details=details, api=api)
    hub.break_after, arrived, sent = None, set(hub.objects), hub.uploads()
    assert api.list_repo_files("lab/classifier") == [".gitattributes"]
    done = publish(folders["classifier"], "lab/classifier", details=details, api=api)
    large = {oid for path, oid in hub.repositories["model", "lab/classifier"].commits[-1][1].items()
             if path.endswith(".safetensors")}  # fmt: skip
    assert len(large) == 2 and len(large & arrived) == 1 and hub.uploads() - sent == 1
    assert done.place.startswith(f"{hub.address}/lab/classifier/commit/")
    return done.place.rpartition("/")[2]


@pytest.fixture(scope="module")
def published(hub, api, first, folders, adapter, corpus, tmp_path_factory):
    """Folder of the second revision of lab/classifier, after everything else was published."""
    second = tmp_path_factory.mktemp("second") / "classifier"
    shutil.copytree(folders["classifier"], second)
    model = ExceiverForSequenceClassification.from_pretrained(second)
    with torch.no_grad():
        for weights in model.classifier.parameters():
            weights.mul_(2)
    model.save_pretrained(second)
    details = CardDetails(**DETAILS)
    publish(second, "lab/classifier", details=details, api=api, overwrite=True)
    publish(folders["exceiver"], "lab/exceiver", details=details, api=api, private=False)
    of_base = CardDetails(**DETAILS, base_model="lab/exceiver")
    publish(adapter, "lab/adapter", details=of_base, api=api, base=folders["exceiver"])
    publish(corpus.folder, "lab/cells", details=details, api=api)
    metric = Path(next(iter(metrics.__path__)), "cell_type_classification")
    publish(metric, "lab/cell_type_classification", details=CardDetails(license="apache-2.0"), api=api)
    return second


def client(hub, folder):
    """Return the environment of a process whose Hub this one is."""
    return os.environ | {
        "HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN, "HF_HOME": str(folder / "home"),
        "HF_HUB_DISABLE_XET": "1", "HF_DATASETS_CACHE": str(folder / "datasets"),
    }  # fmt: skip


def logits(folder, cells, **options):
    tokenizer = AutoTokenizer.from_pretrained(options.pop("tokenizer", folder))
    model = ExceiverForSequenceClassification.from_pretrained(folder, **options).eval()
    with torch.inference_mode():
        return model(**tokenizer(cells, return_tensors="pt")).logits.numpy()


def test_everything_is_taken_back_without_cellglot(
    published, hub, first, folders, adapter, blood, corpus, stranger, tmp_path
):
    cells = [{g: int(c) for g, c in zip(blood.var_names, row, strict=True) if c} for row in blood.X[:3].toarray()]
    given = json.loads(stranger(TAKEN_BACK, json.dumps([first, cells]), **client(hub, tmp_path)).splitlines()[-1])
    assert given["classes"] == "transformers_modules"
    np.testing.assert_allclose(given[first], logits(folders["classifier"], cells), atol=1e-5)
    np.testing.assert_allclose(given["main"], logits(published, cells), atol=1e-5)
    assert np.abs(np.subtract(given[first], given["main"])).max() > 1e-3
    expected = pipeline("cell-type-annotation", model=str(published))(cells)
    assert [cell["label"] for cell in given["pipeline"]] == [cell["label"] for cell in expected]
    adapted = logits(adapter, cells, tokenizer=folders["exceiver"])
    np.testing.assert_allclose(given["adapter"], adapted, atol=1e-5)
    names = ExceiverForSequenceClassification.from_pretrained(adapter).config.id2label
    assert [cell["label"] for cell in given["endpoint"]] == [names[i] for i in adapted.argmax(axis=1)]
    assert "401" in given["without token"]
    shard = next(s["file"] for s in corpus.manifest["shards"] if s["split"] == "train" and s["cells"])
    rows = pq.read_table(corpus.folder / shard, columns=["input_ids", "cell_type"])
    assert given["rows"] == rows.slice(0, 3).to_pylist()
    assert hub.ranges  # streamed in parts, not as a whole


def test_the_hub_keeps_what_is_private_and_refuses_what_is_not_ours(published, hub, api):
    stranger = HfApi(hub.address, token=False)
    for name, kind in (("lab/classifier", "model"), ("lab/cells", "dataset"), ("lab/nothing", "model")):
        with pytest.raises(RepositoryNotFoundError):
            stranger.repo_info(name, repo_type=kind)
    assert stranger.model_info("lab/exceiver").private is False
    with pytest.raises(HfHubHTTPError, match="401"):
        publish(published, "lab/new", details=CardDetails(**DETAILS), api=stranger)
    assert ("model", "lab/new") not in hub.repositories
    with pytest.raises(RepositoryExistsError, match="the model repository lab/classifier exists"):
        publish(published, "lab/classifier", details=CardDetails(**DETAILS), api=api)


def test_a_space_is_created_with_its_files(published, hub, api):
    space = hub.repositories["space", "lab/cell_type_classification"]
    assert space.settings["sdk"] == "gradio" and space.private
    files = api.list_repo_files("lab/cell_type_classification", repo_type="space")
    assert {"README.md", "app.py", "cell_type_classification.py"} <= set(files)
    card = api.hf_hub_download(
        "lab/cell_type_classification", "README.md", repo_type="space", local_dir=published.parent
    )
    assert "sdk: gradio" in Path(card).read_text()


def test_models_and_adapters_have_what_an_endpoint_loads(published, api):
    for name in ("lab/classifier", "lab/adapter", "lab/exceiver"):
        files = set(api.list_repo_files(name))
        assert {"handler.py", "requirements.txt", "endpoint_service.py", "endpoint_h5ad.py"} <= files


@pytest.mark.long
def test_graphs_travel_with_a_model_and_annotate_from_the_hub(hub, api, gene_classifiers, blood, tmp_path):
    details = CardDetails(**DETAILS, ontology_release="2026-03-26")
    done = publish(gene_classifiers["classifier"], "lab/graphs", details=details, api=api, onnx=True)
    graphs = {"onnx/model.onnx", "onnx/model_fp16.onnx"}
    assert graphs <= set(done.files) & set(api.list_repo_files("lab/graphs"))
    cells, found = blood[:30].copy(), tmp_path / "found.h5ad"
    cells.write_h5ad(tmp_path / "cells.h5ad")
    arguments = ["annotate", "lab/graphs", tmp_path / "cells.h5ad", "-o", found, "--backend", "onnx"]
    command = [sys.executable, "-m", "cellglot", *map(str, arguments)]
    sent = len(hub.log)
    ran = subprocess.run(command, env=client(hub, tmp_path), capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    there = ad.read_h5ad(found)
    here = cellglot.annotate(cells, gene_classifiers["classifier"], copy=True, device="cpu")
    assert list(there.obs["cellglot_cell_type"]) == list(here.obs["cellglot_cell_type"])
    np.testing.assert_allclose(there.obsm["X_cellglot"], here.obsm["X_cellglot"], atol=1e-4)
    read = {path for _, path in hub.log[sent:]}
    assert any(path.endswith("onnx/model.onnx") for path in read)


@pytest.mark.long
def test_a_page_of_an_adapter_is_taken_back_and_annotates(
    hub, api, gene_classifiers, space_in_browser, blood, chromium, tmp_path, monkeypatch
):
    """Published as a static Space, its files are those that were built, and Chromium opens them."""
    built, taken = space_in_browser, tmp_path / "taken"

    def put(model, target, facts):
        assert model == gene_classifiers["adapter"]
        shutil.copytree(built, target, ignore=shutil.ignore_patterns(MANIFEST_FILE), dirs_exist_ok=True)

    kind = replace(publishing_spaces.space_kinds()["browser"], build=put)
    monkeypatch.setattr(publishing_spaces, "space_kinds", lambda: {"browser": kind})
    done = publish_space(gene_classifiers["adapter"], "lab/page", kind="browser", api=api)
    assert "without cellglot" not in done.summary() and "onnxruntime computed the scores" in done.summary()
    assert hub.repositories["space", "lab/page"].settings["sdk"] == "static"
    api.snapshot_download("lab/page", repo_type="space", local_dir=taken, cache_dir=tmp_path / "cache")
    files = [path.relative_to(built) for path in built.rglob("*") if path.is_file() and path.name != MANIFEST_FILE]
    assert Path("model/model.onnx.gz") in files
    assert all((built / name).read_bytes() == (taken / name).read_bytes() for name in files)
    cells = blood[:60].copy()
    cells.write_h5ad(tmp_path / "cells.h5ad")
    expected = cellglot.annotate(cells, gene_classifiers["adapter"], copy=True, device="cpu").obs
    page = chromium.new_page()
    with served(taken) as address:
        page.goto(address)
        page.wait_for_selector("html[data-ready=yes]", state="attached", timeout=120_000)
        page.set_input_files("#file", tmp_path / "cells.h5ad")
        page.wait_for_selector("html[data-shown=result]", state="attached", timeout=120_000)
        with page.expect_download() as download:
            page.click("#download")
        table = pd.read_csv(download.value.path(), index_col="cell_id")
    page.close()
    assert list(table["cellglot_cell_type"]) == list(expected["cellglot_cell_type"])
    scores = [name for name in table if name in expected and expected[name].dtype.kind == "f"]
    assert scores, list(table)
    np.testing.assert_allclose(table[scores], expected[scores], atol=1e-3)


def test_a_download_that_was_cut_short_is_resumed(published, hub, api, tmp_path):
    """The client of the Hub asks for the rest of a file, by its ETag and a range."""
    content = hub.objects[hub.repositories["model", "lab/classifier"].commits[-1][1]["model.safetensors"]]
    cut = len(content) // 2
    whole = api.hf_hub_download("lab/classifier", "model.safetensors", local_dir=tmp_path / "whole")
    assert Path(whole).read_bytes() == content
    part = tmp_path / "part"
    part.write_bytes(content[:cut])
    with part.open("r+b") as file:
        file.seek(cut)
        http_get(
            f"{hub.address}/lab/classifier/resolve/main/model.safetensors", file, resume_size=cut,
            expected_size=len(content), headers=HEADERS,
        )  # fmt: skip
    assert part.read_bytes() == content and hub.ranges[-1] == (cut, len(content) - 1)
