"""Work on a corpus by the workers of a Dask cluster: processes of this machine, or those of a scheduler."""

import dataclasses
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cellglot
from cellglot.inputs.addresses import as_source
from cellglot.outputs.environment import size_text
from cellglot.tokenization.corpus.check import CorpusError
from cellglot.tokenization.corpus.worker import Job, work_on


logger = logging.getLogger(__name__)

INSTALL = "pip install 'cellglot[cluster]'"
LOCAL = "local"
TASKS_A_THREAD = 2  # of a worker, so that it does not wait for the next one
RESULTS_AHEAD = 4  # finished results for each unfinished task that wait for an earlier one
ANSWER_SECONDS = 60.0  # of a scheduler
LOOK_SECONDS = 30.0  # without a result, after which the state of the workers is looked at
RESUME = "run the same command again, which resumes"


class ClusterError(CorpusError):
    """A cluster cannot be used, or its workers fail; the message says what to do."""


def check_cluster(address: str) -> None:
    """Refuse an address that is neither ``local``, ``local:N`` nor that of a scheduler.

    Raises
    ------
    ClusterError
        Shows what an address looks like.
    """
    kind, separator, rest = address.partition(":")
    if kind == LOCAL and (not separator or (rest.isdecimal() and int(rest) > 0)):
        return
    if kind != LOCAL and rest.startswith("//") and len(rest) > 2:
        return
    raise ClusterError(
        f"the cluster {address!r} is unknown: it is local, local:N for N processes of this machine, or the address of "
        "a Dask scheduler, such as tcp://10.0.0.1:8786"
    )


@contextmanager
def open_cluster(address: str, processes: int) -> Iterator["Cluster"]:
    """Connect to a cluster; a local one is started, and ends with the block.

    Parameters
    ----------
    address
        As for `check_cluster`.
    processes
        Number of processes for ``local``.

    Raises
    ------
    ClusterError
        If the package is missing, or the scheduler does not answer.
    """
    check_cluster(address)
    try:
        import distributed
    except ImportError as error:
        raise ClusterError(f"a cluster needs a package that is missing: {INSTALL}") from error
    kind, _, number = address.partition(":")
    if kind == LOCAL:
        workers = int(number) if number else processes
        with (
            distributed.LocalCluster(
                n_workers=workers, threads_per_worker=1, dashboard_address=None, silence_logs=logging.ERROR
            ) as local,
            distributed.Client(local) as client,
        ):
            yield Cluster(client, address)
        return
    try:
        client = distributed.Client(address, timeout=ANSWER_SECONDS)
    except (OSError, ValueError) as error:
        raise ClusterError(f"no Dask scheduler answers at {address} ({error}): check that it runs") from error
    with client:
        yield Cluster(client, address)


