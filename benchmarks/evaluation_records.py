"""Code that the studies of docs/evaluation share: records for the cards of models, tables between marks of a page."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from measure import ROOT

from cellglot.evaluation.benchmark.jobs import BASELINES, HARMONY
from cellglot.evaluation.benchmark.record import EvaluationRecord
from cellglot.evaluation.benchmark.results import plain
from cellglot.inputs import read_json
from cellglot.model_cards.collection.evaluations import WEIGHTS
from cellglot.modeling.collection import shipped_models
from cellglot.outputs import sha256, write_json, write_text


FOLDER = ROOT / "docs" / "evaluation"
RECORDS = FOLDER / "records"
MODELS = ("human-exceiver", "human-sccello", "human-langcell", "blood-exceiver", "blood-sccello", "blood-langcell")
ORDER = ("drug_response", "genes", "perturbation", "retrieval", "judges")  # of studies on a card
LONG = ("tasks", "best_sets", "rows", "types")  # details that the tables do not show
FIELDS = ("date", "arguments", "software", "machine", "data", "split")


def in_order(columns: Iterable[str]) -> list[str]:
    """Return the columns in the order of `MODELS`, others and baselines after them."""
    order = [*MODELS, *(name + HARMONY for name in MODELS)]
    return sorted(columns, key=lambda name: order.index(name) if name in order else len(order))


def checksums(models: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return model -> facts with the SHA-256 of its file of weights, by which cards know their records."""
    folders = shipped_models()
    return {
        name: {WEIGHTS: sha256(next(iter(sorted(folders[name].glob("*model.safetensors")))))}
        for name in models
        if name in folders
    }


def write_record(
    folder: Path, study: str, name: str, title: str, command: str, summary: str, content: dict[str, Any]
) -> None:
    """Write a record of an evaluation for cards: scores of models and baselines, without long details.

    Parameters
    ----------
    folder
        Of the records.
    study
        One of `ORDER`.
    name
        Of the data, and of the file.
    title
        Heading on the cards.
    command
        What repeats it.
    summary
        Text below the table.
    content
        As of `cellglot.evaluation.benchmark.record.EvaluationRecord`; the weights of its models are those that ship.
    """
    scored = {of for by_model in content["results"].values() for of in by_model if not of.endswith(HARMONY)}
    results = {
        row: {of: _short(found) for of, found in by_model.items() if of in scored}
        for row, by_model in content["results"].items()
    }
    kept = {field: content[field] for field in FIELDS if content.get(field) is not None}
    kept["data"] = {key: value for key, value in content["data"].items() if key != "source"} | {"name": name}
    models = [of for of in in_order(scored) if of not in BASELINES]
    record = {"title": title, "order": ORDER.index(study), "command": command, "summary": summary, **kept}
    record |= {"models": checksums(models) | {of: {"baseline": True} for of in BASELINES if of in scored}}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{name}.json", record | {"results": results}, indent=None, default=plain)


def to_compute(folder: Path, name: str, models: Iterable[str], add: bool) -> list[str]:
    """Return the models to evaluate: all, or those whose scores a record lacks or has of other weights.

    Parameters
    ----------
    folder, name
        Of the record.
    models
        Names of models of the collection.
    add
        Whether scores of the record stay.
    """
    file, models = folder / f"{name}.json", list(models)
    if not add or not file.is_file():
        return models
    kept, shipped = read_json(file)["models"], checksums(models)
    return [of for of in models if of not in kept or kept[of].get(WEIGHTS) != shipped.get(of, {}).get(WEIGHTS)]


def with_kept(content: dict[str, Any], folder: Path, name: str) -> EvaluationRecord:
    """Add the models of a record that were not evaluated again, see `to_compute`; those of other weights are left out.

    Parameters
    ----------
    content
        Of the new evaluation.
    folder, name
        Of the record.

    Raises
    ------
    ValueError
        If the record is of other data.
    """
    file = folder / f"{name}.json"
    if not file.is_file():
        return EvaluationRecord(content)
    kept = read_json(file)
    other = [key for key, value in kept["data"].items() if key in content["data"] and content["data"][key] != value]
    if other:
        raise ValueError(f"{file} is of data with a different {', '.join(other)}: run without --add")
    shipped = checksums(kept["models"])
    models = {of: facts for of, facts in kept["models"].items() if of not in BASELINES and facts == shipped.get(of)}
    results = {row: dict(by_model) for row, by_model in content["results"].items()}
    for row, by_model in kept["results"].items():
        for model, found in by_model.items():
            if model in models and model not in content["models"]:
                results.setdefault(row, {})[model] = found
    models |= content["models"]
    return EvaluationRecord(content | {"results": results, "models": models})


def _short(found: dict[str, Any]) -> dict[str, Any]:
    details = {name: value for name, value in found["details"].items() if name not in LONG}
    data = details.get("data")
    if isinstance(data, dict) and "folder" in data:  # of the machine that computed it: its name is enough
        details["data"] = data | {"folder": Path(data["folder"]).name}
    return found | {"details": details}


def summary_of(record: EvaluationRecord) -> str:
    """Return the summary of a record without the time."""
    return record.summary().rpartition("\n\n")[0]


def write_between(page: Path, name: str, text: str) -> None:
    """Replace the text between ``<!-- NAME -->`` and ``<!-- end of NAME -->`` in a page.

    Raises
    ------
    ValueError
        If the page does not have the marks.
    """
    begin, end, content = f"<!-- {name} -->", f"<!-- end of {name} -->", page.read_text(encoding="utf-8")
    pattern = f"{re.escape(begin)}.*{re.escape(end)}"
    if not re.search(pattern, content, flags=re.S):
        raise ValueError(f"{page} has no {begin} ... {end}")
    write_text(page, re.sub(pattern, lambda _: f"{begin}\n\n{text}\n\n{end}", content, flags=re.S))
