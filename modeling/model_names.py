"""Names of models: a folder, a model of the collection, or a repository of the Hub."""

import os
from pathlib import Path

from cellglot.modeling.collection import in_collection, shipped_models, similar_names
from cellglot.modeling.model_files import check_model_folder


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
    """
    text = os.fspath(name)
    if (shipped := in_collection(text)) is not None:
        return shipped
    folder = Path(text).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").exists():
            raise ValueError(f"{text} holds no config.json: it is not a folder of a model")
        check_model_folder(folder)
        return str(folder)
    if text.count("/") != 1 or text.startswith((".", "/", "~")):
        collection = "" if "/" in text or not shipped_models() else f"; nor in the collection: {similar_names(text)}"
        raise ValueError(f"{text} is not a folder, and not a repository of the Hub (owner/name){collection}")
    from huggingface_hub import hf_hub_download

    try:
        hf_hub_download(text, "config.json")
    except (OSError, ValueError) as error:
        first = str(error).strip().split("\n")[0]
        raise ValueError(f"{text} is not a folder, and not a repository that can be reached: {first}") from error
    return text


__all__ = ["resolve_model"]
