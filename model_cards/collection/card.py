"""What the card of a model of the collection says, and what `cellglot models` lists of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from cellglot.inputs import read_json
from cellglot.model_cards.card.details import CardDetails
from cellglot.model_cards.collection.cells import PreparedCells
from cellglot.model_cards.collection.recipe import Recipe
from cellglot.training.data.label_levels import LabelLevels


LOGISTIC = "logistic regression"


def card_details(
    recipe: Recipe,
    sets: Sequence[PreparedCells],
    scores: Sequence[Mapping[str, Any]],
    calibration: Mapping[str, Any],
    ontology_release: str,
) -> CardDetails:
    """Return the details of the card.

    Parameters
    ----------
    sets
        Data sets with labels.
    scores
        Of data sets that were left out.
    calibration
        Facts of the calibration.
    """
    licenses = sorted({p.data_set.license for p in sets})
    return CardDetails(
        license=recipe.license,
        title=recipe.title,
        summary=recipe.summary,
        training_data=data_table(sets),
        training_data_license="; ".join(licenses),
        ontology_release=ontology_release or None,
        base_model=None if recipe.method == "full" else recipe.base,
        results=_results(scores, calibration, recipe.unit),
        limits=[*recipe.limits, *_unknown(recipe)],
        uses=list(recipe.uses),
        tags=["cellglot-collection"],
    )


def data_table(sets: Sequence[PreparedCells]) -> str:
    """Return the table of data sets with their sources and terms, as Markdown."""
    lines = ["Public cells, each data set with its source and terms:", ""]
    lines += ["| data set | cells with a label | tissue | source | licence |", "| --- | ---: | --- | --- | --- |"]
    for p in sets:
        d = p.data_set
        lines.append(f"| {d.name} | {p.labelled:,} | {d.tissue} | {d.source} | {d.license} |")
    if any(p.data_set.marker_labels or p.data_set.gates for p in sets):
        lines += [
            "",
            "Labels that leave types open, and cells without a label, were narrowed by marker genes for training (see "
            "`model_cards/collection/marker_labels.py`). Scores are by the labels as the data sets state them.",
        ]
    return "\n".join(lines)


def _results(scores: Sequence[Mapping[str, Any]], calibration: Mapping[str, Any], unit: str) -> str:
    lines = [
        f"Each data set was predicted by a model that had seen no cell of its {unit}; this model was then trained "
        "on all data sets. Macro F1 with 95% intervals over cells. Beside it plain classifiers, trained on the same "
        "cells: logistic regression, the same among the types of the test set alone (types known), and neighbours on "
        "variable genes.",
        "",
        "| data set | level | cells | types | this recipe | logistic regression | types known | neighbours |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    names = (LOGISTIC, f"{LOGISTIC}, types of the test set", "neighbours on variable genes")
    for row in scores:
        own, others = row["model"], row["baselines"]
        cells = [row["data_set"], row["level"], f"{own['cells']:,}", str(len(own["types"]))]
        cells.append(_with_interval(own["macro_f1"]))
        cells += [f"{others[n]['macro_f1']['value']:.3f}" if others.get(n) else "" for n in names]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Each type:", "", "| data set | level | type | cells | F1 | precision | recall |"]
    lines += ["| --- | --- | --- | ---: | ---: | ---: | ---: |"]
    for row in scores:
        for name, of_type in row["model"]["types"].items():
            cells = [f"{of_type['cells']:,}", _with_interval(of_type["f1"])]
            cells += [f"{of_type[m]['value']:.3f}" for m in ("precision", "recall")]
            lines.append(f"| {row['data_set']} | {row['level']} | {name} | {' | '.join(cells)} |")
    left_out = [
        f"{cells:,} {name} in {row['data_set']} ({row['level']})"
        for row in scores
        for name, cells in row.get("cells_of_types_without_training", {}).items()
    ]
    if left_out:
        lines += ["", f"Not scored, because no other laboratory has cells of the type: {', '.join(left_out)}."]
    return "\n".join([*lines, *_uncertainty(calibration)])


def _uncertainty(calibration: Mapping[str, Any]) -> list[str]:
    lines: list[str] = []
    if coverage := calibration.get("coverage"):
        levels = [f"{row['level']:.0%}" for row in coverage]
        lines += ["", "Share of cells whose prediction set contains a right class, by data set that was left out:", ""]
        lines += [f"| data set | {' | '.join(levels)} |", f"| --- |{' ---: |' * len(levels)}"]
        for name in coverage[0]["data_sets"]:
            lines.append(f"| {name} | {' | '.join(_share(row['data_sets'].get(name)) for row in coverage)} |")
        lines.append(f"| mean | {' | '.join(_share(row['left_out']) for row in coverage)} |")
        lines.append(f"| classes in a set | {' | '.join(str(round(row['mean_size'], 2)) for row in coverage)} |")
    if unassigned := calibration.get("unassigned"):
        lines += ["", "Share of cells that are reported as unassigned, by data set that was left out:", ""]
        lines += ["| data set | known types | other cells |", "| --- | ---: | ---: |"]
        known, others = unassigned.get("known_types", {}), unassigned.get("foreign", {})
        for name in sorted({*known, *others}):
            lines.append(f"| {name} | {_share(known.get(name))} | {_share(others.get(name))} |")
    return lines


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _with_interval(score: Mapping[str, Any]) -> str:
    if score["low"] is None:
        return f"{score['value']:.3f}"
    return f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"


def _unknown(recipe: Recipe) -> list[str]:
    return [
        "types that are not in the list above: cells of them are unassigned, or given the type that is most like them",
        f"data sets that are named above were left out one {recipe.unit} at a time; scores on others can be lower",
    ]


def collection_facts(
    recipe: Recipe,
    model: Path,
    sets: Sequence[PreparedCells],
    levels: LabelLevels,
    scores: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return what `cellglot.modeling.collection.CollectionModel` says of the model.

    Parameters
    ----------
    model
        Its folder.
    """
    config = read_json(model / "config.json")
    weights = next(iter(sorted(model.glob("*model.safetensors"))))
    with safetensors.safe_open(weights, "pt") as tensors:
        names = list(tensors.keys())
        parameters = sum(int(np.prod(tensors.get_slice(name).get_shape())) for name in names)
    adapter = (model / "adapter_config.json").is_file()
    of_types = [p for p in sets if set(p.notes["meant"]) - {"", recipe.foreign}]
    return {
        "family": str(config["model_type"]).split("_")[0],
        "purpose": "cell classification",
        "summary": recipe.summary,
        "types": {name: levels.ids[name] for name in levels.classes if name in levels.ids},
        "tissues": list(dict.fromkeys(p.data_set.tissue for p in of_types)),
        "cells": sum(p.labelled for p in sets),
        "data_sets": len(sets),
        "parameters": parameters,
        "license": recipe.license,
        "scores": _mean_scores(scores, recipe.unit),
        "base": recipe.base if adapter else None,
        "default": recipe.default,
    }


