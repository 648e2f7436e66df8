"""Output folders with a manifest of their own files. Other files in them are never changed."""

import json
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cellglot.outputs.kinds import KINDS, Kind, kinds_of_earlier_versions
from cellglot.outputs.lock import lock
from cellglot.outputs.paths import OutputError, check_folder
from cellglot.outputs.writing import is_leftover, sha256, share, write_json


MANIFEST_FILE = ".cellglot-output.json"
FORMAT_VERSION = 1
DIGESTED_BYTES = 1 << 20  # larger files are recognised by their size
ASIDE = ".changed"
DATA = (".parquet", ".safetensors", ".npy", ".npz", ".pt", ".pth", ".bin", ".tmp", ".h5ad", ".png", ".usearch")
_log = logging.getLogger(__name__)


class OutputFolder:
    """The folder of a result, for one run at a time.

    Entering it checks, before any work, that results may be written to the folder (`check_folder`), that no other run
    uses it, that it contains no result of another kind, and that no foreign file would be replaced. After that, files
    with the names of the kind belong to the run.

    Parameters
    ----------
    path
        The folder. Made if it does not exist.
    kind
        A key of `KINDS`: the verb that writes it.
    inputs
        Files and folders that are read. Names of repositories and None are ignored.
    names
        Names of the files that will be written, if they are known. Then only these and those that an earlier run
        recorded belong to the run.

    Attributes
    ----------
    own
        Names of the files that an earlier run of this kind wrote, as they were found on entering.
    was_finished
        Whether an earlier run was finished.

    Raises
    ------
    OutputError
        On entering, if the folder must not be written to.
    LockedError
        On entering, if another run uses it.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        kind: str,
        inputs: Iterable[str | os.PathLike | None] = (),
        *,
        names: Iterable[str] | None = None,
    ):
        self.path, self.kind, self.inputs = Path(path), kind, list(inputs)
        self._names = None if names is None else frozenset(names)
        self.own: list[str] = []
        self.was_finished = False
        self._record: dict[str, Any] = {}
        self._made = self._made_before = False
        self._stack = ExitStack()

    def check(self) -> None:
        """Refuse a folder that must not be written to. Nothing is written."""
        check_folder(self.path, self.inputs)
        self._look()

    def holds_earlier_result(self) -> bool:
        """Whether the folder contains a result of this kind, finished or not."""
        outputs = read_manifest(self.path)
        return self.kind in (outputs or kinds_of_earlier_versions(self.path))

    def __enter__(self) -> "OutputFolder":
        check_folder(self.path, self.inputs)
        if self.path.exists():
            self._look()
        self._made = not self.path.exists()
        with ExitStack() as stack:
            stack.enter_context(lock(self.path))
            self._look()
            for path in [path for _, path in self._found() if is_leftover(path)]:
                path.unlink(missing_ok=True)
            self._record["finished"] = False
            self._write()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        try:
            if not self._record["finished"] and self.path.is_dir():
                self._leave()
        except OSError:
            if error[0] is None:
                raise
        finally:
            self._stack.close()
            if self._made:
                _remove_empty(self.path)

    def refuse_earlier(self, overwrite: bool) -> None:
        """Refuse an earlier result of this kind, unless it may be replaced."""
        if self.own and not overwrite:
            raise OutputError(
                f"{self.path} holds {KINDS[self.kind].title}: choose another folder, or replace it by --overwrite "
                "(overwrite=True)"
            )

    def clear(self) -> list[Path]:
        """Delete the files of an earlier run, and nothing else.

        A text or a complete table that was changed after cellglot wrote it is renamed to ``NAME.changed``. Damaged
        shards and weights are deleted.

        Returns
        -------
        list of Path
            The renamed files.
        """
        known, kept = self._record.get("files", {}), []
        for name, path in list(self._found()):
            if path.is_symlink() or (name in known and _is_of_somebody(path, known[name])):
                kept.append(_put_aside(path))
            else:
                path.unlink(missing_ok=True)
        for folder in self._own_folders():
            _remove_empty(folder)
        if kept:
            _log.warning("renamed instead of deleted, because they were changed: %s", ", ".join(map(str, kept)))
        self.own, self.was_finished = [], False
        self._record = {"finished": False, "files": {}}
        self._write()
        return kept

    def remove(self, name: str) -> None:
        """Delete the run's own file of a name, or its own files in the folder of that name."""
        for found, path in list(self._found()):
            if (found == name or found.startswith(f"{name}/")) and not path.is_symlink():
                path.unlink(missing_ok=True)
        if (self.path / name).is_dir() and not (self.path / name).is_symlink():
            _remove_empty(self.path / name)

    def finish(self) -> None:
        """Record that the run is finished, and its files."""
        self._record["finished"] = True
        self._note()

    # ---------------------------------------------------------------- what is there

    def _look(self) -> None:
        """Read the manifest, and refuse results of another kind and foreign files."""
        outputs = read_manifest(self.path)
        mine: Kind = KINDS[self.kind]
        before = [] if outputs else kinds_of_earlier_versions(self.path)
        for other in [*outputs, *before]:
            if self.kind not in (*outputs, *before) and not (mine.companion or KINDS[other].companion):
                raise OutputError(
                    f"{self.path} contains {KINDS[other].title}: {mine.title} cannot be written to it. Choose another "
                    "folder"
                )
        for folder in self._own_folders(links=True):
            if folder.is_symlink():
                raise OutputError(f"{folder} is a link: cellglot writes there. Choose another folder for the result")
        self._record = outputs.get(self.kind, {"finished": False, "files": {}})
        self._made_before = self.kind in before
        found = dict(self._found())
        self.was_finished = bool(self._record["finished"])
        if self.kind in outputs:
            known = set(self._record["files"]) if self.was_finished else set(found)
        else:
            known = set(found) if self.kind in before else set()
        links = {name for name, path in found.items() if path.is_symlink()}
        foreign = sorted((set(found) - known) | links)
        foreign = [name for name in foreign if not is_leftover(found[name])]
        if foreign:
            raise OutputError(
                f"{self.path} holds {', '.join(foreign[:5])}{', ...' if len(foreign) > 5 else ''}, which cellglot did "
                "not write and would replace: choose another folder, or move "
                f"{'it' if len(foreign) == 1 else 'them'} away"
            )
        self.own = sorted(set(found) & known)

    def _found(self) -> Iterator[tuple[str, Path]]:
        """Yield the files with names of this kind: the name, and the path."""
        places = [self.path, *self._own_folders()]
        for place in places:
            for folder, folders, files in os.walk(place):
                if place == self.path:
                    folders.clear()
                folders.sort()
                for file in sorted([*files, *(f for f in folders if Path(folder, f).is_symlink())]):
                    path = Path(folder, file)
                    name = path.relative_to(self.path).as_posix()
                    if self._owns(name) or is_leftover(path):
                        yield name, path

    def _owns(self, name: str) -> bool:
        kind = KINDS[self.kind]
        if self._names is None or (self._made_before and not kind.named):
            return kind.owns(name) or (self._names is not None and name in self._names)
        return name in self._names or (name in self._record.get("files", {}) and kind.owns(name))

    def _own_folders(self, links: bool = False) -> list[Path]:
        if not self.path.is_dir():
            return []
        found = [path for path in sorted(self.path.iterdir()) if KINDS[self.kind].folders.fullmatch(path.name)]
        return [path for path in found if path.is_dir() and (links or not path.is_symlink())]

    # ---------------------------------------------------------------- the manifest

    def _leave(self) -> None:
        """Record an unfinished run; a finished result that it did not change stays finished."""
        sizes = {name: path.lstat().st_size for name, path in self._found()}
        if not sizes:
            self._forget()
        elif self.was_finished and sizes == {name: facts["bytes"] for name, facts in self._record["files"].items()}:
            self._record["finished"] = True
            self._write()
        else:
            self._note()

    def _note(self) -> None:
        """Record the files."""
        found = [(name, path) for name, path in self._found() if not path.is_symlink()]
        for _, path in found:
            if path.suffix == ".safetensors":  # written readable to their owner alone
                share(path)
        self._record["files"] = {name: _facts(path) for name, path in found}
        self._write()

    def _write(self) -> None:
        outputs = read_manifest(self.path) | {self.kind: self._record}
        write_json(self.path / MANIFEST_FILE, {"format_version": FORMAT_VERSION, "outputs": outputs})

    def _forget(self) -> None:
        """Remove a run that wrote nothing from the manifest."""
        outputs = {kind: record for kind, record in read_manifest(self.path).items() if kind != self.kind}
        if outputs:
            write_json(self.path / MANIFEST_FILE, {"format_version": FORMAT_VERSION, "outputs": outputs})
        else:
            (self.path / MANIFEST_FILE).unlink(missing_ok=True)


