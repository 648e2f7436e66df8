"""Open experiments of SOMA (TileDB), on disk or at a network source that may break off, and CELLxGENE Census."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from cellglot.inputs import network
from cellglot.inputs.addresses import CENSUS, is_census, is_remote
from cellglot.outputs.environment import EnvironmentFailureError
from cellglot.tokenization.count_audit import NotCountsError
from cellglot.tokenization.reading.errors import CellFileError


INSTALL = "pip install 'cellglot[census]'"
MARKS = ("__tiledb_group.tdb", "__group")  # in the folder of a group of TileDB
OTHER_ENDINGS = (".h5ad", ".h5", ".zarr", ".loom", ".mtx", ".mtx.gz", ".rds", ".gz", ".zip")
ORGANISM = "homo_sapiens"
THEN = "check the network and the source, then run the same command again, which resumes"

# Buffers of TileDB, for each column and query: 1 GiB by default.
BUFFER_BYTES, MEMORY_BYTES = 1 << 25, 1 << 30
_CONFIGURATION: dict[str, Any] = {"soma.init_buffer_bytes": BUFFER_BYTES, "sm.mem.total_budget": MEMORY_BYTES}

Result = TypeVar("Result")


def is_soma(path: Path) -> bool:
    """Whether a folder is a group of TileDB, as SOMA experiments are."""
    return path.is_dir() and any((path / mark).exists() for mark in MARKS)


def may_be_soma(address: str) -> bool:
    """Whether an address may be of an experiment: not that of a file or store of another format."""
    return is_census(address) or not address.endswith(OTHER_ENDINGS)


def _library() -> Any:
    try:
        import tiledbsoma
    except ImportError as error:
        raise CellFileError(f"a SOMA experiment needs a package that is missing: {INSTALL}") from error
    return tiledbsoma


def dated_census(address: str) -> str:
    """Return the address of Census with the date of its release in place of ``stable`` and ``latest``.

    Parameters
    ----------
    address
        ``census:VERSION`` or ``census:VERSION/ORGANISM``.

    Raises
    ------
    CellFileError
        If there is no such release, or the package is missing.
    EnvironmentFailureError
        If the list of releases cannot be read.
    """
    version, organism = _census_parts(address)
    census = _census_library()

    def find() -> str:
        return str(census.get_census_version_description(version)["release_build"])

    found = _retried(address, find, final=ValueError, what=f"there is no release {version!r} of Census")
    return f"{CENSUS}:{found}/{organism}"


def _census_parts(address: str) -> tuple[str, str]:
    version, _, organism = address.removeprefix(f"{CENSUS}:").partition("/")
    if not version:
        raise CellFileError(f"{address}: name a release of Census, as in {CENSUS}:2023-07-25 or {CENSUS}:stable")
    return version, organism.lower().replace(" ", "_") or ORGANISM


def _census_library() -> Any:
    try:
        import cellxgene_census
    except ImportError as error:
        raise CellFileError(f"CELLxGENE Census needs a package that is missing: {INSTALL}") from error
    return cellxgene_census


def _retried(
    address: str,
    read: Callable[[], Result],
    final: type[BaseException] | tuple[type[BaseException], ...],
    what: str,
) -> Result:
    """Read from a network source, and again if it breaks off: that is a failure of the machine, not of a file.

    Parameters
    ----------
    final
        Errors that mean `what`.
    """
    try:
        return network.retried(address, read, EnvironmentFailureError, THEN, final=final, missing=CellFileError)
    except Exception as error:
        if not isinstance(error, final) or isinstance(error, CellFileError | NotCountsError | MemoryError):
            raise
        raise CellFileError(f"{address}: {what} ({network.said(error)})") from error


class SomaExperiment:
    """An open experiment; one of a network source is opened again when reading breaks off.

    Parameters
    ----------
    source
        Folder, address, or name of Census.
    """

    def __init__(self, source: Path | str):
        self.source = source
        self.remote = is_remote(source) or is_census(source)
        self._library = _library()
        self._opened: list[Any] = []

    def close(self) -> None:
        """Close the experiment."""
        while self._opened:
            self._opened.pop().close()

    def read(self, work: Callable[[Any], Result]) -> Result:
        """Call a function with the experiment, and again if a network source breaks off or stalls."""
        if not self.remote:
            return self._with(self._opened, work)

        def once() -> Result:
            opened, self._opened = self._opened, []  # a read that is given up keeps it, and the next one opens another
            done = self._with(opened, work)
            self._opened = opened
            return done

        final = (CellFileError, NotCountsError, MemoryError, self._library.DoesNotExistError)
        return _retried(str(self.source), once, final, "it does not exist")

    def _with(self, opened: list[Any], work: Callable[[Any], Result]) -> Result:
        """Call a function with what is opened, or is opened now."""
        opened += [] if opened else self._open()
        return work(opened[-1])

    def _open(self) -> list[Any]:
        """Return what has to be closed, the experiment last."""
        if is_census(self.source):
            version, organism = _census_parts(str(self.source))
            library = _census_library()
            context = library.get_default_soma_context(tiledb_config=_CONFIGURATION)
            census = library.open_soma(census_version=version, context=context)
            organisms = census["census_data"]
            if organism not in organisms:
                raise CellFileError(f"{self.source}: Census has no {organism!r}, but {', '.join(sorted(organisms))}")
            return [census, organisms[organism]]
        context = self._library.SOMATileDBContext(tiledb_config=_CONFIGURATION)
        opened = self._library.open(str(self.source), context=context)
        if opened.soma_type != "SOMAExperiment":
            inside = ", ".join(sorted(opened)) if hasattr(opened, "keys") else ""
            opened.close()
            raise CellFileError(
                f"{self.source} is a {opened.soma_type}, not a SOMA experiment"
                + (f": name an experiment in it; it contains {inside}" if inside else "")
            )
        return [opened]


__all__ = ["INSTALL", "SomaExperiment", "dated_census", "is_soma", "may_be_soma"]
