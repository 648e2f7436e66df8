"""What the card of a model of cells and texts says of annotation by texts, and what `cellglot models` lists of it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def text_results(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return the table of annotation by texts, as Markdown.

    Parameters
    ----------
    found
        ``all types`` and ``types left out`` -> one row for each data set, with ``types``, ``model`` and ``chance``.
    """
    lines = [
        "Annotation by texts alone: name and definition of each type of the table, no label of the data set. "
        "Its laboratory was left out of all training. Types that were left out of the training of texts are scored "
        "among all types; the encoder of cells had seen cells of them, with labels. Chance draws a type.",
        "",
        "| data set | texts | types | cells | accuracy | chance | macro F1 | chance |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, rows in found.items():
        for row in rows:
            own, chance = row["model"], row["chance"]
            if not own:
                continue
            numbers = [s[m]["value"] for m in ("accuracy", "macro_f1") for s in (own, chance)]
            cells = [row["data_set"], name, ", ".join(own["types"]), f"{own['cells']:,}"]
            lines.append(f"| {' | '.join([*cells, *(f'{value:.3f}' for value in numbers)])} |")
    return "\n".join(lines)


def text_facts(facts: dict[str, Any], found: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Return facts of a base, as `base_facts` gives them, with the scores of annotation by texts."""
    listed = []
    for name, rows in found.items():
        scored = [row for row in rows if row["model"]]
        if scored:
            own, chance = (float(np.mean([r[k]["accuracy"]["value"] for r in scored])) for k in ("model", "chance"))
            listed.append(
                {"name": f"by texts, {name}, accuracy, {len(scored)} data sets of laboratories never seen",
                 "value": round(own, 4), "baselines": {"chance": round(chance, 4)}}
            )  # fmt: skip
    return facts | {"purpose": "zero-shot annotation", "scores": [*listed, *facts["scores"]]}


__all__ = ["text_facts", "text_results"]
