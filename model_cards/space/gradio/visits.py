"""Visits: what is kept for a visitor while the page is open, and deleted after it."""

import secrets
import shutil
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Visit:
    """One visitor's cells and results.

    Parameters
    ----------
    folder
        Of the files that are made for the visitor.
    key
        Names the visit in the page; it cannot be guessed.
    uploads
        Files that the visitor sent.
    result
        The annotated cells, or None.
    used
        When it was last used, in seconds of a monotonic clock.
    """

    folder: Path
    key: str = field(default_factory=lambda: secrets.token_urlsafe(18))
    uploads: set[Path] = field(default_factory=set)
    result: Any = None
    used: float = field(default_factory=time.monotonic)


class Visits:
    """All visits of a page.

    Parameters
    ----------
    root
        Folder for the files of all visits.
    idle_seconds
        Visits that were not used for this time are ended by `sweep`.
    """

    def __init__(self, root: Path, idle_seconds: float = 3600):
        self.root, self.idle_seconds = root, idle_seconds
        self._by_session: dict[str, Visit] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._by_session)

    def of(self, session: str) -> Visit:
        """Return the visit of a browser's session; a new one for a new session."""
        with self._lock:
            if session not in self._by_session:
                folder = self.root / secrets.token_hex(8)
                folder.mkdir(parents=True)
                self._by_session[session] = Visit(folder)
            visit = self._by_session[session]
            visit.used = time.monotonic()
            return visit

    def by_key(self, key: str) -> Visit | None:
        """Return the visit with a key, or None."""
        with self._lock:
            visit = next((v for v in self._by_session.values() if secrets.compare_digest(v.key, str(key))), None)
            if visit is not None:
                visit.used = time.monotonic()
            return visit

    def remember(self, session: str, uploads: Iterable[str | Path]) -> Visit:
        """Note files that belong to a visit, to delete them with it."""
        visit = self.of(session)
        visit.uploads |= {Path(path) for path in uploads}
        return visit

    def end(self, session: str) -> None:
        """Delete everything of a visit; a file that another visitor sent, too, stays until that visit ends."""
        with self._lock:
            visit = self._by_session.pop(session, None)
            if visit is None:
                return
            others = {path for other in self._by_session.values() for path in other.uploads}
        visit.result = None
        shutil.rmtree(visit.folder, ignore_errors=True)
        for path in visit.uploads - others:
            path.unlink(missing_ok=True)
            if path.parent != self.root and path.parent.is_dir() and not any(path.parent.iterdir()):
                path.parent.rmdir()

    def sweep(self) -> None:
        """End the visits that were idle for too long."""
        now = time.monotonic()
        with self._lock:
            idle = [s for s, visit in self._by_session.items() if now - visit.used > self.idle_seconds]
        for session in idle:
            self.end(session)


__all__ = ["Visit", "Visits"]
