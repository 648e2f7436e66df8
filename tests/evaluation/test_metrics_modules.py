"""The metrics as modules of `evaluate`: self-contained, loaded without a network, as their cards say."""

import ast
import json
import re
import shutil
import sys

import evaluate
import numpy as np
import pytest

from cellglot.evaluation import load_metric, metric_names, metric_path


NAMES = metric_names()
STRANGERS_HAVE = {"numpy", "scipy", "sklearn", "evaluate", "datasets"} | sys.stdlib_module_names

LOAD = """
import json, socket
def refuse(*_): raise OSError("no network")
socket.socket.connect = refuse
import evaluate
print(json.dumps({path: type(evaluate.load(path)).__name__ for path in arguments}))
"""


def card(name):
    return (metric_path(name) / "README.md").read_text(encoding="utf-8")


def test_there_are_metrics_for_all_tasks():
    assert NAMES == [
        "cell_embedding_quality",
        "cell_type_classification",
        "cell_value_regression",
        "clustering_agreement",
        "marker_gene_auroc",
    ]
    with pytest.raises(ValueError, match="no metric 'accuracy'; there are cell_embedding_quality, "):
        metric_path("accuracy")


@pytest.mark.parametrize("name", NAMES)
def test_a_metric_imports_what_a_stranger_has(name):
    tree = ast.parse((metric_path(name) / f"{name}.py").read_text(encoding="utf-8"))
    imports = [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]
    found = {a.name for n in imports if isinstance(n, ast.Import) for a in n.names}
    found |= {n.module or "" for n in imports if isinstance(n, ast.ImportFrom)}
    assert {n.split(".")[0] for n in found} <= STRANGERS_HAVE
    assert {p.name for p in metric_path(name).iterdir()} - {"__pycache__"} == {f"{name}.py", "README.md"}


@pytest.mark.long
def test_copied_folders_load_in_a_process_without_cellglot_and_network(stranger, tmp_path):
    for name in NAMES:
        shutil.copytree(metric_path(name), tmp_path / name)
    printed = stranger(LOAD, *(str(tmp_path / name) for name in NAMES), HF_HOME=str(tmp_path / "home"))
    loaded = json.loads(printed.splitlines()[-1])
    assert [loaded[str(tmp_path / n)] for n in NAMES] == ["".join(w.title() for w in n.split("_")) for n in NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_the_example_of_a_card_gives_what_the_card_says(name, capsys, monkeypatch):
    monkeypatch.chdir(metric_path(name).parent)
    code, output = re.search(r"```python\n(.*?)```\n\n```text\n(.*?)```", card(name), re.DOTALL).groups()
    exec(compile(code, f"{name}/README.md", "exec"), {})
    assert capsys.readouterr().out == output


@pytest.mark.parametrize("name", NAMES)
def test_a_card_has_metadata_and_every_output(name):
    text = card(name)
    head = text.split("---")[1]
    assert all(f"{key}:" in head for key in ("title", "sdk", "license", "tags", "description"))
    outputs = re.search(r"Returns:\n(.*)", load_metric(name).inputs_description, re.DOTALL).group(1)
    named = {n for line in outputs.splitlines() for n in re.findall(r"\b[a-z_0-9]+\b", line.split(":")[0])}
    assert named and not [n for n in named if f"`{n}`" not in text]


def test_results_are_plain_types_and_json():
    for name in NAMES:
        metric = load_metric(name)
        assert isinstance(metric, evaluate.Metric)
        assert isinstance(metric.features, dict)
    inputs = {
        "cell_embedding_quality": ([[0.0], [1.0], [2.0]], ["a", "a", "b"], {"n_neighbors": 2, "clusters": [1, 1, 2]}),
        "cell_type_classification": (["a", "b"], ["a", "b"], {"scores": np.eye(2), "classes": ["a", "b"]}),
        "cell_value_regression": ([1.0, 2.0], [1.0, 3.0], {}),
        "clustering_agreement": ([1, 2], ["a", "b"], {}),
        "marker_gene_auroc": ([[1.0, 2.0]], [[0, 1]], {}),
    }
    for name, (predictions, references, more) in inputs.items():
        result = load_metric(name).compute(predictions=predictions, references=references, **more)
        assert json.loads(json.dumps(result, allow_nan=False)) == result, name


def test_cells_can_be_added_in_batches_and_labels_be_of_any_type():
    metric = load_metric("clustering_agreement")
    metric.add_batch(predictions=np.array([0, 1]), references=[None, "b"])
    metric.add_batch(predictions=[1, 2], references=np.array(["b", "c"]))
    result = metric.compute()
    assert (result["nmi"], result["cells"], result["cells_without_label"]) == (1.0, 3, 1)
    with pytest.raises(ValueError, match="Mismatch in the number"):
        load_metric("cell_type_classification").compute(predictions=["a"], references=["a", "b"])
