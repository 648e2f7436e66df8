"""Tables of texts that ship with the package: small on disk, read fast, no pickle."""

import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from cellglot.outputs import atomic


def packed_ids(ids: Iterable[str], prefix: str) -> list[str]:
    """Write sorted ids, a prefix and a number, as the steps between their numbers."""
    numbers = np.array([0, *(int(i.removeprefix(prefix)) for i in ids)])
    return [str(n) for n in np.diff(numbers)]


def unpacked_ids(steps: list[str], prefix: str, digits: int = 11) -> list[str]:
    """Return the ids that `packed_ids` wrote, with so many digits (Ensembl's have eleven)."""
    return [f"{prefix}{n:0{digits}d}" for n in np.cumsum(np.array(steps, dtype=np.int64)).tolist()]


def pack(path: Path, columns: Mapping[str, list[str]], facts: Mapping[str, str]) -> str:
    """Write a table, compressed: a line of JSON with its facts and columns, then each column, one value a line."""
    head = {"facts": dict(facts), "columns": {name: len(values) for name, values in columns.items()}}
    lines = [json.dumps(head), *(value for values in columns.values() for value in values)]
    with atomic(path) as temporary:
        temporary.write_bytes(zlib.compress("\n".join(lines).encode("utf-8"), 9))
    return f"{path.name}: {path.stat().st_size:,} bytes, {len(next(iter(columns.values()))):,} rows"


def unpack(path: Path) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Return the facts and columns of a table that `pack` wrote."""
    lines = zlib.decompress(path.read_bytes()).decode("utf-8").split("\n")
    head = json.loads(lines[0])
    columns, start = {}, 1
    for name, length in head["columns"].items():
        columns[name] = lines[start : start + length]
        start += length
    return head["facts"], columns


__all__ = ["pack", "packed_ids", "unpack", "unpacked_ids"]
