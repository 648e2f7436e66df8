"""Names of files that a file gives: they stay inside its folder."""

import os
from pathlib import Path, PurePosixPath, PureWindowsPath

from cellglot.inputs.errors import InputError


def path_inside(folder: str | os.PathLike, name: object, named_by: str | os.PathLike) -> Path:
    """Return the path of a file that another file names, and refuse one that leads out of the folder.

    Links of the Hub's cache, which lead from a snapshot to the blobs of the same repository, are followed.

    Parameters
    ----------
    name
        As it is named, relative to the folder.
    """
    folder = Path(folder)
    if not isinstance(name, str) or not name or "\0" in name:
        raise InputError(f"{named_by} names {name!r:.80} where the name of a file belongs")
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    if posix.is_absolute() or windows.drive or windows.root or ".." in (*posix.parts, *windows.parts):
        raise InputError(f"{named_by} names {name!r:.200}, which is outside of its folder: it is not read")
    path = folder / name
    if not any(p.is_symlink() for p in (path, *path.parents) if p != folder and folder in p.parents):
        return path
    real, home = path.resolve(), _home(folder)
    if not real.is_relative_to(home):
        raise InputError(f"{named_by} names {name!r:.200}, a link that leads out of its folder: it is not read")
    return path


def _home(folder: Path) -> Path:
    """Return the folder in which links may lead: of a snapshot in the Hub's cache, the one that has its blobs."""
    real = folder.resolve()
    for parent in real.parents:
        if parent.name == "snapshots" and (parent.parent / "blobs").is_dir():
            return parent.parent
    return real


__all__ = ["path_inside"]
