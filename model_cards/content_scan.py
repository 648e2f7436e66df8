"""Removal of paths of this machine, and refusal of secrets, in published files."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cellglot.inputs import reading
from cellglot.model_cards.checks.local_paths import find_paths, is_whole_path, last_part


JSON_FILES = (".json", ".ipynb")
HDF5_FILES = (".h5ad", ".h5", ".hdf5", ".loom")
TEXT_FILES = (
    *JSON_FILES, ".py", ".md", ".yaml", ".yml", ".txt", ".jinja", ".toml", ".cfg", ".ini", ".csv", ".tsv", ".jsonl",
    ".html", ".xml", ".svg", ".rst", ".sh", ".r", ".R", ".log", "",
)  # fmt: skip

_SECRETS = {
    "a token of the Hub": re.compile(r"\bhf_[A-Za-z0-9]{20,}"),
    "a key of an API": re.compile(r"\bsk-[A-Za-z0-9_-]{20,}"),
    "a token of GitHub": re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{30,})"),
    "a key of AWS": re.compile(r"\bAKIA[0-9A-Z]{16}\b"),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    "a password or key": re.compile(
        r"(?i)[\"']?\b(?:password|passwd|secret|api_?key|hub_token|auth_?token|access_?token|token)[\"']?\s*[:=]\s*"
        r"[\"'](?=[^\"']*\d)[A-Za-z0-9_\-+/=.]{16,}[\"']"
    ),
}
_SECRET_VARIABLE = re.compile(r"(?:TOKEN|SECRET|PASSWORD|API_?KEY)$")


class UnsafeContentError(ValueError):
    """A file contains a secret, or a path of this machine that cannot be removed."""


@dataclass
class Cleaned:
    """Paths of this machine that were shortened to their last part, for each file."""

    paths: dict[str, list[str]] = field(default_factory=dict)

    @property
    def number(self) -> int:
        """Number of paths in all files."""
        return sum(len(found) for found in self.paths.values())


def clean_json(content: Any, name: str, cleaned: Cleaned) -> Any:
    """Shorten the paths of this machine in a JSON value to their last part; add them to `cleaned` under `name`."""
    if isinstance(content, dict):
        return {_shorten(key, name, cleaned): clean_json(value, name, cleaned) for key, value in content.items()}
    if isinstance(content, list):
        return [clean_json(value, name, cleaned) for value in content]
    return _shorten(content, name, cleaned) if isinstance(content, str) else content


def _shorten(text: str, name: str, cleaned: Cleaned) -> str:
    if is_whole_path(text):
        cleaned.paths.setdefault(name, []).append(text)
        return last_part(text)
    kept, end = "", 0
    for start, stop in find_paths(text):
        cleaned.paths.setdefault(name, []).append(text[start:stop])
        kept, end = kept + text[end:start] + last_part(text[start:stop]), stop
    return kept + text[end:]


def scan_text(text: str, name: str) -> list[str]:
    """List the problems of a text: secrets (without their values) and paths of this machine."""
    problems = []
    for number, line in enumerate(text.splitlines(), 1):
        place = f"{name}, line {number}"
        problems += [f"{place}: {what}" for what, pattern in _SECRETS.items() if pattern.search(line)]
        problems += [f"{place}: the path {line[start:end]}" for start, end in find_paths(line)]
    for variable, value in os.environ.items():
        if _SECRET_VARIABLE.search(variable.upper()) and len(value) >= 8 and value in text:
            problems.append(f"{name}: the value of the environment's {variable}")
    return problems


def scan_folder(folder: str | Path, without: Sequence[str] = ()) -> None:
    """Refuse a folder with secrets or paths of this machine in texts, JSON, headers or metadata of cells.

    Parameters
    ----------
    without
        Names of subfolders that are not looked into.
    """
    problems: list[str] = []
    for path in sorted(p for p in Path(folder).rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if name.split("/")[0] in without:
            continue
        with reading(path, "nothing was published"):
            problems += _scan_file(path, name)
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise UnsafeContentError(
            f"nothing was published. Found: {'; '.join(problems[:5])}{more}. Remove it from the folder"
        )


def _scan_file(path: Path, name: str) -> list[str]:
    if path.suffix == ".safetensors":
        return _scan_values(_header(path).get("__metadata__", {}), f"{name} (header)")
    if path.suffix == ".parquet":
        return _scan_parquet(path, name)
    if path.suffix in HDF5_FILES:
        return _scan_hdf5(path, name)
    if path.suffix not in TEXT_FILES:
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    if path.suffix not in JSON_FILES:
        return scan_text(text, name)
    # Paths are searched in the values: JSON writes them with double backslashes.
    problems = [found for found in scan_text(text, name) if ": the path " not in found]
    left = Cleaned()
    clean_json(json.loads(text), name, left)
    return problems + [f"{name}: the path {found}" for found in left.paths.get(name, [])]


def _scan_values(content: Any, name: str) -> list[str]:
    """Scan each text of a JSON value."""
    left = Cleaned()
    clean_json(content, name, left)
    problems = scan_text(json.dumps(content), name)
    known = " ".join(problems)
    return problems + [f"{name}, line 1: the path {found}" for found in left.paths.get(name, []) if found not in known]


def _header(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > path.stat().st_size:
            raise ValueError("it is truncated or damaged")
        return json.loads(file.read(size))


def _scan_hdf5(path: Path, name: str) -> list[str]:
    """Scan attributes and the texts of uns, which contain notes of programs."""
    import h5py

    problems: list[str] = []

    def look(place: str, item: Any) -> None:
        texts = [str(value) for value in item.attrs.values()]
        if place.startswith("uns") and isinstance(item, h5py.Dataset) and h5py.check_string_dtype(item.dtype):
            texts += np.ravel(item.asstr()[()]).tolist()
        problems.extend(scan_text("\n".join(texts), f"{name}, {place or '/'}"))

    with h5py.File(path, "r") as file:
        look("", file)
        file.visititems(look)
    return problems


def _scan_parquet(path: Path, name: str) -> list[str]:
    """Scan the metadata of a file of tokens, and the distinct texts of each column."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    stored = {} if file.schema_arrow.metadata is None else file.schema_arrow.metadata
    texts = {k.decode(errors="replace"): v.decode(errors="replace") for k, v in stored.items()}
    problems = _scan_values(texts, f"{name} (metadata)")
    columns = [f.name for f in file.schema_arrow if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)]
    for column in columns:
        seen = pc.unique(file.read(columns=[column])[column]).to_pylist()
        problems += scan_text("\n".join(text for text in seen if text), f"{name}, column {column}")
    return problems


__all__ = ["Cleaned", "UnsafeContentError", "clean_json", "scan_folder", "scan_text"]
