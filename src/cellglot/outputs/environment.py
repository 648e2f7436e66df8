"""Failures of the machine, not of a file: a full disk, a quota, memory, a worker that was killed."""

import errno
import os
import shutil
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path


_ERRORS = {
    code
    for name in ("ENOSPC", "EDQUOT", "EROFS", "ENOMEM", "EMFILE", "ENFILE", "EFBIG", "ESTALE")
    if (code := getattr(errno, name, None)) is not None
}


class EnvironmentFailureError(OSError):
    """The machine failed, not a file: a full disk, no memory, a worker that was killed."""


def is_environment_failure(error: BaseException | None) -> bool:
    """Whether an error, or one that it was raised from, is a failure of the machine."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, EnvironmentFailureError | MemoryError | BrokenProcessPool):
            return True
        if isinstance(error, OSError) and (error.errno in _ERRORS or _says_no_room(error)):
            return True
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return False


def _says_no_room(error: OSError) -> bool:
    """Whether only the text of an error says that the disk is full: so do HDF5 and Arrow."""
    text = str(error)
    return any(f"errno = {code}," in text or f"[errno {code}]" in text for code in _ERRORS)


def check_environment(error: BaseException) -> None:
    """Raise an error again if it is a failure of the machine.

    Call it before an error of reading is reported as an error of a file.
    """
    if isinstance(error, EnvironmentFailureError):
        raise error
    if is_environment_failure(error):
        if isinstance(error, MemoryError):
            raise EnvironmentFailureError(f"out of memory ({error})" if str(error) else "out of memory") from error
        raise EnvironmentFailureError(str(error) or type(error).__name__) from error


def check_room(folder: str | os.PathLike, needed: int, purpose: str, way_out: str) -> None:
    """Refuse to write more than the disk has space for.

    Parameters
    ----------
    folder
        An existing folder on that disk.
    needed
        Bytes.
    purpose
        What needs them: the beginning of the message.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise EnvironmentFailureError(
            f"{purpose} needs {size_text(needed)} in {folder}, and {size_text(free)} are free: {way_out}"
        )


def reserve(path: str | os.PathLike, size: int) -> None:
    """Allocate the space of a file that is written through memory: otherwise a full disk kills the process.

    Raises
    ------
    OSError
        If the disk is full.
    """
    with open(Path(path), "r+b") as file:
        if hasattr(os, "posix_fallocate") and size > 0:
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                if error.errno in _ERRORS:
                    raise
                # the file system cannot reserve


def size_text(n_bytes: int) -> str:
    """Return a number of bytes in words, in powers of 1000: ``1.5 GB``."""
    value, unit = float(n_bytes), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:,.0f} {unit}" if unit == "bytes" else f"{value:,.1f} {unit}"


__all__ = [
    "EnvironmentFailureError", "check_environment", "check_room", "is_environment_failure", "reserve", "size_text",
]  # fmt: skip
