"""Names of files in other files: they must be inside the same folder."""

import os
from pathlib import Path, PurePosixPath, PureWindowsPath

from cellglot.inputs.errors import InputError


def path_inside(folder: str | os.PathLike, name: object, named_by: str | os.PathLike) -> Path:
    """Return the path of a file that another file names, and refuse one outside of the folder.

    Links of the Hub's cache, from a snapshot to the blobs of its repository, are followed.

    Parameters
    ----------
    name
        Relative to the folder.
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
    """Return the folder that links may lead into: for a snapshot of the Hub's cache, the one with its blobs."""
    real = folder.resolve()
    for parent in real.parents:
        if parent.name == "snapshots" and (parent.parent / "blobs").is_dir():
            return parent.parent
    return real


__all__ = ["path_inside"]
