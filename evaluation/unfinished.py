"""What a run has finished, kept in a folder beside its output until that is written: the same call resumes it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from cellglot.inputs import InputError, read_json
from cellglot.outputs import OutputError, OutputFolder, write_json


class UnfinishedRun:
    """Base of what is finished: in memory, or in a folder.

    Parameters
    ----------
    run
        What the results depend on. Those of another run are refused.
    folder
        Where they are kept; None for memory alone.
    overwrite
        Delete those of another run.

    Raises
    ------
    OutputError
        On entering, if the folder has results of another run, or must not be written to.
    """

    kind: str  # of the output folder
    record: str  # file that says of which run the results are
    parts: str  # what they are, in words

    def __init__(self, run: Mapping[str, Any], folder: Path | None = None, overwrite: bool = False):
        self.run, self.folder, self.overwrite = dict(run), folder, overwrite
        self._output = None if folder is None else OutputFolder(folder, self.kind)

    def __enter__(self) -> Self:
        if self._output is None:
            return self
        self._output.__enter__()
        try:
            self._check()
            self.find()
        except BaseException as error:
            self._output.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(self, *error: object) -> None:
        if self._output is None:
            return
        try:
            if error[0] is not None:
                self.stop()
        finally:
            self._output.__exit__(*error)

    def _check(self) -> None:
        assert self.folder is not None and self._output is not None
        path = self.folder / self.record
        if path.exists() and _read(path) != self.run:
            if not self.overwrite:
                raise OutputError(
                    f"{self.folder} has {self.parts} of a run with other cells, genes, model or settings: repeat that "
                    f"run to resume it, or delete its {self.parts} by --overwrite (overwrite=True)"
                )
            self._output.clear()
        if not path.exists():
            self._output.clear()
            write_json(path, self.run)

    def find(self) -> None:
        """Read what an earlier run of the same kind has finished, where that is not read later; there is a folder."""

    def stop(self) -> None:
        """Keep what is finished before an error leaves the run; there is a folder."""

    def remove(self) -> None:
        """Delete what is kept: the result is written."""
        if self._output is not None:
            self._output.clear()

    def remove_folder(self) -> None:
        """Remove the folder, if nothing else is in it. Call it after leaving."""
        if self.folder is not None and self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()


def _read(path: Path) -> Any:
    try:
        return read_json(path)
    except (InputError, OSError, ValueError):
        return None


__all__ = ["UnfinishedRun"]
