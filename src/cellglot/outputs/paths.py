"""Which paths may be written: never an input, a folder that contains one, a repository, a home or a root."""

import os
from collections.abc import Iterable
from pathlib import Path


REPOSITORIES = (".git", ".hg", ".svn", ".jj")


class OutputError(ValueError):
    """An output must not be written to."""


def same_file(one: str | os.PathLike, other: str | os.PathLike) -> bool:
    """Whether two paths are the same file or folder; links and ``..`` are followed."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return os.path.realpath(one) == os.path.realpath(other)


def _ancestors(path: str | os.PathLike) -> list[Path]:
    """Return a path and all folders above it, as it is written and with its links followed."""
    spelt, followed = Path(os.path.abspath(path)), Path(os.path.realpath(path))
    return list(dict.fromkeys([spelt, *spelt.parents, followed, *followed.parents]))


def holds(folder: str | os.PathLike, path: str | os.PathLike) -> bool:
    """Whether a folder is, or contains at any depth, a file or folder; also by a link."""
    return any(same_file(folder, above) for above in _ancestors(path))


def local(given: Iterable[str | os.PathLike | None]) -> list[Path]:
    """Return the inputs that are files or folders of this machine, without names of repositories."""
    return [Path(path) for path in given if path is not None and os.path.lexists(path)]


def check_folder(output: str | os.PathLike, inputs: Iterable[str | os.PathLike | None] = ()) -> None:
    """Refuse a folder that results must not be written to.

    Parameters
    ----------
    output
        The folder. It does not have to exist.
    inputs
        Files and folders that are read: cells, models, tables, settings. None and names of repositories are ignored.
    """
    output = Path(output)
    other = "choose a folder that nothing else uses"
    if output.exists() and not output.is_dir():
        raise OutputError(f"{output} is a file: {other}")
    if os.path.lexists(output) and not output.exists():
        raise OutputError(f"{output} is a link to a place that does not exist: {other}")
    above = next((path for path in output.parents if os.path.lexists(path)), None)
    if above is not None and not above.is_dir():
        raise OutputError(f"{output} is below {above}, which is not a folder: {other}")
    real = Path(os.path.realpath(output))
    if real == real.parent:
        raise OutputError(f"{output} is the root of a file system: {other}")
    if any(holds(output, home) for home in _homes()):
        raise OutputError(f"{output} is or holds a home folder: {other}")
    for path in local(inputs):
        if holds(output, path):
            what = "is an input" if same_file(output, path) else f"holds the input {path}"
            raise OutputError(f"{output} {what}: {other}")
        if path.suffix == ".zarr" and path.is_dir() and holds(path, output):
            raise OutputError(f"{output} is inside the input {path}: {other}")
    for name in REPOSITORIES:
        if os.path.lexists(output / name):
            raise OutputError(f"{output} is the root of a repository ({name}): {other}")


def _homes() -> list[Path]:
    homes = {os.environ.get("HOME"), os.path.expanduser("~")}
    try:
        import pwd

        homes.add(pwd.getpwuid(os.getuid()).pw_dir)
    except (ImportError, KeyError):
        pass
    return [Path(home) for home in homes if home and os.path.isabs(home) and os.path.isdir(home)]


def check_file(
    output: str | os.PathLike, inputs: Iterable[str | os.PathLike | None] = (), *, overwrite: bool = False
) -> None:
    """Refuse a file for a result that is an input, or that exists.

    Parameters
    ----------
    output
        The file. It does not have to exist.
    inputs
        Files and folders that are read. They and the files inside of them are never replaced, also not by
        `overwrite`. None and names of repositories are ignored.
    overwrite
        Replace a file that exists.
    """
    output = Path(output)
    for path in local(inputs):
        if output.exists() and (same_file(output, path) or (path.is_dir() and holds(path, output))):
            raise OutputError(f"{output} is {_input_name(output, path)}: write the result to another file")
        if path.suffix == ".zarr" and path.is_dir() and holds(path, output):
            raise OutputError(f"{output} is inside the input {path}: write the result to another place")
    if output.is_dir():
        raise OutputError(f"{output} is a folder: name a file for the result")
    if not output.parent.is_dir():
        raise OutputError(f"there is no folder {output.parent} to write {output.name} to: make it first")
    if not os.access(output.parent, os.W_OK | os.X_OK):
        raise OutputError(f"{output.parent} cannot be written to: write {output.name} to another folder")
    if os.path.lexists(output) and not overwrite:
        raise OutputError(f"{output} exists: choose another name, or replace it by --overwrite (overwrite=True)")


def _input_name(output: Path, path: Path) -> str:
    if same_file(output, path):
        return "an input (the file of cells, or another that is read)"
    return f"a file of the input {path}"


def check_files(
    outputs: Iterable[str | os.PathLike | None],
    inputs: Iterable[str | os.PathLike | None] = (),
    *,
    overwrite: bool = False,
) -> None:
    """Check several files as `check_file` does, and that no two of them are the same file."""
    given, inputs = [Path(path) for path in outputs if path is not None], list(inputs)
    for number, output in enumerate(given):
        if any(same_file(output, earlier) for earlier in given[:number]):
            raise OutputError(f"{output} is named for two results: name another file for one of them")
        check_file(output, inputs, overwrite=overwrite)


__all__ = ["OutputError", "check_file", "check_files", "check_folder", "holds", "local", "same_file"]
