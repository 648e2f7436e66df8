"""Scores of ``cellglot evaluate`` for a card."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cellglot.evaluation.benchmark.jobs import BASELINES, HARMONY
from cellglot.evaluation.benchmark.record import EvaluationRecord
from cellglot.evaluation.benchmark.results import Table, markdown_table, metrics_of
from cellglot.evaluation.judges.names import JUDGES
from cellglot.inputs import read_json
from cellglot.model_cards.card.run_record import Result
from cellglot.model_cards.content_scan import Cleaned, clean_json


EVALUATION_FILE = "evaluation.json"
SEVERAL = "evaluations"  # field of a file with several evaluations of one model


@dataclass
class ModelEvaluation:
    """An evaluation of a model and the baselines.

    Parameters
    ----------
    results
        Defined scores of the model.
    table
        Model and baselines with their intervals, as Markdown.
    summary
        Cells and split.
    content
        The JSON, without paths of this machine and without other models.
    title
        Heading on the card; empty for a single evaluation.
    """

    results: list[Result]
    table: str
    summary: str
    command: str
    software: str
    content: dict[str, Any] = field(default_factory=dict)
    title: str = ""


def read_evaluation(path: str | Path, model: str, published_as: str) -> ModelEvaluation:
    """Read the scores of a model from the JSON of ``cellglot evaluate``.

    Parameters
    ----------
    model
        Name of the model in the JSON, if it has more than one.
    published_as
        Name of the model on the card.
    """
    return evaluation_of(read_json(path), path, model, published_as)


def read_evaluations(path: str | Path, model: str, published_as: str) -> list[ModelEvaluation]:
    """Read one or several evaluations of a model; parameters as for `read_evaluation`.

    A file of several has them as a list in the field ``evaluations``, each with a ``title``, as the models of the
    collection do.
    """
    content = read_json(path)
    found = content.get(SEVERAL, [content])
    return [evaluation_of(one, path, model, published_as) for one in found]


def file_content(evaluations: Sequence[ModelEvaluation]) -> dict[str, Any]:
    """Return what `read_evaluations` reads."""
    if len(evaluations) == 1 and not evaluations[0].title:
        return evaluations[0].content
    return {SEVERAL: [evaluation.content for evaluation in evaluations]}


def evaluation_of(content: dict[str, Any], path: str | Path, model: str, published_as: str) -> ModelEvaluation:
    """Return the evaluation of a model in the content of a JSON file; parameters as for `read_evaluation`."""
    if not content.get("results") or "models" not in content:
        raise ValueError(f"{path} contains no results of cellglot evaluate")
    models = [name for name in content["models"] if name not in BASELINES and not name.endswith(HARMONY)]
    if model not in models and len(models) != 1:
        raise ValueError(
            f"{path} has results of {', '.join(models) or 'no model'}, not of {model}: evaluate {model} by this name"
        )
    found = model if model in models else models[0]
    content = _of_model(clean_json(content, Path(path).name, Cleaned()), found, published_as)
    record = EvaluationRecord(content)
    results, columns = record.results, record.columns
    data = str(content["data"].get("name") or content["data"].get("source") or "cells").split("/")[-1]
    return ModelEvaluation(
        results=_results(results, published_as, data),
        table=markdown_table(results, columns, [name for name in columns if name in BASELINES]),
        summary=content.get("summary") or record.summary(),
        command=_command(content, published_as, data),
        software=", ".join(f"{name} {version}" for name, version in list(content.get("software", {}).items())[:5]),
        content=content,
        title=str(content.get("title", "")),
    )


def _of_model(content: dict[str, Any], model: str, published_as: str) -> dict[str, Any]:
    """Return the content for one model, under its published name, and the baselines."""

    def kept(by_model: dict[str, Any]) -> dict[str, Any]:
        names = {model: published_as} | {name: name for name in BASELINES}
        return {new: by_model[old] for old, new in names.items() if old in by_model}

    rows = {row: kept(by_model) for row, by_model in content["results"].items()}
    return content | {
        "models": kept(content["models"]),
        "results": {row: by_model for row, by_model in rows.items() if by_model},
        "finished": kept(content.get("finished", {})),
    }


def _results(table: Table, model: str, data: str) -> list[Result]:
    return [
        Result(
            task=task,
            data=data,
            metric=metric,
            name=heading,
            value=by_model[model].metrics[metric].value,
            low=by_model[model].metrics[metric].low,
            high=by_model[model].metrics[metric].high,
        )
        for task, by_model in table.items()
        if model in by_model
        for metric, heading in metrics_of(task, by_model)
        if metric in by_model[model].metrics
    ]


def _command(content: dict[str, Any], model: str, data: str) -> str:
    """Return the recorded command, or an equal one for a call from Python."""
    given = str(content.get("command", ""))
    if given.startswith(("cellglot evaluate", "python benchmarks/")):
        return given
    arguments = content.get("arguments", {})
    wanted = arguments.get("tasks", [])
    tasks, judges = (",".join(n for n in wanted if (n in JUDGES) is judge) for judge in (False, True))
    options = f"--tasks {tasks} " + (f"--with {judges} " if judges else "")
    return f"cellglot evaluate {model} --cells {data} {options}--seed {arguments.get('seed', 0)}"


__all__ = [
    "EVALUATION_FILE", "SEVERAL", "ModelEvaluation", "evaluation_of", "file_content", "read_evaluation",
    "read_evaluations",
]  # fmt: skip
