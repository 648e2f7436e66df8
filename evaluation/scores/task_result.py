"""The result of a task: scores, what is undefined and why, details."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cellglot.evaluation.scores.bootstrap import Score


@dataclass
class TaskResult:
    """Result of a task for a model.

    Parameters
    ----------
    metrics
        Name -> score.
    undefined
        Undefined metric -> the reason.
    details
        Numbers of cells, settings, scores of single classes; plain types.
    """

    metrics: dict[str, Score]
    undefined: dict[str, str] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, for JSON."""
        metrics = {name: {"value": s.value, "low": s.low, "high": s.high} for name, s in self.metrics.items()}
        return {"metrics": metrics, "undefined": self.undefined, "details": self.details}

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> "TaskResult":
        """Read the result of `to_dict`."""
        metrics = {name: Score(**score) for name, score in given["metrics"].items()}
        return cls(metrics, dict(given["undefined"]), dict(given["details"]))


__all__ = ["TaskResult"]