class Cluster:
    """Shares pieces of work among the workers of a Dask cluster; this process only collects their results.

    Parameters
    ----------
    client
        Client of `distributed`.
    address
        For messages.
    """

    def __init__(self, client: Any, address: str):
        self._client, self._address = client, address

    def map(self, job: Job, pieces: Sequence[tuple[str, tuple[Any, ...]]]) -> Iterator[Any]:
        """Do pieces of work and yield their results in order; those of a worker that ends are done by others.

        Parameters
        ----------
        pieces
            For each piece a method of `Worker` and its arguments.

        Raises
        ------
        ClusterError
            If workers end again and again in the same piece, are all out of memory, the scheduler is lost, or a
            worker has another version of cellglot or does not see the files.
        """
        import distributed

        running: dict[Any, int] = {}
        try:
            # a task, not scattered data: it is made again if the worker that holds it ends
            shared = self._client.submit(_same, absolute(job), pure=False)
            yield from self._in_order(shared, job, pieces, running)
        except (OSError, distributed.CancelledError) as error:
            if not isinstance(error, distributed.CommClosedError | TimeoutError | distributed.CancelledError):
                raise
            raise ClusterError(
                f"the connection to the Dask scheduler at {self._address} was lost ({type(error).__name__}): check "
                f"that it runs, then {RESUME}"
            ) from error
        finally:
            for future in running:
                future.release()

    def _in_order(
        self, shared: Any, job: Job, pieces: Sequence[tuple[str, tuple[Any, ...]]], running: dict[Any, int]
    ) -> Iterator[Any]:
        finished: dict[int, Any] = {}
        numbers, given = iter(range(len(pieces))), 0
        while given < len(pieces):
            if given in finished:
                yield finished.pop(given)  # and free its memory
                given += 1
                continue
            at_once = TASKS_A_THREAD * max(1, sum(self._client.ncores().values()))
            while len(running) < at_once and len(finished) < RESULTS_AHEAD * at_once:
                if (number := next(numbers, None)) is None:
                    break
                method, arguments = pieces[number]
                future = self._client.submit(
                    work_there, shared, cellglot.__version__, method, arguments, pure=False, priority=-number
                )
                running[future] = number
            for future in self._wait(list(running)):
                number = running.pop(future)
                finished[number] = self._result(future, job, pieces[number])

    def _wait(self, running: list[Any]) -> list[Any]:
        """Return the tasks that are done, at least one; say why there is none for long."""
        import distributed

        while True:
            try:
                return list(distributed.wait(running, timeout=LOOK_SECONDS, return_when="FIRST_COMPLETED").done)
            except TimeoutError:
                workers = self._client.scheduler_info(n_workers=-1)["workers"]
                if not workers:
                    logger.warning("%s has no workers: waiting for the first one", self._address)
                elif all(worker["status"] == "paused" for worker in workers.values()):
                    least = min(worker["memory_limit"] for worker in workers.values())
                    raise ClusterError(
                        f"all {len(workers):,} workers of {self._address} have stopped to work because they are "
                        f"almost out of memory, with a limit of {size_text(least)}: start them with more memory "
                        f"(--memory-limit), or fewer on each machine, then {RESUME}"
                    ) from None

    def _result(self, future: Any, job: Job, piece: tuple[str, tuple[Any, ...]]) -> Any:
        import distributed

        try:
            return future.result()
        except distributed.KilledWorker as error:
            number, start, stop = piece[1][0]
            limit = getattr(error.last_worker, "memory_limit", 0) or 0
            raise ClusterError(
                f"the workers of {self._address} ended {error.allowed_failures + 1} times at cells {start:,} to "
                f"{stop:,} of {job.files[number].name}, the last one at {error.last_worker.address}, perhaps because "
                f"its memory{f' of {size_text(limit)}' if limit else ''} was full: start them with more memory "
                f"(--memory-limit), or fewer on each machine, then {RESUME}"
            ) from error
        except ModuleNotFoundError as error:
            raise ClusterError(
                f"a worker of {self._address} cannot import {error.name}: install cellglot {cellglot.__version__} "
                "with the same packages there"
            ) from error


def absolute(job: Job) -> Job:
    """Return a job whose files and folders do not depend on the working folder of a process."""

    def from_root(path: str) -> str:
        return path if isinstance(as_source(path), str) else os.path.abspath(path)

    files = [dataclasses.replace(file, path=from_root(file.path)) for file in job.files]
    return dataclasses.replace(
        job,
        files=files,
        work=os.path.abspath(job.work),
        output=os.path.abspath(job.output),
        vocabulary=os.path.abspath(job.vocabulary),
    )


def _same(job: Job) -> Job:
    return job


def work_there(job: Job, version: str, method: str, arguments: tuple[Any, ...]) -> Any:
    """Work on a unit of a job in a worker of a cluster.

    Raises
    ------
    ClusterError
        If this worker has another version of cellglot, or does not see the folder of the corpus.
    """
    if version != cellglot.__version__:
        raise ClusterError(
            f"the worker on {socket.gethostname()} has cellglot {cellglot.__version__}, not {version}: install the "
            "same version there"
        )
    if not Path(job.work, "plan.json").exists():
        raise ClusterError(
            f"the worker on {socket.gethostname()} does not see {job.output}: the files of cells and the corpus have "
            "to be in folders that all machines share"
        )
    return work_on(job, method, arguments)


__all__ = ["Cluster", "ClusterError", "absolute", "check_cluster", "open_cluster", "work_there"]
