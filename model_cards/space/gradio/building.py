"""The files of a Gradio Space: the model, the code that runs it, and a card."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from huggingface_hub import SpaceCardData

from cellglot.model_cards.card.render import environment
from cellglot.model_cards.prepare.staging import ADAPTER_FILES, MODEL_FILES, stage_files
from cellglot.model_cards.space.facts import SpaceFacts
from cellglot.model_cards.space.gradio.serve import check_gradio
from cellglot.model_cards.space.package_copy import copy_package, requirements
from cellglot.modeling.any_model import describe_model


EXAMPLES = "example_cells.h5ad"
CHECKED_CELLS = 40
CHECKED = "a process with the Space's own code computed the types of example cells"
CANDIDATES = "B cell, T cell, monocyte"

# Annotates example cells with the code and the model of a Space's folder, and prints the labels.
_CHECK = """
import json, sys
folder, candidates, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
sys.path.insert(0, folder)
import cellglot
assert cellglot.__file__.startswith(folder), f"the code is {cellglot.__file__}, not that of the Space"
from cellglot.model_cards.space.gradio.building import labels
print(json.dumps(labels(folder + "/model", candidates, number)))
"""


def build_space(model: Path, target: Path, facts: SpaceFacts) -> None:
    """Write a Space into an empty folder: ``app.py``, ``requirements.txt``, ``README.md``, ``model/``, ``cellglot/``.

    An adapter is merged into its base model.

    Parameters
    ----------
    model
        Folder of the model.
    target
        The folder.
    facts
        For the card.

    Raises
    ------
    ValueError
        If Gradio is not installed, or the model cannot be copied.
    """
    check_gradio()
    _stage_model(model, target / "model")
    copy_package(target)
    parts = environment()
    for name in ("app.py", "README.md"):
        text = parts.get_template(f"space_{name}.jinja").render(facts=facts, card=_card(facts).to_yaml())
        (target / name).write_text(text.strip() + "\n", encoding="utf-8")
    (target / "requirements.txt").write_text("\n".join(requirements()) + "\n", encoding="utf-8")


def _stage_model(model: Path, target: Path) -> None:
    if describe_model(model).is_adapter:
        from cellglot.modeling.adapters import merge_adapter

        merged = target.with_name(".merged")
        merge_adapter(model, output=merged)
        stage_files(merged, target, MODEL_FILES)
        shutil.rmtree(merged)
        stage_files(model, target, [name for name in ADAPTER_FILES if name.endswith("calibration.safetensors")])
    else:
        stage_files(model, target, MODEL_FILES)
    if (model / EXAMPLES).is_file():
        shutil.copyfile(model / EXAMPLES, target / EXAMPLES)


def _card(facts: SpaceFacts) -> SpaceCardData:
    data = SpaceCardData(
        title=facts.title,
        emoji="🔬",
        colorFrom="blue",
        colorTo="indigo",
        sdk="gradio",
        sdk_version=importlib.metadata.version("gradio"),
        python_version=f"{sys.version_info.major}.{sys.version_info.minor}",
        app_file="app.py",
        license=facts.license or None,
        models=list(facts.models) or None,
        tags=["single-cell", "cell-type-annotation", "cellglot"],
        pinned=False,
    )
    data["short_description"] = "Cell types of single-cell RNA counts"
    return data


def labels(model: str | Path, candidates: str = CANDIDATES, number: int = CHECKED_CELLS) -> list[str | None]:
    """Return the labels of the first example cells of a model.

    Parameters
    ----------
    model
        Folder.
    candidates
        For a model of cells and texts.
    number
        Number of cells.
    """
    from cellglot.model_cards.space.gradio.annotator import Annotator, example_cells
    from cellglot.model_cards.space.gradio.reading import read_table
    from cellglot.tokenization.reading.cells import read_cells

    annotator = Annotator(model)
    source, _ = example_cells(model)
    if isinstance(source, os.PathLike):
        with read_cells(source) as opened:
            source = opened.to_anndata()
    chosen: dict[str, Any] = {"candidates": candidates} if annotator.by_texts else {}
    cells = read_table(source[:number].copy(), annotator.limits)
    return list(annotator.annotate(cells, **chosen).found.predicted)


def check_space(model: Path, folder: Path) -> int:
    """Annotate example cells in a process that has the code of a Space, and compare the labels with those here.

    Parameters
    ----------
    model
        Folder of the model.
    folder
        Of the Space.

    Returns
    -------
    int
        Number of equal labels.

    Raises
    ------
    ValueError
        If the Space does not run, or its labels differ.
    """
    left_out = {"PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE"}
    plain = {name: value for name, value in os.environ.items() if name not in left_out}
    done = subprocess.run(
        [sys.executable, "-B", "-c", _CHECK, str(folder.resolve()), CANDIDATES, str(CHECKED_CELLS)],
        env=plain | {"HF_HUB_OFFLINE": "1"}, cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise ValueError(f"the Space does not run: {done.stderr.strip().splitlines()[-1:]}. Nothing was published")
    there, here = json.loads(done.stdout.splitlines()[-1]), labels(model)
    differing = sum(a != b for a, b in zip(here, there, strict=True))
    if differing:
        raise ValueError(
            f"the Space gives {differing:,} of {len(here):,} example cells another type than the model does here. "
            "Nothing was published"
        )
    return len(here)


__all__ = ["CHECKED", "build_space", "check_space", "labels"]
