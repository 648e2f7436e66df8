"""Cells as arguments of verbs: AnnData or paths."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


KEY = "cellglot"


def is_anndata(cells: Any) -> bool:
    """Whether cells are an AnnData, in memory or backed, and not paths."""
    if hasattr(cells, "obs") and hasattr(cells, "var_names"):
        return True
    if not isinstance(cells, str | os.PathLike):
        raise TypeError(f"cells are a path or an AnnData, not {type(cells).__name__}")
    return False


def to_write(adata: Any, copy: bool, files: Mapping[str, Any]) -> Any:
    """Return the AnnData that results are written to: itself, or a copy."""
    given = [name for name, path in files.items() if path is not None]
    if given:
        raise ValueError(
            f"{', '.join(given)} is for cells of a file: results of an AnnData are written to its obs, obsm and uns; "
            "save them by adata.write_h5ad"
        )
    if not copy:
        return adata
    return adata.to_memory() if adata.isbacked else adata.copy()


def output_of(cells: Any, output: str | os.PathLike | None, copy: bool) -> Path:
    """Return the file for the results of a file of cells."""
    if output is None:
        raise ValueError(f"{cells} is a file: name one for the result by output")
    if copy:
        raise ValueError(f"copy is for an AnnData, {cells} is a file: the result is written to {output}")
    return as_path(output)


def existing(cells: str | os.PathLike) -> Path:
    """Return the path of a file of cells. Refuse one that does not exist, before large libraries are imported."""
    path = as_path(cells)
    if not path.exists():
        from cellglot.tokenization.reading.errors import CellFileError
        from cellglot.tokenization.reading.refusals import why_missing

        raise CellFileError(why_missing(path))
    return path


def as_path(given: str | os.PathLike) -> Path:
    """Return a path, with ``~`` replaced by the home folder."""
    return Path(given).expanduser()


def or_none(given: str | os.PathLike | None) -> Path | None:
    """Return a path as `as_path` does, None where none is given."""
    return None if given is None else as_path(given)


__all__ = ["KEY", "as_path", "existing", "is_anndata", "or_none", "output_of", "to_write"]
