"""Digests of the content of files and folders, independent of their names and dates."""

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import xxhash
from rich.progress import Progress, TaskID

from cellglot.inputs.errors import InputError
from cellglot.progress import progress_bars


KIND = "xxh128"
CHUNK = 4 << 20
THREADS = 4
LARGE = 4 << 30  # bytes from which a progress bar is shown
SETTLED_NS = 2_000_000_000  # a younger file may change again within one tick of the file system's clock

_KNOWN: dict[tuple[str, "FileMark"], str] = {}


@dataclass(frozen=True)
class FileMark:
    """What the file system says of a file: every write changes some of it, so equal marks mean equal contents."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    device: int


def file_mark(path: str | os.PathLike) -> FileMark:
    """Return the mark of a file."""
    status = os.stat(path)
    return FileMark(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev)


def file_marks(path: str | os.PathLike) -> dict[str, FileMark]:
    """Return the marks of all files of a folder, or that of a file alone."""
    return {str(file): file_mark(file) for file in _files(Path(path))}


def digest_of(path: str | os.PathLike, *, progress: bool = False) -> str:
    """Hash the content of a file, or the names and contents of a folder's files; files in parallel.

    A file whose mark is that of an earlier call is not read again by the same process.

    Parameters
    ----------
    progress
        Whether to show a bar if there is much to read.

    Returns
    -------
    str
        ``xxh128:`` and 32 hexadecimal digits. It detects damage and changes, not forgery.

    Raises
    ------
    InputError
        If a file changes while it is read.
    OSError
        If a file cannot be read.
    """
    return digests_of([path], progress=progress)[0]


def digests_of(paths: Sequence[str | os.PathLike], *, progress: bool = False) -> list[str]:
    """Hash several files or folders; see `digest_of`."""
    files = [_files(Path(path)) for path in paths]
    flat = [file for of_path in files for file in of_path]
    size = sum(file.stat().st_size for file in flat)
    bars = progress_bars("bytes", shown=progress and size >= LARGE)
    with bars, ThreadPoolExecutor(THREADS) as threads:
        task = bars.add_task("reading", total=size)
        found = dict(zip(flat, threads.map(lambda file: _hash(file, bars, task), flat), strict=True))
    return [_together(Path(path), of_path, found) for path, of_path in zip(paths, files, strict=True)]


def _files(path: Path) -> list[Path]:
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def _together(path: Path, files: list[Path], found: dict[Path, str]) -> str:
    if not path.is_dir():
        return found[files[0]]
    state = xxhash.xxh3_128()
    for file in files:
        state.update(f"{file.relative_to(path).as_posix()}\0{found[file]}\n".encode())
    return f"{KIND}:{state.hexdigest()}"


def _hash(path: Path, bars: Progress, task: TaskID) -> str:
    """Hash a file, unless its mark is known."""
    before = file_mark(path)
    key = (str(path.absolute()), before)
    if key not in _KNOWN:
        state, buffer = xxhash.xxh3_128(), bytearray(min(CHUNK, max(before.size, 1)))
        view = memoryview(buffer)
        with open(path, "rb", buffering=0) as file:
            while length := file.readinto(buffer):
                state.update(view[:length])
                bars.advance(task, length)
        if file_mark(path) != before:
            raise InputError(f"{path} changed while it was read: wait until it is written, then run again")
        found = f"{KIND}:{state.hexdigest()}"
        if time.time_ns() - max(before.mtime_ns, before.ctime_ns) < SETTLED_NS:
            return found
        _KNOWN[key] = found
    return _KNOWN[key]


__all__ = ["FileMark", "digest_of", "digests_of", "file_mark", "file_marks"]
