"""Sources of a corpus: what a folder of files, a collection of zarr or a name of Census stands for."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from cellglot.inputs.addresses import as_source, is_census
from cellglot.tokenization.reading.errors import CellFileError, reading
from cellglot.tokenization.reading.groups import open_zarr
from cellglot.tokenization.reading.soma_experiment import dated_census, is_soma


logger = logging.getLogger(__name__)

ZARR_MARKS = (".zgroup", ".zattrs", "zarr.json")
COLLECTION = "dataset_"  # begins the names of the parts of a collection, as annbatch writes it
MOST_ENTRIES = 10_000_000  # in folders that are searched
_LISTED = 5


def find_sources(given: Sequence[str | os.PathLike]) -> list[Path | str]:
    """Return the files, stores and addresses that sources of a corpus stand for, in order.

    Parameters
    ----------
    given
        Files of cells, SOMA experiments and ``census:VERSION`` stand for themselves. A store of zarr that contains
        several AnnData, such as a collection of annbatch, stands for these, in the order of their numbers. Any other
        folder stands for the ``.h5ad`` files, stores of zarr and SOMA experiments in it and in its folders, in the
        order of their paths.

    Raises
    ------
    CellFileError
        If a folder contains none.
    """
    found: list[Path | str] = []
    for one in given:
        source = as_source(one)
        if isinstance(source, str):
            found.append(dated_census(source) if is_census(source) else source)
        else:
            found += _in_folder(source)
    return found


def _in_folder(path: Path) -> list[Path]:
    if not path.is_dir() or is_soma(path) or any(path.glob("*matrix.mtx*")):
        return [path]
    if _is_zarr(path):
        return _in_store(path)
    inside, others = _searched(path)
    if not inside and not any(path.iterdir()):
        raise CellFileError(f"{path} is an empty folder")
    if not inside and any(path.glob("*/*matrix.mtx*")):
        return [path]  # refused when it is opened, with the names of its folders
    if not inside:
        listed = ", ".join(others[:_LISTED]) or "folders only"
        raise CellFileError(f"{path} contains no .h5ad file, store of zarr or SOMA experiment: found {listed}")
    if others:
        more = "" if len(others) <= _LISTED else f" and {len(others) - _LISTED:,} more"
        logger.warning("%s: not read, because only .h5ad, zarr and SOMA are: %s%s", path,
                       ", ".join(others[:_LISTED]), more)  # fmt: skip
    return inside


def _is_zarr(path: Path) -> bool:
    return any((path / mark).exists() for mark in ZARR_MARKS)


def _in_store(path: Path) -> list[Path]:
    """Return the AnnData in a store of zarr, or the store if it is one."""
    with reading(path):
        group = open_zarr(path)
        if "obs" in group or "var" in group:
            return [path]
        names = [name for name in group if (path / name).is_dir() and _is_zarr(path / name)]
        parts = [name for name in names if hasattr(group[name], "keys") and "obs" in group[name]]
    if not parts:
        return [path]  # refused when it is opened
    numbers = {number for number, _ in map(_by_number, parts) if number >= 0}
    missing = sorted(set(range(max(numbers, default=-1) + 1)) - numbers)
    if missing:
        raise CellFileError(
            f"{path} has {COLLECTION}{max(numbers)} but no {COLLECTION}{missing[0]} with cells: the copy is "
            "incomplete, copy the collection again"
        )
    return [path / name for name in sorted(parts, key=_by_number)]


def _by_number(name: str) -> tuple[int, str]:
    number = name.removeprefix(COLLECTION)
    return (int(number), "") if number != name and number.isdecimal() else (-1, name)


def _searched(path: Path) -> tuple[list[Path], list[str]]:
    """Search a folder and its folders: sources in the order of their paths, and names of other files."""
    found: list[Path] = []
    others: list[str] = []
    seen = 0
    for parent, folders, files in os.walk(path):
        seen += len(folders) + len(files)
        if seen > MOST_ENTRIES:
            raise CellFileError(f"{path} contains more than {MOST_ENTRIES:,} files: name its folders")
        here = Path(parent)
        stores = [name for name in folders if not name.startswith(".") and _is_store(here / name)]
        for name in stores:
            found += _in_store(here / name) if _is_zarr(here / name) else [here / name]
        folders[:] = [name for name in folders if not name.startswith(".") and name not in stores]
        for name in files:
            if name.lower().endswith(".h5ad"):
                found.append(here / name)
            elif not name.startswith("."):
                others.append(str((here / name).relative_to(path)))
    return sorted(found, key=lambda source: _order(source.relative_to(path))), sorted(others)


def _order(path: Path) -> list[tuple[int, str]]:
    return [_by_number(part.removesuffix(".h5ad")) for part in path.parts]


def _is_store(path: Path) -> bool:
    return _is_zarr(path) or is_soma(path)


__all__ = ["find_sources"]
