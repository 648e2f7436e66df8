"""Names of files for results. Their endings are checked before any work."""

import os
from pathlib import Path
from typing import Any


EMBEDDINGS = (".h5ad", ".parquet", ".npy")
TABLES = (".csv", ".tsv", ".parquet")


def check_embeddings(output: Path) -> None:
    """Refuse a name for embeddings with an unknown ending."""
    if output.suffix not in EMBEDDINGS:
        raise ValueError(f"{output}: embeddings are written as {', '.join(EMBEDDINGS)}")


def is_embedding_file(source: Any) -> bool:
    """Whether a name is that of a file of embeddings, by its ending; a folder is a model."""
    return isinstance(source, str | os.PathLike) and Path(source).suffix in EMBEDDINGS and not Path(source).is_dir()


def check_annotated(output: Path | None) -> None:
    """Refuse a name for annotated cells that does not end in ``.h5ad``."""
    if output is not None and output.suffix != ".h5ad":
        raise ValueError(f"{output}: annotated cells are written as .h5ad")


def check_table(path: str | Path | None) -> None:
    """Refuse a name for a table with an unknown ending."""
    if path is not None and Path(path).suffix not in TABLES:
        raise ValueError(f"{path}: tables are written as {', '.join(TABLES)}")


__all__ = ["EMBEDDINGS", "TABLES", "check_annotated", "check_embeddings", "check_table", "is_embedding_file"]
