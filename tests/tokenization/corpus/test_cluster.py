"""Corpora that a Dask cluster computes: the same bytes, also if a worker is killed; failures of workers are named."""

import os
import signal
import threading
import time

import distributed
import numpy as np
import pandas as pd
import pytest
from distributed import LocalCluster

import cellglot
from cellglot.tokenization.corpus import cluster as corpus_cluster
from cellglot.tokenization.corpus import plan as corpus_plan
from cellglot.tokenization.corpus.cluster import (
    Cluster,
    ClusterError,
    absolute,
    check_cluster,
    open_cluster,
    work_there,
)
from cellglot.tokenization.corpus.plan import FileOptions, PlannedFile, Split
from cellglot.tokenization.corpus.tokenize import tokenize_corpus
from cellglot.tokenization.corpus.worker import Job


QUIET = {"progress": False, "tokenizer": "exceiver"}


@pytest.fixture(scope="module")
def local():
    """A scheduler on this machine with two workers of one thread, in processes of their own."""
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def file(blood, tmp_path_factory):
    cells = blood.copy()
    cells.obs["donor_id"] = pd.Categorical([f"d{i % 9}" for i in np.arange(cells.n_obs)])
    path = tmp_path_factory.mktemp("cells") / "blood.h5ad"
    cells.write_h5ad(path, compression="gzip")
    return path


def content(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.long
def test_a_cluster_gives_the_bytes_of_one_process_also_if_a_worker_is_killed(local, file, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_plan, "UNIT_CELLS", 10)  # 70 pieces of work
    one = tokenize_corpus([file], tmp_path / "one", processes=1, **QUIET)
    monkeypatch.chdir(tmp_path)  # workers have another working folder
    units = tmp_path / "two" / ".work" / "units"
    killed = []

    def kill():
        while not killed:
            done = len(list(units.glob("*.json"))) if units.exists() else 0
            if done >= 1:
                process = local.workers[0].process.pid
                os.kill(process, signal.SIGKILL)
                killed.append((process, done))
            time.sleep(0.01)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    two = tokenize_corpus([os.path.relpath(file, tmp_path)], "two", cluster=local.scheduler_address, **QUIET)
    thread.join(10)
    assert killed and killed[0][1] < 70, "no worker was killed in the middle of the run"
    assert content(two.folder) == content(one.folder)
    assert not (tmp_path / "two" / ".work").exists()


def test_a_run_that_one_process_began_is_finished_by_a_cluster(local, file, tmp_path, monkeypatch):
    from cellglot.tokenization.corpus.worker import Worker

    monkeypatch.setattr(corpus_plan, "UNIT_CELLS", 100)
    one = tokenize_corpus([file], tmp_path / "one", processes=1, **QUIET)
    write, left = Worker.start_tokens, [3]

    def stopping(self, *arguments):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return write(self, *arguments)

    monkeypatch.setattr(Worker, "start_tokens", stopping)
    with pytest.raises(KeyboardInterrupt):
        tokenize_corpus([file], tmp_path / "two", processes=1, **QUIET)
    two = tokenize_corpus([file], tmp_path / "two", cluster=local.scheduler_address, **QUIET)
    assert content(two.folder) == content(one.folder)


def test_a_local_cluster_is_started_and_ends(file, tmp_path, monkeypatch):
    corpus = cellglot.tokenize(file, tmp_path / "corpus", cluster="local:1", tokenizer="rank-value")
    assert corpus.n_cells("train") + corpus.n_cells("validation") == 700


# -------------------------------------------------------------------- failures


def job(folder):
    file = PlannedFile("cells.h5ad", "cells", "", 700, 5, "X", [], 0, {})
    split = Split("cell", 0, {"validation": 0.1, "test": 0.0}, {})
    return Job([file], FileOptions(), split, {}, str(folder / ".work"), str(folder), str(folder / "catalogue"))


def test_a_piece_of_work_that_ends_every_worker_is_named(local, tmp_path, monkeypatch):
    def ending(job, version, method, arguments):  # functions inside of functions are sent by value
        os.kill(os.getpid(), signal.SIGKILL)

    def allow_one_failure(dask_scheduler):
        dask_scheduler.allowed_failures = 1

    monkeypatch.setattr(corpus_cluster, "work_there", ending)
    named = (
        r"ended 2 times at cells 100 to 200 of cells, the last one at tcp:.*, perhaps because its memory.* was full: "
        r"start them with more memory \(--memory-limit\)"
    )
    with distributed.Client(local.scheduler_address) as client:
        client.run_on_scheduler(allow_one_failure)
        with pytest.raises(ClusterError, match=named):
            list(Cluster(client, local.scheduler_address).map(job(tmp_path), [("tokens", ((0, 100, 200), 0))]))


class NoAnswer:
    """A client of a cluster whose workers do not finish anything."""

    def __init__(self, workers):
        self.workers = workers

    def scheduler_info(self, n_workers):
        return {"workers": self.workers}


def test_workers_that_are_all_out_of_memory_and_a_cluster_without_workers_are_named(monkeypatch):
    monkeypatch.setattr(corpus_cluster, "LOOK_SECONDS", 0.01)
    waits, said = [], []
    monkeypatch.setattr(corpus_cluster.logger, "warning", lambda text, *values: said.append(text % values))

    def wait(running, timeout, return_when):
        waits.append(running)
        if len(waits) == 3:
            return type("Waited", (), {"done": {"result"}})
        raise TimeoutError

    monkeypatch.setattr(distributed, "wait", wait)
    assert Cluster(NoAnswer({}), "tcp://a:1")._wait(["task"]) == ["result"]
    assert said == ["tcp://a:1 has no workers: waiting for the first one"] * 2
    full = {"tcp://b:1": {"status": "paused", "memory_limit": 2_000_000_000}}
    waits.clear()
    with pytest.raises(ClusterError, match=r"all 1 workers of tcp://a:1 .* out of memory, with a limit of 2\.0 GB"):
        Cluster(NoAnswer(full), "tcp://a:1")._wait(["task"])


def test_workers_of_another_version_or_machine_are_named(tmp_path):
    with pytest.raises(ClusterError, match=r"has cellglot .*, not 99: install the same version there"):
        work_there(job(tmp_path), "99", "tokens", ())
    with pytest.raises(ClusterError, match=r"does not see .*: the files of cells and the corpus have to be"):
        work_there(job(tmp_path), cellglot.__version__, "tokens", ())


def test_paths_do_not_depend_on_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = absolute(job(tmp_path))
    assert made.files[0].path == str(tmp_path / "cells.h5ad")
    remote = job(tmp_path)
    remote.files[0].path = "s3://bucket/cells"
    assert absolute(remote).files[0].path == "s3://bucket/cells"


@pytest.mark.parametrize("address", ["", "local:", "local:0", "local:two", "10.0.0.1:8786", "tcp:/a", "tcp://"])
def test_addresses_that_cannot_be(address, tmp_path):
    with pytest.raises(ClusterError, match=r"is unknown: it is local, local:N for N processes"):
        check_cluster(address)


def test_a_scheduler_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setattr(corpus_cluster, "ANSWER_SECONDS", 0.5)
    with (
        pytest.raises(ClusterError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9 "),
        open_cluster("tcp://127.0.0.1:9", 1),
    ):
        pass


def test_without_the_package_the_message_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "distributed", None)
    with (
        pytest.raises(ClusterError, match=r"needs a package that is missing: pip install 'cellglot\[cluster\]'"),
        open_cluster("local", 1),
    ):
        pass
