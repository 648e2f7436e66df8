"""Files of embeddings: written with the names of their cells, read and compared with the cells of a table."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cellglot.evaluation.output import KEY
from cellglot.inputs import InputError, read_json, reading
from cellglot.outputs import atomic, remove_leftovers, write_json


if TYPE_CHECKING:
    from anndata import AnnData


def facts_file(path: Path) -> Path:
    """Return the file beside an ``.npy`` that says which cells its rows are: ``cell_emb.cells.json``."""
    return path.with_suffix(".cells.json")


def beside(path: Path) -> list[Path]:
    """Return the files that are written beside a file of embeddings."""
    return [facts_file(path)] if path.suffix == ".npy" else []


def ids_checksum(names: Iterable[Any]) -> str:
    """Return the SHA-256 of names of cells in their order."""
    return hashlib.sha256("\n".join(str(name) for name in names).encode()).hexdigest()


def write_embeddings(
    path: Path,
    embedding: np.ndarray,
    names: Iterable[Any],
    *,
    facts: dict[str, Any],
    table: pd.DataFrame | None = None,
    matrices: dict[str, np.ndarray] | None = None,
) -> None:
    """Write embeddings as ``.h5ad`` (in X), ``.parquet`` (``cell_id``, ``embedding``) or ``.npy``, atomically.

    Parameters
    ----------
    embedding
        Shape (cells, size).
    names
        Of the cells, in the same order.
    facts
        Plain types: of an ``.h5ad`` in ``uns["cellglot"]``, of a ``.parquet`` in the metadata of its schema, of an
        ``.npy`` beside it, with number and checksum of the names.
    table, matrices
        For an ``.h5ad``: obs, and what is written into obsm.
    """
    remove_leftovers(path)
    names = [str(name) for name in names]
    with atomic(os.path.realpath(path)) as temporary:
        if path.suffix == ".npy":
            np.save(temporary, embedding)
        elif path.suffix == ".parquet":
            _write_parquet(temporary, embedding, names, facts)
        else:
            _anndata(embedding, table, matrices or {}, facts).write_h5ad(temporary)
    if path.suffix == ".npy":
        marks = {"cells": len(names), "size": int(embedding.shape[1]), "cell_ids_sha256": ids_checksum(names)}
        write_json(facts_file(path), facts | marks)


def _write_parquet(path: Path, embedding: np.ndarray, names: list[str], facts: dict[str, Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    vectors = pa.FixedSizeListArray.from_arrays(pa.array(embedding.reshape(-1)), embedding.shape[1])
    table = pa.table({"cell_id": pa.array(names), "embedding": vectors})
    pq.write_table(table.replace_schema_metadata({KEY: json.dumps(facts)}), path)


def _anndata(
    embedding: np.ndarray, table: pd.DataFrame | None, matrices: dict[str, np.ndarray], facts: dict[str, Any]
) -> "AnnData":
    from anndata import AnnData

    result = AnnData(embedding, obs=table)
    result.obsm.update(matrices)
    result.uns[KEY] = {name: value if isinstance(value, str) else json.dumps(value) for name, value in facts.items()}
    return result


def read_embeddings(path: Path, names: Iterable[Any], source: str) -> tuple[np.ndarray, dict[str, Any]]:
    """Read the embeddings of cells from a file, and compare its cells with those of a table.

    Parameters
    ----------
    names
        Of the table's cells, in their order.
    source
        Name of the table, for errors.

    Returns
    -------
    tuple
        Embeddings, float32, shape (cells, size), and facts: ``order`` says how the cells were compared, beside what
        the file says itself.

    Raises
    ------
    InputError
        If the file cannot be read, or its cells are others or in another order than those of the table.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist: name a file of embeddings")
    wanted = [str(name) for name in names]
    with reading(path):
        values, found, facts = _read(path)
    if values.ndim != 2 or values.dtype.kind != "f" or not values.shape[1]:
        raise InputError(f"{path}: an array of {values.dtype} and shape {values.shape}; embeddings are (cells, size)")
    again = "write it again by cellglot embed from the same table"
    if len(values) != len(wanted):
        raise InputError(f"{path}: embeddings of {len(values):,} cells, but {source} has {len(wanted):,}: {again}")
    if isinstance(found, list) and found != wanted:
        first = next(i for i, (one, other) in enumerate(zip(found, wanted, strict=True)) if one != other)
        kind = "the same cells in another order" if sorted(found) == sorted(wanted) else "other cells"
        raise InputError(
            f"{path}: {kind} than {source}: row {first:,} is of {found[first]!r}, there it is {wanted[first]!r}: "
            f"{again}"
        )
    if isinstance(found, str) and found != ids_checksum(wanted):
        raise InputError(
            f"{path}: other cells than {source}, or in another order: the checksum of cell names in "
            f"{facts_file(path).name} is not that of the table: {again}"
        )
    checked = "not compared: no names"
    if found is not None:
        checked = "names of cells" if isinstance(found, list) else "checksum of names of cells"
    return np.array(values, dtype=np.float32), facts | {"order": checked}


def _read(path: Path) -> tuple[np.ndarray, list[str] | str | None, dict[str, Any]]:
    """Read values; names of cells, their checksum, or None; and the facts that the file has."""
    if path.suffix == ".npy":
        values = np.load(path, mmap_mode="r", allow_pickle=False)
        marks = facts_file(path)
        facts = read_json(marks) if marks.exists() else {}
        return values, facts.get("cell_ids_sha256"), facts
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(path, columns=["cell_id", "embedding"]).combine_chunks()
        except pa.ArrowInvalid as error:
            raise InputError(
                f"{path} is not a Parquet file with columns cell_id and embedding, as cellglot embed writes: {error}"
            ) from error
        values = np.stack(table["embedding"].to_numpy(zero_copy_only=False)) if len(table) else np.zeros((0, 0))
        stored = (table.schema.metadata or {}).get(KEY.encode())
        return values, [str(name) for name in table["cell_id"].to_pylist()], json.loads(stored) if stored else {}
    from anndata import read_h5ad

    opened = read_h5ad(path, backed="r")
    try:
        return np.asarray(opened.X[:]), [str(name) for name in opened.obs_names], {}
    finally:
        opened.file.close()


__all__ = ["beside", "facts_file", "ids_checksum", "read_embeddings", "write_embeddings"]
