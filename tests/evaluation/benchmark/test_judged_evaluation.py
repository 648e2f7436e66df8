"""Files of embeddings, embeddings without batches, and judges in an evaluation."""

import json
from functools import partial

import numpy as np
import pytest

import cellglot
from cellglot.evaluation.benchmark.jobs import Settings
from cellglot.evaluation.benchmark.results import TaskResult
from cellglot.evaluation.scores.bootstrap import Score
from cellglot.inputs import InputError


SMALL = {"labels": "cell_type", "batches": "chip", "device": "cpu"}


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    """Let intervals rest on few samples of the cells."""
    monkeypatch.setattr("cellglot.evaluation.benchmark.evaluate.Settings", partial(Settings, draws=20))


@pytest.fixture(scope="module")
def cells(blood, tmp_path_factory):
    cells = blood[:150].copy()
    cells.obs["chip"] = np.where(np.arange(150) % 2, "one", "two")
    path = tmp_path_factory.mktemp("cells") / "cells.h5ad"
    cells.write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def embedding(model_folders, cells, tmp_path_factory):
    path = tmp_path_factory.mktemp("embedding") / "cell_emb.npy"
    cellglot.embed(cells, model_folders["model"], output=path, device="cpu")
    return path


@pytest.fixture
def judges(monkeypatch):
    """Judges that return the number of cells and the mean of the embedding."""
    seen = []

    def scores(x, labels, batches, *others):
        seen.append((x.shape, *(len(other) for other in others)))
        return TaskResult({"total": Score(float(np.nanmean(x)))}, {}, {"package": "scib-metrics 9", "cells": len(x)})

    monkeypatch.setattr("cellglot.evaluation.benchmark.jobs.scib_scores", scores)
    monkeypatch.setattr("cellglot.evaluation.benchmark.evaluate.check_scib", lambda: None)
    monkeypatch.setattr("cellglot.evaluation.judges.cz.CzBenchmarks.python", lambda self: None)
    monkeypatch.setattr(
        "cellglot.evaluation.judges.cz.CzBenchmarks.scores",
        lambda self, x, labels, batches: TaskResult(
            {"accuracy": Score(0.5)}, {"f1": "why"}, {"package": "cz", "cells": 3}
        ),
    )
    return seen


def test_judges_score_models_files_and_baselines_with_and_without_batches(model_folders, cells, embedding, judges):
    models = {"model": model_folders["model"], "file": embedding}
    options = {"tasks": ["clustering", "integration"], "judges": ["cz-benchmarks", "scib-metrics"]} | SMALL
    done = cellglot.evaluate(models, cells, without_batches=True, **options)
    every = [
        "model",
        "model + Harmony",
        "file",
        "file + Harmony",
        "log counts + PCA",
        "log counts + PCA + Harmony",
        "HVG",
    ]
    assert list(done.results) == ["clustering", "integration", "scib-metrics", "cz-benchmarks"]
    assert done.record.columns == every and all(set(by_model) == set(every) for by_model in done.results.values())
    assert {n for n, *_ in judges} == {(150, 48), (150, 50), (150, 765)}
    assert all(set(lengths) == {150} for _, *lengths in judges)
    same = done.results["clustering"]
    assert same["model"].metrics["nmi"].value == pytest.approx(same["file"].metrics["nmi"].value)
    assert same["model"].metrics["asw_label"].value != same["model + Harmony"].metrics["asw_label"].value
    table = done.table()
    assert "| scib-metrics: total | " in table and "| cz-benchmarks: label prediction: accuracy | " in table
    assert "scib-metrics 9: its own code on 150 cells" in done.record.summary()


def test_what_is_judged_is_recorded_drawn_and_not_done_again(cells, embedding, judges, tmp_path):
    options = {"tasks": ["clustering"], "judges": ["scib-metrics"], "output": tmp_path / "out"} | SMALL
    options |= {"without_batches": True, "baselines": False}
    cellglot.evaluate({"file": embedding}, cells, **options)
    record = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert record["models"]["file"]["file"]["order"] == "checksum of names of cells"
    assert record["models"]["file + Harmony"]["batches_removed_of"] == "chip"
    assert (tmp_path / "out" / "umap_file___Harmony_batch.png").exists()
    assert len(judges) == 2
    cellglot.evaluate({"file": embedding}, cells, **options)
    assert len(judges) == 2


def test_a_file_in_another_order_is_refused(cells, embedding, blood, tmp_path):
    blood[:150][::-1].copy().write_h5ad(tmp_path / "reversed.h5ad")
    with pytest.raises(InputError, match="other cells than .*reversed.h5ad, or in another order"):
        cellglot.evaluate({"file": embedding}, tmp_path / "reversed.h5ad", tasks=["clustering"], labels="cell_type")


def test_a_file_has_probes_but_no_markers(cells, embedding):
    markers = {"B cell": ["CD79A", "MS4A1"], "NK cell": ["GNLY", "NKG7"]}
    done = cellglot.evaluate(
        embedding, cells, tasks=["annotation", "markers"], markers=markers, shots=3, baselines=False, **SMALL
    )
    assert list(done.results) == ["annotation: probe", "annotation: 3 cells per class"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"judges": "scib"}, "unknown judge 'scib'"),
        ({"without_batches": True, "batches": None}, "batches cannot be removed without batches"),
        ({"models": {"a": "x.npy", "a + Harmony": "x.npy"}}, "'a \\+ Harmony' is the name of 'a' without batches"),
        ({"models": {"a": "missing.npy"}}, "missing.npy does not exist"),
    ],
)
def test_bad_input(cells, embedding, options, message):
    models = options.pop("models", {"file": embedding})
    with pytest.raises(ValueError, match=message):
        cellglot.evaluate(models, cells, **SMALL | {"tasks": ["clustering"]} | options)
