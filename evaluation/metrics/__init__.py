"""Metrics as local modules of `evaluate`: one folder each, which can be published as it stands."""

from pathlib import Path
from typing import Any

import evaluate


FOLDER = Path(__file__).parent


def metric_names() -> list[str]:
    """Return the names of the metrics, sorted."""
    return sorted(p.name for p in FOLDER.iterdir() if (p / f"{p.name}.py").exists())


def metric_path(name: str) -> Path:
    """Return the folder of a metric: what ``evaluate.load`` takes and a Space holds.

    Parameters
    ----------
    name
        One of `metric_names`.

    Raises
    ------
    ValueError
        If there is no such metric.
    """
    if name not in metric_names():
        raise ValueError(f"there is no metric {name!r}; there are {', '.join(metric_names())}")
    return FOLDER / name


def load_metric(name: str, **options: Any) -> evaluate.EvaluationModule:
    """Load a metric from its folder, without a network; it keeps what it is given in memory.

    Parameters
    ----------
    name
        One of `metric_names`.
    **options
        As for ``evaluate.load``; with several processes pass ``keep_in_memory=False``.

    Raises
    ------
    ValueError
        If there is no such metric.
    """
    return evaluate.load(str(metric_path(name)), **({"keep_in_memory": True} | options))


__all__ = ["load_metric", "metric_names", "metric_path"]
