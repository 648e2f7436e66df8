"""The collection: models that ship with the package, found by name."""

import difflib
import importlib.util
import json
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


FACTS_FILE = "collection.json"

_log = logging.getLogger(__name__)
_hidden: set[str] = set()  # names that a warning was given for


@dataclass(frozen=True)
class CollectionModel:
    """What is known of a model of the collection without loading it.

    Parameters
    ----------
    name
        Its name, such as ``"blood-exceiver"``.
    path
        Its folder in the installed package.
    family
        ``"exceiver"``, ``"sccello"`` or ``"langcell"``.
    purpose
        ``"cell classification"``, ``"embedding"`` or ``"zero-shot annotation"``.
    summary
        What it is, in a sentence.
    types
        Cell types that it knows: name -> Cell Ontology id.
    tissues
        Tissues of the cells that it was trained on.
    cells, data_sets
        Numbers of cells and of data sets that it was trained on.
    parameters
        Number of weights.
    size
        Bytes of its files.
    license
        The Hub's identifier of its licence, such as ``"cc-by-sa-4.0"``.
    scores
        Scores on laboratories that were held out: each has ``name``, ``value``, ``low`` and ``high`` (an interval of
        95%), and ``baselines`` (name -> value).
    base
        Of an adapter: name of its base model.
    default
        Whether it annotates cells for which no model is named.
    """

    name: str
    path: str
    family: str
    purpose: str
    summary: str = ""
    types: dict[str, str] = field(default_factory=dict)
    tissues: tuple[str, ...] = ()
    cells: int = 0
    data_sets: int = 0
    parameters: int = 0
    size: int = 0
    license: str = ""
    scores: tuple[dict[str, Any], ...] = ()
    base: str | None = None
    default: bool = False


def collection_folder() -> Path:
    """Return the folder of the installed package that the models are in."""
    found = importlib.util.find_spec("cellglot.model_cards")  # data of that room; nothing of it is imported
    assert found is not None and found.submodule_search_locations is not None
    return Path(found.submodule_search_locations[0], "collection")


def shipped_models() -> dict[str, Path]:
    """Return name -> folder of the models that ship with the package."""
    folder = collection_folder()
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return {path.name: path for path in found if (path / FACTS_FILE).is_file() and (path / "config.json").is_file()}


def in_collection(name: str | os.PathLike) -> str | None:
    """Return the folder of a model of the collection, None for other names and where a local folder has the name.

    A local folder of the name goes first. A warning says so, once.
    """
    text = os.fspath(name)
    if "/" in text or os.sep in text or text in ("", ".", ".."):
        return None
    found = shipped_models().get(text)
    if found is None or not Path(text).is_dir():
        return None if found is None else str(found)
    if text not in _hidden:
        _hidden.add(text)
        _log.warning(
            "%s is a folder here, and a model of the collection: the folder is used. The model of the collection is "
            "cellglot.model_path(%r)",
            text,
            text,
        )
    return None


def model_path(name: str) -> str:
    """Return the folder of a model of the collection, as `transformers` takes it.

    Parameters
    ----------
    name
        Its name, such as ``"blood-exceiver"``; ``cellglot.models()`` lists all of them.

    Returns
    -------
    str
        A folder of the installed package. It is not to be written to.

    Raises
    ------
    ValueError
        If there is no such model; names similar ones.

    Examples
    --------
    >>> import cellglot
    >>> from transformers import pipeline
    >>> annotate = pipeline("cell-type-annotation", model=cellglot.model_path("blood-exceiver"))
    """
    found = shipped_models()
    if name not in found:
        raise ValueError(f"{name} is not a model of the collection: {similar_names(name)}")
    return str(found[name])


def similar_names(name: str) -> str:
    """Say which models the collection has, those of similar names first."""
    names = list(shipped_models())
    if not names:
        return "this installation ships no models"
    close = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.6)
    listed = f"it has {', '.join(names)}"
    return f"is {' or '.join(close)} meant? {listed[0].upper()}{listed[1:]}" if close else listed


def read_collection() -> list[CollectionModel]:
    """Return the models that ship with the package.

    Raises
    ------
    ValueError
        If the facts of a model are damaged; names the file.
    """
    return [_read(name, folder) for name, folder in shipped_models().items()]


def _read(name: str, folder: Path) -> CollectionModel:
    file = folder / FACTS_FILE
    files = [path for path in folder.rglob("*") if path.is_file() and path.parent.name != "__pycache__"]
    size = sum(path.stat().st_size for path in files)
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        of_lists: dict[str, Any] = {key: tuple(facts.pop(key, ())) for key in ("tissues", "scores")}
        return CollectionModel(name, str(folder), size=size, **of_lists, **facts)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is damaged ({error}): install cellglot again") from error


def default_model() -> str:
    """Return the name of the model that annotates cells for which no model is named.

    Raises
    ------
    ValueError
        If none ships with this installation.
    """
    found = next((model.name for model in read_collection() if model.default), None)
    if found is None:
        raise ValueError("name a model: this installation ships none that annotates blood by default")
    return found


__all__ = [
    "FACTS_FILE",
    "CollectionModel",
    "collection_folder",
    "default_model",
    "in_collection",
    "model_path",
    "read_collection",
    "shipped_models",
    "similar_names",
]
