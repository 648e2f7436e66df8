"""Reading of JSON and YAML in bounded time and memory."""

import json
import os
import re
from pathlib import Path
from typing import Any

import yaml

from cellglot.inputs.errors import InputError, reading


MOST_BYTES = 64 << 20  # a configuration has thousands, a vocabulary with names a few millions
MOST_YAML_BYTES = 1 << 17  # PyYAML reads some 50,000 bytes a second
MOST_ALIASES = 100  # of a YAML file, which a few of them can multiply into gigabytes
MOST_VALUES = 100_000
DEEPEST = 100

_BRACKET = re.compile(r"[\[\]{}]")


def read_json(
    path: str | os.PathLike, *, kind: type | tuple[type, ...] | None = dict, most_bytes: int = MOST_BYTES
) -> Any:
    """Read a JSON file.

    Parameters
    ----------
    kind
        Type of the content: a mapping by default, None for any.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    """
    path = Path(path)
    text = _text(path, most_bytes)
    with reading(path, "write the file again"):
        try:
            content = json.loads(text)
        except ValueError as error:
            raise InputError(f"{path} is not JSON ({error}): write the file again") from error
    if kind is not None and not isinstance(content, kind):
        raise InputError(f"{path} contains {_word(content)}, not {_wanted(kind)}")
    return content


def read_yaml(path: str | os.PathLike, loader: type = yaml.SafeLoader, *, most_bytes: int = MOST_YAML_BYTES) -> Any:
    """Read a YAML file. No Python objects are made from it.

    Parameters
    ----------
    loader
        `yaml.SafeLoader`, or a class below it.

    Raises
    ------
    InputError
        If it is too large, not YAML, nested too deeply, or refers to itself; names the file.
    FileNotFoundError
        If there is no such file.
    """
    path = Path(path)
    return parse_yaml(_text(path, most_bytes), str(path), loader)


def parse_yaml(text: str, name: str, loader: type = yaml.SafeLoader) -> Any:
    """Read YAML; see `read_yaml`.

    Parameters
    ----------
    name
        Name of the file or option, for messages.
    loader
        `yaml.SafeLoader`, or a class below it.
    """
    if _depth(text) > DEEPEST:
        raise InputError(f"{name} is nested too deeply: write it again")
    with reading(name, "write it again"):
        try:
            aliases = (
                sum(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, loader)) if "*" in text else 0
            )
            if aliases > MOST_ALIASES:
                raise InputError(f"{name} repeats parts of itself {aliases:,} times (YAML aliases): write them out")
            return _plain(yaml.load(text, loader), name)
        except yaml.YAMLError as error:
            raise InputError(f"{name} is not YAML: {error}") from error


def _depth(text: str) -> int:
    """Return the depth of brackets: PyYAML takes time by its square."""
    depth = deepest = 0
    for found in _BRACKET.finditer(text):
        depth = max(depth + (1 if found.group() in "[{" else -1), 0)
        deepest = max(deepest, depth)
    return deepest


def _plain(content: Any, name: str) -> Any:
    """Refuse content that aliases make too large or endless."""
    left = MOST_VALUES

    def count(value: Any, depth: int) -> None:
        nonlocal left
        left -= 1
        if left < 0 or depth > DEEPEST:
            raise InputError(f"{name} repeats or nests parts of itself without end (YAML aliases): write them out")
        if isinstance(value, dict):
            for key, inner in value.items():
                count(key, depth + 1)
                count(inner, depth + 1)
        elif isinstance(value, list | tuple | set):
            for inner in value:
                count(inner, depth + 1)

    count(content, 0)
    return content


def _text(path: Path, most_bytes: int) -> str:
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a file")
    size = path.stat().st_size
    if size > most_bytes:
        raise InputError(f"{path} has {size:,} bytes, more than such a file can have ({most_bytes:,})")
    with reading(path, "write the file again as UTF-8"):
        return path.read_text(encoding="utf-8")


def _word(content: Any) -> str:
    names: dict[type, str] = {dict: "a mapping", list: "a list", str: "a text", type(None): "nothing"}
    return names.get(type(content), f"{content!r:.40}")


def _wanted(kind: type | tuple[type, ...]) -> str:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    names: dict[type, str] = {dict: "a mapping", list: "a list", str: "a text"}
    return " or ".join(names.get(k, k.__name__) for k in kinds)


__all__ = ["parse_yaml", "read_json", "read_yaml"]
