"""cz-benchmarks as a process: files, environment, errors. The package is a small one with its names."""

import json
import os
import re
import stat

import numpy as np
import pytest

from cellglot.evaluation.judges.cz import PYTHON, REQUIREMENTS, TASKS, CzBenchmarks, JudgeFailedError
from cellglot.evaluation.judges.environment import EnvironmentNotMadeError, environment_folder, environment_python
from cellglot.evaluation.judges.names import CZ_SCORES


@pytest.fixture
def embedded():
    values = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    values[0] = np.nan
    labels = np.array(["B cell", "T cell"] * 20, dtype=object)
    labels[1] = None
    return values, labels, np.array(["one", "one", "two", "two"] * 10, dtype=object)


@pytest.fixture
def judge(fake_cz, monkeypatch):
    monkeypatch.setenv(PYTHON, str(fake_cz))
    return CzBenchmarks()


def test_scores_come_back_with_reasons_for_the_undefined_ones(judge, embedded):
    done = judge.scores(*embedded)
    assert {name: score.value for name, score in done.metrics.items()} == {
        "clustering_ari": 0.2, "clustering_nmi": 0.25, "silhouette": 0.038, "accuracy": 0.75,
    }  # fmt: skip
    assert done.undefined["entropy"] == "cz-benchmarks failed: RuntimeError: no index of neighbours"
    assert done.undefined["auroc"] == "cz-benchmarks returned nan"
    assert done.undefined["f1"] == "cz-benchmarks returned no mean_fold_f1"
    assert {*done.metrics, *done.undefined} == set(CZ_SCORES)
    assert done.details["package"] == "cz-benchmarks 0.15.1" and done.details["cells"] == 38
    assert done.details["cells_without_embedding"] == done.details["cells_without_label"] == 1
    lr = done.details["tasks"]["label_prediction"]["metrics"][2]
    assert lr == {"metric": "mean_fold_accuracy", "value": 0.5, "params": {"classifier": "lr"}}
    assert json.loads(json.dumps(done.to_dict()["metrics"])) and set(done.details["tasks"]) == set(TASKS)


def test_without_batches_or_labels_less_is_run(judge, embedded, monkeypatch):
    values, labels, batches = embedded
    done = judge.scores(values, labels, None)
    assert done.undefined["entropy"] == "no batches were given" and "integration" not in done.details["tasks"]
    monkeypatch.setattr(CzBenchmarks, "_run", None)
    assert set(judge.scores(values, None, batches).undefined.values()) == {"no cell types were given"}
    one = np.array(["B cell"] * 40, dtype=object)
    assert judge.scores(values, one, batches).undefined["accuracy"].startswith("the cells have 1 cell type")


def test_a_process_that_fails_says_why(judge, embedded, fake_cz, monkeypatch, tmp_path):
    monkeypatch.setenv(PYTHON, str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="there is no such file; name a Python that has cz-benchmarks"):
        judge.scores(*embedded)
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho 'no numpy here' >&2\nexit 3\n")
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv(PYTHON, str(broken))
    with pytest.raises(JudgeFailedError, match=r"(?s)exit status 3\).*no numpy here"):
        judge.scores(*embedded)


@pytest.fixture
def uv(tmp_path, monkeypatch):
    """A `uv` that writes down its calls, makes an interpreter, and fails where the requirements say so."""
    monkeypatch.setenv("CELLGLOT_CACHE", str(tmp_path / "cache"))
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "uv").write_text(
        f'#!/bin/sh\necho "$*" >> {tmp_path}/calls\n'
        'for last in "$@"; do :; done\n'
        'if [ "$1" = venv ]; then mkdir -p "$last/bin"; touch "$last/bin/python"; exit 0; fi\n'
        'if grep -q unknown "$last"; then echo "no such package" >&2; exit 1; fi\n'
    )
    (tools / "uv").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def test_an_environment_is_made_once(uv):
    wanted, said = uv / "wanted.txt", []
    wanted.write_text("one==1\n")
    python = environment_python("judge", wanted, said.append)
    assert python.exists() and python.is_relative_to(uv / "cache" / "environments")
    calls = (uv / "calls").read_text().splitlines()
    assert [call.split()[0] for call in calls] == ["venv", "pip"] and f"--no-deps -r {wanted}" in calls[1]
    assert environment_python("judge", wanted, said.append) == python
    assert (uv / "calls").read_text().splitlines() == calls and len(said) == 1
    wanted.write_text("one==2\n")
    assert environment_python("judge", wanted) != python  # other requirements: another environment


def test_an_environment_that_cannot_be_made_is_made_again_next_time(uv):
    wanted = uv / "wanted.txt"
    wanted.write_text("unknown==1\n")
    with pytest.raises(EnvironmentNotMadeError, match=r"(?s)environment of judge could not be made.*no such package"):
        environment_python("judge", wanted)
    assert not (environment_folder("judge", wanted) / "ready.json").exists()
    with pytest.raises(EnvironmentNotMadeError):
        environment_python("judge", wanted)
    assert len((uv / "calls").read_text().splitlines()) == 4


def test_requirements_are_pinned():
    lines = [line for line in REQUIREMENTS.read_text().splitlines() if not line.startswith("#")]
    assert all(re.match(r"[A-Za-z0-9._-]+==[^ ]+( ; .+)?$", line) for line in lines)
    assert f"cz-benchmarks=={CzBenchmarks.VERSION}" in lines and not any("torch" in line for line in lines)
