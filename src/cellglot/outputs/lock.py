"""One run for each output: a lock that names its process and ends with it."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import datetime
from pathlib import Path
from typing import Any

from cellglot.outputs.paths import OutputError
from cellglot.outputs.processes import host, is_alive, own_mark


try:
    import fcntl
except ImportError:  # Windows: the mark of the process in the file decides alone
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = ".cellglot-lock"
_HELD: ContextVar[frozenset[tuple[int, int]]] = ContextVar("cellglot_locks", default=frozenset())


class LockedError(OutputError):
    """Another run uses the output."""


@contextmanager
def lock(folder: str | os.PathLike) -> Iterator[None]:
    """Lock a folder for this run. A second run is refused at once.

    The lock is that of the operating system on ``.cellglot-lock``, and the process that the file names. Both end with
    the process. Within a run that has the lock, taking it again does nothing.

    Parameters
    ----------
    folder
        The output. Made if it does not exist.

    Raises
    ------
    LockedError
        If another run uses it; names its process, machine and start.
    OSError
        If the folder cannot be written to.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    status = os.stat(folder)
    key = (status.st_dev, status.st_ino)
    if key in _HELD.get():
        yield
        return
    path = folder / LOCK_FILE
    descriptor = _take(path)
    token = _HELD.set(_HELD.get() | {key})
    try:
        yield
    finally:
        _HELD.reset(token)
        if _is_current(path, descriptor):
            path.unlink(missing_ok=True)
        os.close(descriptor)


def holder(folder: str | os.PathLike) -> str | None:
    """Return the process, machine and start of the run that uses a folder, None if the lock names none."""
    record = _read(Path(folder) / LOCK_FILE)
    if record is None or is_alive(record["mark"]) is False:
        return None
    return _described(record)


def _take(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            free = _try_lock(descriptor)
            if not _is_current(path, descriptor):  # removed by its holder between opening and locking
                os.close(descriptor)
                continue
            record = _read(path)
            alive = None if record is None else is_alive(record["mark"])
            if free is False and alive is False:  # kept by orphans of a process that was killed
                path.unlink(missing_ok=True)
                os.close(descriptor)
                continue
            if free is False or (free is None and alive is not False and record is not None):
                raise LockedError(
                    f"{path.parent} is in use by another run: "
                    f"{_described(record) if record else 'its process is not known yet'}. Wait for its end, or choose "
                    "another output"
                )
            _write(descriptor)
            return descriptor
        except BaseException:
            _close(descriptor)
            raise


def _close(descriptor: int) -> None:
    with suppress(OSError):
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool | None:
    """Lock an open file; False if another process has it, None if the file system has no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_current(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except OSError:
        return False


def _write(descriptor: int) -> None:
    started = datetime.now().astimezone().isoformat(timespec="seconds")
    record = {"pid": os.getpid(), "host": host(), "started": started, "mark": own_mark()}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(record).encode(), 0)


def _read(path: Path) -> dict[str, Any] | None:
    """Read the record of a lock; wait a moment for one that is being written."""
    for wait in (0.02, 0.08, 0):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            return record if isinstance(record, dict) and {"pid", "host", "started", "mark"} <= set(record) else None
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            time.sleep(wait)
    return None


def _described(record: dict[str, Any]) -> str:
    return f"process {record['pid']} on {record['host']}, started {record['started']}"


__all__ = ["LOCK_FILE", "LockedError", "holder", "lock"]
