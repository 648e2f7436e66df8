"""A copy of the installed package without the models of the collection, for a folder that runs by itself."""

import importlib.metadata
import importlib.util
import shutil
from pathlib import Path


ROOMS = ("", "evaluation", "inputs", "model_cards", "modeling", "tokenization", "training")


def copy_package(target: Path) -> None:
    """Copy the package ``cellglot`` into a folder, as it is installed here.

    An installation from a working tree has its rooms in several folders; in the copy they are one.

    Parameters
    ----------
    target
        The folder that will hold ``cellglot/``.
    """
    for room in ROOMS:
        spec = importlib.util.find_spec(f"cellglot.{room}" if room else "cellglot")
        assert spec is not None and spec.submodule_search_locations is not None
        source = Path(next(iter(spec.submodule_search_locations)))
        shutil.copytree(source, target / "cellglot" / room, ignore=_unwanted, dirs_exist_ok=True)


def _unwanted(folder: str, names: list[str]) -> set[str]:
    models = {name for name in names if Path(folder, name, "collection.json").is_file()}
    return models | {name for name in names if name == "__pycache__" or name.endswith(".pyc")}


def requirements(without: tuple[str, ...] = ()) -> list[str]:
    """Return what the package needs, as lines of a ``requirements.txt``, without extras.

    Parameters
    ----------
    without
        Names of packages to leave out.
    """
    given = importlib.metadata.requires("cellglot") or []
    plain = [line for line in given if "extra ==" not in line]
    return [line for line in plain if not line.startswith(without)] if without else plain


__all__ = ["copy_package", "requirements"]
