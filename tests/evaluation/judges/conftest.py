"""A small package with the names of cz-benchmarks, in its own environment; the real one is not installed in CI."""

import sys
import sysconfig
import venv
from pathlib import Path

import pytest


TASKS = '''
"""Classes with the names and arguments of czbenchmarks.tasks 0.15.1; the scores are simple."""
from enum import Enum

import numpy as np
import pandas as pd


class MetricType(Enum):
    ADJUSTED_RAND_INDEX = "adjusted_rand_index"
    NORMALIZED_MUTUAL_INFO = "normalized_mutual_info"
    SILHOUETTE_SCORE = "silhouette_score"
    ENTROPY_PER_CELL = "entropy_per_cell"
    BATCH_SILHOUETTE = "batch_silhouette"
    MEAN_FOLD_ACCURACY = "mean_fold_accuracy"
    MEAN_FOLD_F1_SCORE = "mean_fold_f1"
    MEAN_FOLD_AUROC = "mean_fold_auroc"


class MetricResult:
    def __init__(self, metric, value, **params):
        self.metric_type, self.value, self.params = metric, value, params


class Input:
    needs = ()

    def __init__(self, **given):
        assert set(given) == set(self.needs), given
        self.__dict__ |= given


class ClusteringTaskInput(Input):
    needs = ("obs", "input_labels")


class EmbeddingTaskInput(Input):
    needs = ("input_labels",)


class MetadataLabelPredictionTaskInput(Input):
    needs = ("labels",)


class BatchIntegrationTaskInput(Input):
    needs = ("labels", "batch_labels")


class Task:
    def __init__(self, *, random_seed=42):
        assert random_seed == 42


class ClusteringTask(Task):
    def run(self, x, given):
        assert isinstance(given.obs, pd.DataFrame) and len(given.obs) == len(x)
        share = len(set(given.input_labels)) / 10
        return [MetricResult(MetricType.ADJUSTED_RAND_INDEX, share),
                MetricResult(MetricType.NORMALIZED_MUTUAL_INFO, np.float64(0.25))]


class EmbeddingTask(Task):
    def run(self, x, given):
        assert x.dtype == np.float32 and np.isfinite(x).all()
        return [MetricResult(MetricType.SILHOUETTE_SCORE, len(x) / 1000)]


class MetadataLabelPredictionTask(Task):
    def run(self, x, given):
        assert isinstance(given.labels, pd.Series) and given.labels.shape == (len(x),)
        one = [MetricResult(MetricType.MEAN_FOLD_ACCURACY, 0.5, classifier="lr")]
        every = {"classifier": "MEAN(knn,lr,rf)"}
        return [MetricResult(MetricType.MEAN_FOLD_ACCURACY, 0.75, **every),
                MetricResult(MetricType.MEAN_FOLD_AUROC, float("nan"), **every), *one]


class BatchIntegrationTask(Task):
    def run(self, x, given):
        raise RuntimeError("no index of neighbours")
'''


@pytest.fixture(scope="session")
def fake_cz(tmp_path_factory):
    """The interpreter of an environment with the small package."""
    home = tmp_path_factory.mktemp("cz")
    venv.EnvBuilder(symlinks=True, with_pip=False).create(home)
    site = next(Path(home).glob("lib*/python*/site-packages"))
    (site / "others.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")  # numpy and pandas
    (site / "czbenchmarks").mkdir()
    (site / "czbenchmarks" / "__init__.py").write_text("")
    (site / "czbenchmarks" / "tasks.py").write_text(TASKS)
    (site / "cz_benchmarks-0.15.1.dist-info").mkdir()
    (site / "cz_benchmarks-0.15.1.dist-info" / "METADATA").write_text("Name: cz-benchmarks\nVersion: 0.15.1\n")
    assert sys.version_info >= (3, 11)
    return home / "bin" / "python"
