"""Work in a thread of its own: the page shows how far it is, and it stops when the visitor does not want it."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextvars import copy_context
from typing import Any


class StoppedError(Exception):
    """The visitor stopped the work, or left."""


class Running:
    """A function that runs in a thread.

    Parameters
    ----------
    function
        Takes a function to call with (done, total); that one raises `StoppedError` when the work is to end.
    """

    def __init__(self, function: Callable[[Callable[[int, int], None]], Any]):
        self.done = (0, 0)
        self._stop = threading.Event()
        self._future: Future[Any] = Future()
        context = copy_context()  # Gradio and ZeroGPU find the visitor's request in it
        threading.Thread(target=context.run, args=(self._run, function), daemon=True).start()

    def _run(self, function: Callable[[Callable[[int, int], None]], Any]) -> None:
        try:
            self._future.set_result(function(self._report))
        except BaseException as error:  # noqa: BLE001  it is raised where the result is asked for
            self._future.set_exception(error)

    def _report(self, done: int, total: int) -> None:
        if self._stop.is_set():
            raise StoppedError
        self.done = (done, total)

    def watch(self, seconds: float = 0.4) -> Iterator[tuple[int, int]]:
        """Yield (done, total) from time to time until the work ends; if it is left before, the work stops."""
        try:
            while not wait([self._future], timeout=seconds).done:
                yield self.done
        finally:
            self._stop.set()

    def result(self) -> Any:
        """Return what the function returned, or raise what it raised."""
        return self._future.result()


__all__ = ["Running", "StoppedError"]
