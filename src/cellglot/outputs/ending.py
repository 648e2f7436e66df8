"""SIGTERM as an exception, so that unfinished files are removed."""

import signal
from types import FrameType
from typing import NoReturn


def exit_on_sigterm() -> None:
    """Let SIGTERM end this process with status 143. An installed handler is kept."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        signal.signal(signal.SIGTERM, end)


__all__ = ["exit_on_sigterm"]
