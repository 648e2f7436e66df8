"""Addresses of network sources, which are read without a copy on disk."""

import os
from pathlib import Path


CENSUS = "census"


def is_remote(path: str | os.PathLike) -> bool:
    """Whether a path is the address of a network source, such as ``hf://datasets/OWNER/NAME``."""
    scheme, found, _ = str(path).partition("://")
    return bool(found) and scheme.isalnum() and scheme != "file"


def is_census(path: str | os.PathLike) -> bool:
    """Whether this names CELLxGENE Census: ``census:VERSION`` or ``census:VERSION/ORGANISM``."""
    return isinstance(path, str) and path.startswith(f"{CENSUS}:")


def as_source(path: str | os.PathLike) -> Path | str:
    """Return the path of cells on disk, with ``~`` replaced by the home folder; an address unchanged."""
    if is_remote(path) or is_census(path):
        return str(path).rstrip("/")
    return Path(path).expanduser()


def name_of(path: Path | str) -> str:
    """Return the name of a file, folder or address without its ending."""
    if is_census(path):
        return str(path).replace(":", "-").replace("/", "-")
    name = str(path).rstrip("/").rsplit("/", 1)[-1] if isinstance(path, str) else path.name
    name = name.removesuffix(".gz")
    return name.rsplit(".", 1)[0] or name


__all__ = ["as_source", "is_census", "is_remote", "name_of"]
