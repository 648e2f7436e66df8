"""Environments of packages that cannot be installed beside cellglot: made on demand in the user's cache."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from cellglot.outputs import lock, write_json


CACHE = "CELLGLOT_CACHE"
READY = "ready.json"


class EnvironmentNotMadeError(ValueError):
    """An environment could not be made; the message has the end of what the installer said."""


def cache_folder() -> Path:
    """Return the folder of cellglot's caches: ``CELLGLOT_CACHE``, else ``cellglot`` in the user's cache folder."""
    given = os.environ.get(CACHE)
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cellglot"


def environment_folder(name: str, requirements: Path) -> Path:
    """Return the folder of an environment; other requirements or another Python have another folder."""
    mark = hashlib.sha256(requirements.read_bytes()).hexdigest()[:8]
    return cache_folder() / "environments" / f"{name}-py{sys.version_info.major}.{sys.version_info.minor}-{mark}"


def environment_python(name: str, requirements: Path, say: Callable[[str], None] = lambda text: None) -> Path:
    """Return the interpreter of an environment, which is made if it does not exist.

    By ``uv`` if it is on the path, else by ``venv`` and ``pip``, from pinned requirements without a resolver. An
    environment whose making was stopped is made again from the start.

    Parameters
    ----------
    name
        Of the environment, part of its folder's name.
    requirements
        File of pinned packages, all of them.
    say
        Called with a line before the environment is made.

    Raises
    ------
    EnvironmentNotMadeError
        If it cannot be made, such as without a network.
    LockedError
        If another process makes it now.
    """
    folder = environment_folder(name, requirements)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if (folder / READY).exists() and python.exists():
        return python
    uv = shutil.which("uv")
    say(f"{name}: making its environment in {folder} by {'uv' if uv else 'venv and pip'}, once; this takes minutes")
    with lock(folder.parent):
        if uv:
            _run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)], name, folder)
            install = [uv, "pip", "install", "--quiet", "--python", str(python)]
        else:
            _run([sys.executable, "-m", "venv", "--clear", str(folder)], name, folder)
            install = [str(python), "-I", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _run([*install, "--no-deps", "-r", str(requirements)], name, folder)
        write_json(folder / READY, {"name": name, "python": sys.version.split()[0], "by": "uv" if uv else "pip"})
    return python


def _run(command: Sequence[str], name: str, folder: Path) -> None:
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        last = "\n".join((done.stderr or done.stdout).strip().splitlines()[-8:])
        raise EnvironmentNotMadeError(
            f"the environment of {name} could not be made in {folder}: it needs the network, and a C++ compiler where "
            f"a package has no build for this system. {command[0]} said:\n{last}"
        )


__all__ = ["EnvironmentNotMadeError", "cache_folder", "environment_folder", "environment_python"]
