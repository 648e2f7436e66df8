"""The component of label projection: its files as viash and openproblems read them, and its output."""

import re
import subprocess
import sys

import anndata as ad
import numpy as np
import pytest
import yaml

import cellglot
from cellglot.evaluation import project_labels
from cellglot.inputs import InputError


@pytest.fixture(scope="module")
def files(blood, tmp_path_factory):
    """Training and test cells as openproblems writes them: counts in a layer, no counts in X."""
    home = tmp_path_factory.mktemp("task")
    cells = blood[:160].copy()
    cells.layers["counts"] = cells.X.copy()
    cells.layers["normalized"] = np.log1p(cells.X)
    del cells.X
    cells.obs = cells.obs[["cell_type"]].rename(columns={"cell_type": "label"}).astype(str)
    cells.obs["batch"] = "one"
    cells.var["feature_name"] = cells.var_names
    cells.uns = {"dataset_id": "blood", "normalization_id": "log_cp10k", "dataset_organism": "homo_sapiens"}
    cells[:100].copy().write_h5ad(home / "train.h5ad")
    rest = cells[100:].copy()
    del rest.obs["label"]
    rest.write_h5ad(home / "test.h5ad")
    return home


@pytest.fixture(scope="module")
def component(model_folders, tmp_path_factory):
    home = tmp_path_factory.mktemp("methods") / "component"
    done = cellglot.export(model_folders["model"], home, format="openproblems")
    assert f"src/methods/{done.name}/config.vsh.yaml" in done.summary()
    return home


def test_the_config_has_what_openproblems_asks_for(component):
    config = yaml.safe_load((component / "config.vsh.yaml").read_text())
    assert re.fullmatch(r"[a-z][a-z0-9_]*", config["name"]) and config["__merge__"] == "/src/api/comp_method.yaml"
    assert config["summary"].endswith(".") and config["description"] and config["label"]
    assert config["references"]["doi"] == ["10.48550/arXiv.2210.14330"]
    assert config["info"]["preferred_normalization"] == "counts" and config["name"] in config["info"]["variants"]
    assert all("default" not in argument for argument in config["arguments"])
    assert config["resources"] == [{"type": "python_script", "path": "script.py"}]
    assert {runner["type"] for runner in config["runners"]} == {"executable", "nextflow"}


@pytest.mark.long
def test_the_script_writes_a_prediction_for_every_test_cell(component, files, model_folders, tmp_path):
    """The part between the marks is replaced, as viash does."""
    script = (component / "script.py").read_text()
    given = {"input_train": str(files / "train.h5ad"), "input_test": str(files / "test.h5ad"), "model": None,
             "output": str(tmp_path / "output.h5ad"), "batch_size": None}  # fmt: skip
    given_text = f"par = {given!r}\nmeta = {{'name': 'cellglot_model'}}\n"
    begin, end = "## VIASH START\n", "## VIASH END\n"
    before, _, rest = script.partition(begin)
    (tmp_path / "script.py").write_text(before + begin + given_text + end + rest.partition(end)[2])
    done = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "100 training cells" in done.stdout and "60 test cells" in done.stdout
    output, train = ad.read_h5ad(tmp_path / "output.h5ad"), ad.read_h5ad(files / "train.h5ad")
    assert output.obs_names.tolist() == ad.read_h5ad(files / "test.h5ad").obs_names.tolist()
    assert set(output.obs["label_pred"]) <= set(train.obs["label"])
    assert dict(output.uns) == {"dataset_id": "blood", "normalization_id": "log_cp10k", "method_id": "cellglot_model"}


def test_cells_without_a_known_gene_get_the_most_frequent_label(files, model_folders, tmp_path):
    test = ad.read_h5ad(files / "test.h5ad")
    counts = test.layers["counts"].tolil()
    counts[0] = 0
    test.layers["counts"] = counts.tocsr()
    test.write_h5ad(tmp_path / "test.h5ad")
    said = project_labels(
        files / "train.h5ad", tmp_path / "test.h5ad", model_folders["model"], tmp_path / "out.h5ad", method_id="m",
        device="cpu", progress=False,
    )  # fmt: skip
    assert "1 test cells express no gene of the model" in said
    labels = ad.read_h5ad(files / "train.h5ad").obs["label"]
    assert ad.read_h5ad(tmp_path / "out.h5ad").obs["label_pred"].iloc[0] == labels.value_counts().index[0]


def test_bad_input_is_named(files, model_folders, tmp_path):
    given = {"model": model_folders["model"], "output": tmp_path / "out.h5ad", "method_id": "m"}
    with pytest.raises(InputError, match=r"test.h5ad: no column 'label' in obs"):
        project_labels(files / "test.h5ad", files / "test.h5ad", **given)
    train = ad.read_h5ad(files / "train.h5ad")
    train.uns.pop("normalization_id")
    train.obs["label"] = [None, *train.obs["label"][1:]]
    train.write_h5ad(tmp_path / "train.h5ad")
    with pytest.raises(InputError, match="1 of 100 training cells have no label"):
        project_labels(tmp_path / "train.h5ad", files / "test.h5ad", **given)
    with pytest.raises(InputError, match="no normalization_id in uns"):
        project_labels(files / "train.h5ad", tmp_path / "train.h5ad", **given)
    with pytest.raises(InputError, match="does not exist"):
        project_labels(files / "train.h5ad", tmp_path / "none.h5ad", **given)
    with pytest.raises(ValueError, match="input"):
        project_labels(files / "train.h5ad", files / "test.h5ad", **given | {"output": files / "test.h5ad"})
    assert not (tmp_path / "out.h5ad").exists()


def test_an_export_takes_no_weights_options(model_folders, tmp_path):
    with pytest.raises(ValueError, match="takes no dtype, adapter or cells"):
        cellglot.export(model_folders["model"], tmp_path / "c", format="openproblems", dtype="float16")
    with pytest.raises(ValueError, match="format 'viash': it is onnx, openproblems"):
        cellglot.export(model_folders["model"], tmp_path / "c", format="viash")
