"""Atomic writing: files are written under a temporary name, then renamed."""

import hashlib
import json
import os
import re
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cellglot.outputs.processes import is_alive, own_mark


_UMASK = threading.Lock()
_PART = re.compile(r"^\..*\.(?P<mark>[0-9a-f]{8}-\d+-\d+)-[0-9a-f]{8}\.part(\.[^.]*)?$")


def umask() -> int:
    """Return the permissions that new files of this process do not get."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            return next(int(line.split()[1], 8) for line in status if line.startswith("Umask:"))
    except (OSError, StopIteration, ValueError):
        with _UMASK:
            mask = os.umask(0o022)
            os.umask(mask)
        return mask


def temporary_name(path: str | os.PathLike) -> Path:
    """Return a new name beside a file, with its ending: ``.STEM.HOST-PID-START-RANDOM.part.ENDING``."""
    path = Path(path)
    return path.with_name(f".{path.stem[:100]}.{own_mark()}-{secrets.token_hex(4)}.part{path.suffix}")


@contextmanager
def atomic(path: str | os.PathLike) -> Iterator[Path]:
    """Write a file completely or not at all.

    Yields a temporary path in the same folder, with the same ending and a unique name. At the end the file is flushed
    to disk, gets the permissions of the umask, and is renamed. After an error it is removed, and an existing file is
    unchanged.

    Parameters
    ----------
    path
        The file. Its folder is made if it does not exist. A link is replaced, not followed.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        yield temporary
        publish_file(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def publish_file(temporary: Path, path: Path) -> None:
    """Flush a file to disk, set the permissions of the umask, and rename it."""
    share(temporary)
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def share(path: str | os.PathLike) -> None:
    """Set the permissions of the umask: some libraries write files that only their owner can read."""
    os.chmod(path, 0o666 & ~umask())


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file (UTF-8, line ends unchanged) completely or not at all."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def write_json(
    path: str | os.PathLike, content: Any, *, indent: int | None = 1, default: Callable[[Any], Any] | None = None
) -> None:
    """Write a JSON file completely or not at all. NaN and infinities are refused."""
    text = json.dumps(content, indent=indent, default=default, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def sha256(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file, or of all files of a folder with their names, as 64 hexadecimal digits."""
    path = Path(path)
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for part in sorted(p for p in path.rglob("*") if p.is_file()):
        digest.update(str(part.relative_to(path)).encode())
        with part.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def is_leftover(path: Path) -> bool:
    """Whether a file is the temporary file of a process of this machine that has ended."""
    match = _PART.match(path.name)
    return match is not None and is_alive(match["mark"]) is False


def remove_leftovers(path: str | os.PathLike) -> None:
    """Remove the temporary files of a file that killed runs left."""
    path = Path(path)
    for found in path.parent.glob(f".{_escaped(path.stem[:100])}.*.part{_escaped(path.suffix)}"):
        if is_leftover(found):
            found.unlink(missing_ok=True)


def remove_leftover_folders(parent: str | os.PathLike, prefix: str) -> None:
    """Remove the folders ``PREFIX-MARK-...`` of processes of this machine that have ended."""
    for path in Path(parent).glob(f"{_escaped(prefix)}-*"):
        mark = "-".join(path.name.removeprefix(f"{prefix}-").split("-")[:3])
        if path.is_dir() and not path.is_symlink() and is_alive(mark) is False:
            shutil.rmtree(path, ignore_errors=True)


def _escaped(text: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", text)


__all__ = [
    "atomic", "is_leftover", "publish_file", "remove_leftover_folders", "remove_leftovers", "sha256", "share",
    "temporary_name", "umask",
    "write_json", "write_text",
]  # fmt: skip
