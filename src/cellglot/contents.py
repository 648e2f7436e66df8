"""What a folder contains, by the names of its files."""

import os
from pathlib import Path


# The first name that is there decides: an adapter has the configuration of the adapted model, too.
_DECIDING = {
    "adapter_config.json": "adapter",
    "config.json": "model",
    "manifest.json": "corpus",
    "reference.json": "index",
    ".work": "corpus",  # an unfinished one
}


def contents_of(folder: str | os.PathLike) -> str:
    """Return what a folder contains: ``"adapter"``, ``"model"``, ``"corpus"``, ``"index"`` or ``"metric"``.

    Others are ``""``. No file is read. A corpus is one also where the run that writes it was stopped.
    """
    path = Path(folder)
    found = next((kind for name, kind in _DECIDING.items() if (path / name).exists()), "")
    return found or ("metric" if (path / f"{path.resolve().name}.py").exists() else "")


__all__ = ["contents_of"]
