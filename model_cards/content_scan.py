"""Keeps paths of this machine and secrets out of what is published."""

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any


TEXT_FILES = (".json", ".py", ".md", ".yaml", ".yml", ".txt", ".jinja", ".toml", ".cfg", ".csv", ".tsv", "")

# Whole values that are paths, and paths inside of texts. A link's path follows its host, which the second leaves out.
_WHOLE_PATH = re.compile(r"^(?:/|~/|[A-Za-z]:[\\/]|\\\\|file://)[^\n]*$")
_ROOTS = (
    "home|Users|root|tmp|work|workspace|mnt|media|data|opt|var|srv|scratch|gpfs|lustre|nfs|private|Volumes|content|"
    "kaggle"
)
_PATH_INSIDE = re.compile(
    rf"(?<![\w.:/~+)-])(?:file://)?/(?:{_ROOTS})/[^\s\"'<>|,;)\]}}]+|(?<!\w)[A-Za-z]:\\[\w. -]+\\[^\s\"']+"
)

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
    """A file holds a secret, or a path of this machine in a place where it cannot be taken out."""


@dataclass
class Cleaned:
    """What was taken out.

    Parameters
    ----------
    paths
        File -> paths of this machine that were shortened to their last part.
    """

    paths: dict[str, list[str]] = field(default_factory=dict)

    @property
    def number(self) -> int:
        """How many."""
        return sum(len(found) for found in self.paths.values())


def clean_json(content: Any, name: str, cleaned: Cleaned) -> Any:
    """Shorten the paths of this machine in a JSON value to their last part, and count them.

    Parameters
    ----------
    content
        The value.
    name
        Of the file.
    cleaned
        Where to note what was shortened.
    """
    if isinstance(content, dict):
        return {_shorten(key, name, cleaned): clean_json(value, name, cleaned) for key, value in content.items()}
    if isinstance(content, list):
        return [clean_json(value, name, cleaned) for value in content]
    return _shorten(content, name, cleaned) if isinstance(content, str) else content


def _shorten(text: str, name: str, cleaned: Cleaned) -> str:
    if _is_path(text):
        cleaned.paths.setdefault(name, []).append(text)
        return _last_part(text)

    def replace(found: re.Match) -> str:
        cleaned.paths.setdefault(name, []).append(found.group())
        return _last_part(found.group())

    return _PATH_INSIDE.sub(replace, text)


def _is_path(text: str) -> bool:
    """Whether a text is a path and nothing else: ``/`` alone, or a gene's name, is none."""
    return len(text) > 2 and " " not in text.split("/")[0] and bool(_WHOLE_PATH.match(text)) and "\n" not in text


def _last_part(path: str) -> str:
    parts = PureWindowsPath(path.removeprefix("file://").rstrip("/\\")).parts
    return parts[-1] if parts else ""


def scan_text(text: str, name: str) -> list[str]:
    """List what must not be published in a text: secrets, without repeating them, and paths of this machine.

    Parameters
    ----------
    text
        The text.
    name
        Of the file.
    """
    problems = []
    for number, line in enumerate(text.splitlines(), 1):
        place = f"{name}, line {number}"
        problems += [f"{place}: {what}" for what, pattern in _SECRETS.items() if pattern.search(line)]
        problems += [f"{place}: the path {found.group()}" for found in _PATH_INSIDE.finditer(line)]
    for variable, value in os.environ.items():
        if _SECRET_VARIABLE.search(variable.upper()) and len(value) >= 8 and value in text:
            problems.append(f"{name}: the value of the environment's {variable}")
    return problems


def scan_folder(folder: str | Path) -> None:
    """Refuse a folder with secrets or paths of this machine: in texts, in JSON, in headers, in metadata of cells.

    Parameters
    ----------
    folder
        What is about to be published.

    Raises
    ------
    UnsafeContentError
        Names files and lines; secrets are not repeated.
    """
    problems: list[str] = []
    for path in sorted(p for p in Path(folder).rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".safetensors":
            problems += scan_text(json.dumps(_header(path).get("__metadata__", {})), f"{name} (header)")
        elif path.suffix == ".parquet":
            problems += _scan_parquet(path, name)
        elif path.suffix in TEXT_FILES:
            problems += scan_text(path.read_text(encoding="utf-8"), name)
            if path.suffix == ".json":
                left = Cleaned()
                clean_json(json.loads(path.read_text(encoding="utf-8")), name, left)
                problems += [f"{name}: the path {found}" for found in left.paths.get(name, [])]
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise UnsafeContentError(
            f"nothing was published, for there is in it: {'; '.join(problems[:5])}{more}. Take it out of the folder"
        )


def _header(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(size))


def _scan_parquet(path: Path, name: str) -> list[str]:
    """Scan the metadata of a file of tokens, and the different texts of each column."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    stored = {} if file.schema_arrow.metadata is None else file.schema_arrow.metadata
    problems = scan_text(json.dumps({k.decode(): v.decode() for k, v in stored.items()}), f"{name} (metadata)")
    columns = [f.name for f in file.schema_arrow if pa.types.is_string(f.type) or pa.types.is_large_string(f.type)]
    for column in columns:
        seen = pc.unique(file.read(columns=[column])[column]).to_pylist()
        problems += scan_text("\n".join(text for text in seen if text), f"{name}, column {column}")
    return problems


__all__ = ["Cleaned", "UnsafeContentError", "clean_json", "scan_folder", "scan_text"]
