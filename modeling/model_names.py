"""Names of models: a folder, a model of the collection, or a repository of the Hub. PyTorch is not imported."""

import os
from functools import cache
from pathlib import Path

from cellglot.contents import contents_of
from cellglot.modeling.collection import in_collection, shipped_models, similar_names


_WITHOUT = {
    "": "it is not a folder of a model",
    "adapter": "this file of an adapter names its classes; copy or train the adapter again",
    "corpus": "it is the folder of a corpus, not of a model",
    "index": "it is a reference for cellglot map, not a model",
}


def resolve_model(name: str | os.PathLike) -> str:
    """Find the model of a name: a folder, else a model of the collection, else a repository of the Hub.

    Parameters
    ----------
    name
        Path of a folder, a name that ``cellglot models`` lists, or ``owner/name``. A folder of the name of a model of
        the collection goes first; a warning says so.

    Returns
    -------
    str
        The folder or repository, as all loaders take it.

    Raises
    ------
    ValueError
        If there is no such model.
    """
    text = os.fspath(name)
    if (shipped := in_collection(text)) is not None:
        return shipped
    folder = Path(text).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").exists():
            raise ValueError(f"{text} holds no config.json: {_WITHOUT.get(contents_of(folder), _WITHOUT[''])}")
        return str(folder)
    if not is_repository_name(text):
        collection = "" if "/" in text or not shipped_models() else f"; nor in the collection: {similar_names(text)}"
        raise ValueError(f"{text} is not a folder, and not a repository of the Hub (owner/name){collection}")
    _reach(text)
    return text


def is_repository_name(name: str) -> bool:
    """Whether a name can be that of a repository of the Hub, ``owner/name``."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


@cache
def _reach(repository: str) -> None:
    """Fetch the configuration of a repository, once."""
    from huggingface_hub import hf_hub_download

    try:
        hf_hub_download(repository, "config.json")
    except (OSError, ValueError) as error:
        first = str(error).strip().split("\n")[0]
        raise ValueError(f"{repository} is not a folder, and not a repository that can be reached: {first}") from error


__all__ = ["is_repository_name", "resolve_model"]