def read_manifest(folder: str | os.PathLike) -> dict[str, dict[str, Any]]:
    """Read the manifest of an output folder: kind -> finished, files; empty if there is none."""
    path = Path(folder, MANIFEST_FILE)
    if not path.exists():
        return {}
    way_out = "choose another folder for the result; if nothing else of value is here, delete this one"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version, outputs = content["format_version"], content["outputs"]
        whole = all(
            isinstance(record["files"], dict) and isinstance(record["finished"], bool) for record in outputs.values()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise OutputError(f"{path} is damaged ({type(error).__name__}): {way_out}") from error
    if version != FORMAT_VERSION or not whole or not set(outputs) <= set(KINDS):
        raise OutputError(f"{path} is damaged or of another version of cellglot: {way_out}")
    return outputs


def _facts(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    return {"bytes": size} | ({"sha256": sha256(path)} if size <= DIGESTED_BYTES else {})


def _is_of_somebody(path: Path, facts: dict[str, Any]) -> bool:
    """Whether a file was changed by a user since it was written, and not only damaged."""
    size = path.stat().st_size
    as_written = size == facts.get("bytes") and ("sha256" not in facts or sha256(path) == facts["sha256"])
    if as_written or path.suffix in DATA:
        return not as_written and path.suffix == ".parquet" and size != facts.get("bytes") and _is_whole_table(path)
    return True


def _is_whole_table(path: Path) -> bool:
    with open(path, "rb") as file:
        begin = file.read(4)
        file.seek(max(path.stat().st_size - 4, 4))
        return begin == b"PAR1" == file.read(4)


def _put_aside(path: Path) -> Path:
    number = 0
    while os.path.lexists(aside := path.with_name(f"{path.name}{ASIDE}{f'-{number}' if number else ''}")):
        number += 1
    return path.rename(aside)


def _remove_empty(folder: Path) -> None:
    """Remove the empty folders in a folder, and the folder if it is empty."""
    for place, _, _ in os.walk(folder, topdown=False):
        try:
            os.rmdir(place)
        except OSError:
            continue


__all__ = ["MANIFEST_FILE", "OutputFolder", "read_manifest"]
