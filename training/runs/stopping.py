"""Signals that stop a training: it saves a checkpoint after the current step, and sets its exit status."""

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, NoReturn


SIGNALS = (signal.SIGTERM, signal.SIGINT)
ONE_REQUEST_SECONDS = 1.0  # launchers forward a signal that a process has already received


class EvaluationStopped(Exception):
    """An evaluation stopped early because of a signal."""


class StopRequest:
    """A request to stop by SIGTERM or SIGINT while the context is open.

    The first signal is only recorded; a second one ends the process at once. Ignored signals stay ignored, and outside
    of the main thread signals cannot be caught. Forked processes leave signals to this one.

    Attributes
    ----------
    signal : int or None
        Number of the signal.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._at, self._process, self._before = 0.0, os.getpid(), dict[int, Any]()

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return
        if self.signal is None:
            self.signal, self._at = number, time.monotonic()
            name = signal.Signals(number).name
            os.write(2, f"\n{name}: saving a checkpoint after this step; a second signal ends at once\n".encode())
        elif time.monotonic() - self._at > ONE_REQUEST_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def end(self) -> NoReturn:
        """Raise the exception of the signal."""
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + signal.SIGTERM)


def leave_signals_to_parent(*_: Any) -> None:
    """Ignore signals in a loader process: its parent ends it."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


__all__ = ["EvaluationStopped", "StopRequest", "leave_signals_to_parent"]
