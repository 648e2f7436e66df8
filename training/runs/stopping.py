"""Signals that ask a training to stop: it saves its state after the step at hand and says so by its exit status."""

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, NoReturn


SIGNALS = (signal.SIGTERM, signal.SIGINT)
ONE_REQUEST_SECONDS = 1.0  # launchers pass a signal on that a process has received itself already


class EvaluationStopped(Exception):
    """An evaluation ended early because the training is to stop."""


class StopRequest:
    """A request to stop, made by SIGTERM or SIGINT while the context is open; the first of them only sets a mark.

    A second signal ends the process at once. Outside the main thread, where signals cannot be caught, and where a
    signal is ignored, nothing changes. Processes that were forked from this one leave signals to it.

    Attributes
    ----------
    signal : int or None
        Number of the signal, None before there was one.
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
        """End the run as the signal asks."""
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + signal.SIGTERM)


def leave_signals_to_parent(*_: Any) -> None:
    """Let a process that reads data finish its work when the whole job gets a signal; its parent ends it."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


__all__ = ["EvaluationStopped", "StopRequest", "leave_signals_to_parent"]
