"""Metrics as local modules of `evaluate`, each in its own folder, which can be published unchanged."""

from pathlib import Path
from typing import Any

import evaluate


FOLDER = Path(__file__).parent


def metric_names() -> list[str]:
    """Return the names of the metrics, sorted."""
    return sorted(p.name for p in FOLDER.iterdir() if (p / f"{p.name}.py").exists())


def metric_path(name: str) -> Path:
    """Return the folder of a metric, as for ``evaluate.load`` and for a Space.

    Raises
    ------
    ValueError
        If `name` is not one of `metric_names`.
    """
    if name not in metric_names():
        raise ValueError(f"there is no metric {name!r}; there are {', '.join(metric_names())}")
    return FOLDER / name


def load_metric(name: str, **options: Any) -> evaluate.EvaluationModule:
    """Load a metric from its folder, without a network.

    Options are those of ``evaluate.load``; inputs stay in memory, unless ``keep_in_memory=False`` (for several
    processes).

    Raises
    ------
    ValueError
        If `name` is not one of `metric_names`.
    """
    return evaluate.load(str(metric_path(name)), **({"keep_in_memory": True} | options))


__all__ = ["load_metric", "metric_names", "metric_path"]