def _mean_scores(scores: Sequence[Mapping[str, Any]], unit: str) -> list[dict[str, Any]]:
    """Return the mean macro F1 over data sets that were left out, for each level; data sets count alike."""
    first, *rest = unit.split(" ", 1)
    others = "data sets of other laboratories" if unit == "laboratory" else " ".join([f"{first}s", *rest])
    made = []
    for level in dict.fromkeys(row["level"] for row in scores):
        rows = [row for row in scores if row["level"] == level]
        rows = [row for row in rows if row["baselines"].get(LOGISTIC)] or rows
        found = np.array([row["model"]["macro_f1"]["value"] for row in rows])
        compared = [row["baselines"][LOGISTIC]["macro_f1"]["value"] for row in rows if row["baselines"].get(LOGISTIC)]
        half = 1.96 * float(found.std(ddof=1)) / len(found) ** 0.5 if len(found) > 1 else None
        mean = float(found.mean())
        made.append(
            {
                "name": f"{level}, macro F1 over {len(rows)} {others}",
                "value": round(mean, 4),
                "low": None if half is None else round(max(mean - half, 0.0), 4),
                "high": None if half is None else round(min(mean + half, 1.0), 4),
                "baselines": {LOGISTIC: round(float(np.mean(compared)), 4)} if compared else {},
            }
        )
    return made


__all__ = ["card_details", "collection_facts", "data_table"]
