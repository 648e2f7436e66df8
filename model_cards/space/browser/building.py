"""The files of a static Space: the page with a model, and a card."""

import gzip
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from huggingface_hub import SpaceCardData

from cellglot.evaluation.onnx_export import made_batches
from cellglot.inputs import read_json
from cellglot.model_cards.card.render import environment
from cellglot.model_cards.space.browser.build import GRAPH, MOST_CELLS, SETTINGS, stage_page
from cellglot.model_cards.space.browser.serve import HEADERS
from cellglot.modeling.any_model import load_any_model
from cellglot.modeling.onnx_network import MEASURED


if TYPE_CHECKING:
    from cellglot.model_cards.space.facts import SpaceFacts


CHECKED = "onnxruntime computed the scores of made cells by the page's graph"  # not in a browser
TOLERANCES = {"float32": 1e-3, "float16": 1e-2}  # of scores


def build_space(model: Path, target: Path, facts: "SpaceFacts") -> None:
    """Write a static Space into an empty folder: the page, the model as ONNX, and ``README.md``.

    Parameters
    ----------
    model
        Folder of a classifier, or of an adapter.
    target
        The folder.
    facts
        For the card.

    Raises
    ------
    ValueError
        If the model is not a classifier of cells, or a package of the page cannot be downloaded.
    """
    link = f"https://huggingface.co/{facts.models[0]}" if facts.models else ""
    stage_page(model, target, name=facts.model, title=facts.title, link=link)
    calibrated = read_json(target / SETTINGS)["calibrated"]
    answers = "a type of each cell, its Cell Ontology id and its probability"
    if calibrated:
        answers += "; other types that are possible; cells that are unlike those of training are unassigned"
    text = environment().get_template("browser_space_README.md.jinja").render(
        facts=facts, card=_card(facts).to_yaml(), most_cells=MOST_CELLS, answers=answers
    )  # fmt: skip
    (target / "README.md").write_text(text.strip() + "\n", encoding="utf-8")


def _card(facts: "SpaceFacts") -> SpaceCardData:
    data = SpaceCardData(
        title=facts.title,
        emoji="🔬",
        colorFrom="green",
        colorTo="indigo",
        sdk="static",
        app_file="index.html",
        license=facts.license or None,
        models=list(facts.models) or None,
        tags=["single-cell", "cell-type-annotation", "cellglot", "onnx"],
        pinned=False,
    )
    data["short_description"] = "Cell types in your browser, nothing uploaded"
    data["custom_headers"] = {name.lower(): value for name, value in HEADERS.items()}
    return data


def check_space(model: Path, folder: Path) -> int:
    """Compare the scores of the Space's graph with those of the model, on made cells.

    Parameters
    ----------
    model
        Folder of the model.
    folder
        Of the Space.

    Returns
    -------
    int
        Number of scores that are equal, up to the rounding of the stored weights.

    Raises
    ------
    ValueError
        If a score differs.
    """
    import onnxruntime

    loaded = load_any_model(model)
    session = onnxruntime.InferenceSession(gzip.decompress((folder / GRAPH).read_bytes()))
    most = TOLERANCES[read_json(folder / SETTINGS)["weights"]]
    compared = 0
    needed = {entry.name for entry in session.get_inputs()}
    for batch in made_batches(loaded.tokenizer):
        if MEASURED in needed:
            batch[MEASURED] = torch.zeros(len(loaded.tokenizer), dtype=torch.bool)
            batch[MEASURED][batch["input_ids"].flatten()] = True
        given = {name: batch[name].numpy() for name in needed}
        there = torch.from_numpy(session.run(["logits"], given)[0]).softmax(dim=-1).numpy()
        with torch.inference_mode():
            here = loaded.network(**batch).logits.float().softmax(dim=-1).numpy()
        if (away := float(np.abs(here - there).max())) > most:
            raise ValueError(
                f"the Space's graph gives other scores than the model does here, by up to {away:.2g}. Nothing was "
                "published"
            )
        compared += here.size
    return compared


__all__ = ["CHECKED", "build_space", "check_space"]
