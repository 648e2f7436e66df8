"""Read ahead, write behind, and work in several processes, with results in order."""

import functools
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from multiprocessing.connection import wait
from typing import Any, TypeVar


Item = TypeVar("Item")
_END: Any = object()


def ahead(items: Iterable[Item], most: int = 1) -> Generator[Item, None, None]:
    """Yield items in order; a thread makes up to `most` of the next ones while the caller works."""
    iterator = iter(items)
    with ThreadPoolExecutor(1) as thread:
        waiting = deque(thread.submit(next, iterator, _END) for _ in range(most))
        while (item := waiting.popleft().result()) is not _END:
            waiting.append(thread.submit(next, iterator, _END))
            yield item


class Behind:
    """Runs calls one after the other in a thread; with `most` calls unfinished, the caller waits.

    The error of a call is raised by its result and by all later calls.
    """

    def __init__(self, most: int) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._calls: deque[Future] = deque(maxlen=most)

    def __call__(self, function: Callable[..., Item], *arguments: Any) -> "Future[Item]":
        """Run a call after those before it; return the future of its result."""
        if len(self._calls) == self._calls.maxlen:
            self._calls[0].result()
        last = self._calls[-1] if self._calls else None

        def call() -> Item:
            if last is not None:
                last.result()
            return function(*arguments)

        self._calls.append(self._thread.submit(call))
        return self._calls[-1]

    def wait(self) -> None:
        """Wait until all calls are finished."""
        if self._calls:
            self._calls[-1].exception()

    def close(self) -> None:
        """End the thread when all calls are finished."""
        self._thread.shutdown(wait=True)


def one_later(started: Iterable["Future[Item]"]) -> Iterator[Item]:
    """Yield results in order, each after the next piece of work has been started."""
    last: Future | None = None
    for future in started:
        if last is not None:
            yield last.result()
        last = future
    if last is not None:
        yield last.result()


class Helpers:
    """A pool of `number` processes that share pieces of work with this one; it does not wait for them to start."""

    def __init__(self, pool: Executor, number: int):
        self._pool, self._number = pool, number

    def map(
        self,
        here: Callable[[Any], Any],
        there: Callable[[Any], tuple[Any, ...]],
        pieces: Sequence[Any],
    ) -> Iterator[Any]:
        """Do pieces of work and yield their results in order.

        Parameters
        ----------
        here
            Does a piece in this process.
        there
            Piece -> function and arguments for another process.
        """
        results: dict[int, Future] = {number: Future() for number in range(len(pieces))}
        numbers, lock, stopped = iter(range(len(pieces))), threading.Lock(), threading.Event()

        def take() -> int | None:
            with lock:
                return None if stopped.is_set() else next(numbers, None)

        def hand_out(_: Any = None) -> None:
            if (number := take()) is not None:
                try:
                    task = self._pool.submit(*there(pieces[number]))
                except RuntimeError as error:  # the processes have ended
                    results[number].set_exception(error)
                    return
                task.add_done_callback(functools.partial(_pass_on, result=results[number]))
                task.add_done_callback(hand_out)

        try:
            for _ in range(self._number):
                hand_out()
            given = 0
            while given < len(pieces):
                if not results[given].done() and (number := take()) is not None:
                    results[number].set_result(here(pieces[number]))
                    continue
                yield results.pop(given).result()  # and free its memory
                given += 1
        finally:
            stopped.set()


def end_with_parent() -> None:
    """End this process when the process that started it ends, also if that one is killed."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _pass_on(done: Future, result: Future) -> None:
    if done.cancelled():
        result.cancel()
    elif (error := done.exception()) is not None:
        result.set_exception(error)
    else:
        result.set_result(done.result())


__all__ = ["Behind", "Helpers", "ahead", "end_with_parent", "one_later"]
