"""Reading from network sources: a source that breaks off or stalls is read again, and named in the end."""

import atexit
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar


logger = logging.getLogger(__name__)

TRIES = 4
STALLED_SECONDS = 120.0  # without an answer of a network source
PAUSE_SECONDS = 1.0  # before the second try; twice as long before each further one
END_SECONDS = 10.0  # to wait for reads that were given up, when the process ends

Result = TypeVar("Result")


def retried(
    address: str,
    read: Callable[[], Result],
    failed: Callable[[str], Exception],
    then: str,
    *,
    final: type[BaseException] | tuple[type[BaseException], ...] = (),
    missing: Callable[[str], Exception] | None = None,
) -> Result:
    """Read from a network source; try again if it breaks off or does not answer.

    Parameters
    ----------
    read
        Reads; called in a thread of its own.
    failed
        Makes the error that is raised when all tries failed, from its message.
    then
        What the user can do when all tries failed: the end of the message.
    final
        Errors that are raised at once.
    missing
        Makes the error for a source that does not exist or may not be read; by default `failed`.

    Raises
    ------
    Exception
        What `failed` or `missing` makes; the message names the address.
    """
    failure: BaseException | None = None
    for turn in range(TRIES):
        if turn:
            pause = PAUSE_SECONDS * 2 ** (turn - 1)
            logger.warning("%s: %s; trying again in %g s", address, said(failure), pause)
            time.sleep(pause)
        try:
            return within(STALLED_SECONDS, read)
        except (FileNotFoundError, PermissionError) as error:
            raise (missing or failed)(f"{address} does not exist or may not be read: {said(error)}") from error
        except Exception as error:
            if final and isinstance(error, final):
                raise
            failure = error  # each file system has errors of its own
    raise failed(f"{address} could not be read in {TRIES} tries ({said(failure)}): {then}") from failure


def said(error: BaseException | None) -> str:
    """Return the first line of an error's message, else its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def within(seconds: float, read: Callable[[], Result]) -> Result:
    """Call a function in a thread, and give it up if it takes too long: a read that stalls cannot be ended.

    The process should end by `end_now`, or wait (`END_SECONDS`): if compiled code such as TileDB's returns to Python
    while the interpreter ends, Python before 3.14 ends the thread inside that code, which aborts the process.
    """
    answer: list[Any] = []
    done = threading.Event()

    def call() -> None:
        try:
            answer.append((read(), None))
        except BaseException as error:  # noqa: BLE001 (raised by the caller)
            answer.append((None, error))
        done.set()

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    if not done.wait(seconds):
        _given_up.append(thread)
        raise TimeoutError(f"no answer within {seconds:g} s")
    result, error = answer[0]
    if error is not None:
        raise error
    return result


_given_up: list[threading.Thread] = []


def _stalled() -> list[threading.Thread]:
    return [thread for thread in _given_up if thread.is_alive()]


@atexit.register
def _wait_for_reads() -> None:
    """Let the reads that were given up end before the interpreter does."""
    until = time.monotonic() + END_SECONDS
    for thread in _stalled():
        thread.join(max(0.0, until - time.monotonic()))


def end_now(status: int) -> None:
    """End the process with a status if a read that was given up is still in progress, else return."""
    if not _stalled():
        return
    atexit.unregister(_wait_for_reads)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)


__all__ = ["end_now", "retried", "said", "within"]
