"""What the card of a model of cells and texts says of annotation by texts, and what `cellglot models` lists of it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def text_results(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of annotation by texts, as Markdown.

    Parameters
    ----------
    rows
        ``data_set``, ``texts`` (what they contain), ``candidates`` (their number), ``left_out`` (types that the texts
        of the model were trained without), ``types`` of the cells, scores of ``model`` and ``chance``.
    """
    lines = [
        "Annotation by texts alone, as `cellglot annotate MODEL CELLS --candidates` does. The laboratories of these "
        "data sets were left out of all training. The candidates are the types that the model knows; a prediction is "
        "right if it is the type of the cell, or one below it. In the last rows of a data set a second model is "
        "scored, whose texts were trained without the types of these cells, and without such cells; the encoder of "
        "cells had seen them, with labels. Chance draws a candidate.",
        "",
        "| data set | types of cells | texts | candidates | cells | accuracy | chance | macro F1 | chance |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        own, chance = row["model"], row["chance"]
        numbers = [s[m]["value"] for m in ("accuracy", "macro_f1") for s in (own, chance)]
        types = ", ".join(row["types"]) + (" (left out)" if row["left_out"] else "")
        cells = [row["data_set"], types, row["texts"], str(row["candidates"]), f"{own['cells']:,}"]
        lines.append(f"| {' | '.join([*cells, *(f'{value:.3f}' for value in numbers)])} |")
    return "\n".join(lines)


def text_facts(facts: dict[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return facts of a base, as `base_facts` gives them, with the mean scores of annotation by texts.

    Parameters
    ----------
    rows
        As for `text_results`.
    """
    kinds: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        kinds.setdefault((row["texts"], bool(row["left_out"]), row["candidates"]), []).append(row)
    listed = []
    for (texts, left_out, candidates), same in kinds.items():
        own, chance = (float(np.mean([r[k]["macro_f1"]["value"] for r in same])) for k in ("model", "chance"))
        what = f"by {texts} of {candidates} types" + (", for types left out of the texts" if left_out else "")
        listed.append(
            {"name": f"{what}, macro F1, {len(same)} data sets of laboratories never seen", "value": round(own, 4),
             "baselines": {"chance": round(chance, 4)}}
        )  # fmt: skip
    return facts | {"purpose": "zero-shot annotation", "scores": [*listed, *facts["scores"]]}


__all__ = ["text_facts", "text_results"]
