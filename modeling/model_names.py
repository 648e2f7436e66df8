"""Names of models: a folder, or a repository of the Hub."""

import os
from pathlib import Path

from cellglot.modeling.model_files import check_model_folder


def resolve_model(name: str | os.PathLike) -> str:
    """Find the model that a name stands for: a folder, else a repository of the Hub.

    Parameters
    ----------
    name
        Path of a folder, or ``owner/name``.

    Returns
    -------
    str
        The folder or repository, as all loaders take it.
    """
    text = os.fspath(name)
    folder = Path(text).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").exists():
            raise ValueError(f"{text} holds no config.json: it is not a folder of a model")
        check_model_folder(folder)
        return str(folder)
    if text.count("/") != 1 or text.startswith((".", "/", "~")):
        raise ValueError(f"{text} is not a folder, and not a repository of the Hub (owner/name)")
    from huggingface_hub import hf_hub_download

    try:
        hf_hub_download(text, "config.json")
    except (OSError, ValueError) as error:
        first = str(error).strip().split("\n")[0]
        raise ValueError(f"{text} is not a folder, and not a repository that can be reached: {first}") from error
    return text


__all__ = ["resolve_model"]
