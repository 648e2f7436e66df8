"""Caches of libraries for homes and installations that are read-only, as in containers and on clusters."""

import logging
import os
import stat
import sys
import tempfile
from pathlib import Path


_log = logging.getLogger(__name__)
_said: set[str] = set()


def use_writable_caches() -> dict[str, str]:
    """Move caches that cannot be written to a temporary folder, by the libraries' variables; warn once.

    Call it before Numba, matplotlib, datasets, evaluate and transformers are imported: they read these variables then.
    Variables that name a writable folder are kept, and so is an existing cache of models, which is only read.

    Returns
    -------
    dict of str to str
        Variables that were set, and their values.
    """
    home = Path(os.path.expanduser("~"))
    user = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    hub = Path(os.environ.get("HF_HOME") or user / "huggingface")
    wanted = {
        "HF_DATASETS_CACHE": hub / "datasets",
        "HF_MODULES_CACHE": hub / "modules",
        "HF_EVALUATE_CACHE": hub / "evaluate",
        "HF_METRICS_CACHE": hub / "metrics",
        "MPLCONFIGDIR": Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "matplotlib",
    }
    if not Path(os.environ.get("HF_HUB_CACHE") or hub / "hub").is_dir():
        wanted["HF_HUB_CACHE"] = hub / "hub"
    if os.environ.get("NUMBA_CACHE_DIR") or not _installation_is_writable():
        wanted["NUMBA_CACHE_DIR"] = user / "numba"
    lost = [name for name, usual in wanted.items() if not _can_write(Path(os.environ.get(name) or usual))]
    if not lost:
        return {}
    folder = _own_temporary_folder()
    for name in lost:
        os.environ[name] = str(folder / name.lower())
        (folder / name.lower()).mkdir(exist_ok=True)
    if "NUMBA_CACHE_DIR" in lost and "numba" in sys.modules:
        sys.modules["numba"].config.CACHE_DIR = os.environ["NUMBA_CACHE_DIR"]
    if not _said:
        _said.update(lost)
        variables = sorted({"HF_HOME" if name.startswith("HF_") else name for name in lost})
        _log.warning(
            "caches are written to %s, because their usual folders are read-only: set %s to writable folders",
            folder,
            " and ".join(variables),
        )
    return {name: os.environ[name] for name in lost}


def _installation_is_writable() -> bool:
    """Whether Numba can keep compiled code beside this package and beside the libraries that it compiles."""
    import importlib.util

    places = [Path(__file__).parent]
    for name in ("umap", "pynndescent"):
        spec = importlib.util.find_spec(name)
        places += [Path(place) for place in (spec and spec.submodule_search_locations) or ()]
    return all(_can_write(place / "__pycache__") for place in places)


def _can_write(folder: Path) -> bool:
    """Whether files can be made in a folder, or in the first one above it that exists."""
    for place in (folder, *folder.parents):
        if place.exists():
            return place.is_dir() and os.access(place, os.W_OK | os.X_OK)
    return False


def _own_temporary_folder() -> Path:
    """Return a folder that only this user can write to; the same in each run, if its name is free."""
    owner = os.getuid() if hasattr(os, "getuid") else 0
    folder = Path(tempfile.gettempdir(), f"cellglot-caches-{owner}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = os.lstat(folder)
        own = stat.S_ISDIR(status.st_mode) and (not hasattr(os, "getuid") or status.st_uid == owner)
        if own and not status.st_mode & 0o022 and os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="cellglot-caches-"))


__all__ = ["use_writable_caches"]
