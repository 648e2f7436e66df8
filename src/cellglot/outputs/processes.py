"""Marks of processes: they tell which process wrote a file, and whether it still runs."""

import hashlib
import os
import platform
import re
from functools import cache
from pathlib import Path


_MARK = re.compile(r"[0-9a-f]{8}-\d{1,10}-\d{1,20}$")


def host() -> str:
    """Return the name of this machine."""
    return platform.node() or "localhost"


@cache
def _host_digest() -> str:
    return hashlib.sha256(host().encode()).hexdigest()[:8]


def start_of(pid: int) -> int | None:
    """Return when a process of this machine started, in clock ticks since boot; 0 if the system does not tell.

    The number of a process is used again after its end. Number and start together are unique.

    Returns
    -------
    int or None
        None if there is no such process.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None if Path("/proc/self/stat").exists() else _answers(pid)
    except OSError:
        return 0
    return None if stat[0] in "ZX" else int(stat[19])


def _answers(pid: int) -> int | None:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        return 0
    return 0


def own_mark() -> str:
    """Return a mark of this process: ``HOST-PID-START``, the host as eight hexadecimal digits."""
    return f"{_host_digest()}-{os.getpid()}-{start_of(os.getpid()) or 0}"


def is_alive(mark: str) -> bool | None:
    """Return whether the process of a mark runs; None if it is of another machine, and so unknown."""
    where, pid, start = mark.split("-") if _MARK.match(mark) else ("", "0", "0")
    if where != _host_digest():
        return None
    found = start_of(int(pid))
    return found is not None and (not int(start) or not found or found == int(start))


__all__ = ["host", "is_alive", "own_mark", "start_of"]
