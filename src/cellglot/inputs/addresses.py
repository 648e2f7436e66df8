"""Addresses of network sources, which are read without a copy on disk."""

import os


def is_remote(path: str | os.PathLike) -> bool:
    """Whether a path is the address of a network source, such as ``hf://datasets/OWNER/NAME``."""
    scheme, found, _ = str(path).partition("://")
    return bool(found) and scheme.isalnum() and scheme != "file"


__all__ = ["is_remote"]
