"""The folder of a reference: embeddings, columns of obs, and what they were made by."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cellglot.evaluation.mapping.neighbours import NeighbourGraph, exact_neighbours
from cellglot.inputs import InputError, path_inside, read_json, reading
from cellglot.inputs.file_digests import digest_of
from cellglot.modeling.model_names import is_repository_name
from cellglot.tokenization.reading.labels import label_text


RECORD_FILE = "reference.json"
EMBEDDINGS_FILE = "embeddings.npy"
CELLS_FILE = "cells.parquet"
OWN_DISTANCES_FILE = "own_distances.npy"
GRAPH_FILE = "neighbours.usearch"
FORMAT_VERSION = 1
AGAIN = "make the index again by cellglot index"


@dataclass(frozen=True)
class ModelIdentity:
    """What an index was made by.

    Parameters
    ----------
    name
        Folder, name in the collection, or repository.
    weights
        Checksum of the weights that embed cells.
    vocabulary
        Checksum of the genes, their token ids and their statistics.
    """

    name: str
    weights: str
    vocabulary: str


class Reference:
    """Cells of a reference, to which others are mapped. Made by `cellglot.index`, opened by `Reference.open`.

    Parameters
    ----------
    folder
        The folder.
    name
        Folder or repository, as it was given.
    record
        Content of its ``reference.json``.

    Attributes
    ----------
    model : ModelIdentity
        What it was made by.
    columns : dict
        Column of obs -> ``"labels"`` or ``"numbers"``.
    score_weight : float
        Weight of the classes' probabilities in the coordinates; 0 for embeddings alone, as in earlier references.
    """

    def __init__(self, folder: Path, name: str, record: Mapping[str, Any]):
        self.folder, self.name, self.record = folder, name, record
        self.model = ModelIdentity(**record["model"])
        self.columns: dict[str, str] = dict(record["columns"])
        self.n_cells, self.size = int(record["cells"]), int(record["size"])
        self.score_weight = float(record.get("score_weight", 0.0))

    def __len__(self) -> int:
        return self.n_cells

    def __str__(self) -> str:
        return f"{self.name}: {self.n_cells:,} cells, embedded by {self.model.name}"

    @classmethod
    def open(cls, name: str | os.PathLike) -> "Reference":
        """Open a reference, and check that its files are those that were written.

        Parameters
        ----------
        name
            Folder, or ``owner/name`` of a data set on the Hub.

        Raises
        ------
        ValueError
            If there is no such reference, or it is damaged.
        """
        folder = find_reference(name)
        path = folder / RECORD_FILE
        record = read_json(path)
        _check_record(record, path)
        for file, digest in record["files"].items():
            place = path_inside(folder, file, path)
            if not place.is_file():
                raise InputError(f"{folder} has no {file}: copy the whole folder again, or {AGAIN}")
            with reading(place, AGAIN):
                found = digest_of(place, progress=True)
            if found != digest:
                raise InputError(f"{place} is damaged or was changed: its checksum is not the recorded one; {AGAIN}")
        return cls(folder, os.fspath(name), record)

    @cached_property
    def vectors(self) -> np.ndarray:
        """Embeddings, rows of length 1, mapped from their file; shape (cells, size)."""
        return _array(self.folder / EMBEDDINGS_FILE, (self.n_cells, self.size))

    @cached_property
    def own_distances(self) -> np.ndarray:
        """Distances of some cells to their nearest other cells, the nearest first; shape (some, neighbours)."""
        return np.asarray(_array(self.folder / OWN_DISTANCES_FILE, (None, None)))

    @cached_property
    def graph(self) -> NeighbourGraph | None:
        """The graph of a large reference, None for exact search."""
        facts, path = self.record.get("graph"), self.folder / GRAPH_FILE
        if facts is None:
            return None
        with reading(path, AGAIN):
            return NeighbourGraph.load(path, self.vectors, facts)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Find the nearest cells by cosine.

        Parameters
        ----------
        queries
            Rows of length 1, shape (queries, size).
        k
            Cells for each query; all of the reference if it has fewer.

        Returns
        -------
        tuple
            Numbers of the reference's cells, int64, and distances (1 - cosine), float32; shape (queries, k), the
            nearest first. Exact, but for references with a graph.
        """
        if self.graph is not None:
            return self.graph.search(queries, k)
        return exact_neighbours(queries, self.vectors, k)

    def check_columns(self, names: Sequence[str]) -> None:
        """Refuse columns that the reference does not have; the message lists those that it has."""
        if missing := [name for name in names if name not in self.columns]:
            raise ValueError(
                f"{self.name} has no column {', '.join(map(repr, missing))}; it has "
                f"{', '.join(self.columns) or 'no columns'}"
            )

    def labels(self, column: str) -> tuple[np.ndarray, list[str]]:
        """Read a column of labels: number of each cell's label, -1 without one, shape (cells,); and the labels."""
        coded = self._column(column).dictionary_encode()
        with reading(self.folder / CELLS_FILE, AGAIN):
            codes = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        texts = [label_text(text) for text in coded.dictionary.to_pylist()]
        kept = pd.Index([text for text in texts if text is not None]).unique()
        numbers = np.append(kept.get_indexer(pd.Index(texts, dtype=object)), -1) if texts else np.array([-1])
        return numbers[codes], [str(text) for text in kept]

    def numbers(self, column: str) -> np.ndarray:
        """Read a column of numbers, NaN where they are missing; float64, shape (cells,)."""
        values = self._column(column).cast("float64").to_numpy(zero_copy_only=False)
        return np.asarray(values, dtype=np.float64)

    def names(self) -> np.ndarray:
        """Read the names of the cells, object, shape (cells,)."""
        return self._column(str(self.record["cell_names"])).to_numpy(zero_copy_only=False)

    def _column(self, name: str) -> Any:
        import pyarrow.parquet as pq

        path = self.folder / CELLS_FILE
        with reading(path, AGAIN):
            column = pq.read_table(path, columns=[name])[name].combine_chunks()
        if len(column) != self.n_cells:
            raise InputError(f"{path} has {len(column):,} cells, not {self.n_cells:,}: {AGAIN}")
        return column

    def check_model(self, other: ModelIdentity) -> None:
        """Refuse a model that is not the one of the index.

        Raises
        ------
        ValueError
            If weights or vocabulary differ; names both models.
        """
        parts = [part for part in ("weights", "vocabulary") if getattr(self.model, part) != getattr(other, part)]
        if parts:
            told = "; ".join(f"{part}: {getattr(self.model, part)} and {getattr(other, part)}" for part in parts)
            raise ValueError(
                f"{self.name} was made by the model {self.model.name}, and {other.name} is another one ({told}): "
                f"map with {self.model.name} (--model), or index the reference again with {other.name}"
            )


def find_reference(name: str | os.PathLike) -> Path:
    """Return the folder of a reference; a data set of the Hub is downloaded.

    Raises
    ------
    ValueError
        If there is no such folder or data set.
    """
    text = os.fspath(name)
    folder = Path(text).expanduser()
    if folder.is_dir():
        if not (folder / RECORD_FILE).is_file():
            raise ValueError(f"{text} is not a reference: it has no {RECORD_FILE}; make one by cellglot index")
        return folder
    if folder.exists() or not is_repository_name(text):
        what = "is a file, not the folder of a reference" if folder.exists() else "is not a folder"
        raise ValueError(
            f"{text} {what}, and not a data set of the Hub (owner/name): make a reference by cellglot index"
        )
    from huggingface_hub import snapshot_download

    try:
        found = Path(snapshot_download(text, repo_type="dataset"))
    except (OSError, ValueError) as error:
        first = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{text} is not a folder, and not a data set of the Hub that can be reached: {first}"
        ) from error
    if not (found / RECORD_FILE).is_file():
        raise ValueError(f"{text} is a data set of the Hub, but not a reference: it has no {RECORD_FILE}")
    return found


def _check_record(record: Mapping[str, Any], path: Path) -> None:
    """Refuse a record of another format, or one that lacks something."""
    if record.get("format_version") != FORMAT_VERSION or record.get("metric") != "cosine":
        raise InputError(f"{path} is damaged or of another version of cellglot: {AGAIN}")
    model, files = record.get("model"), record.get("files")
    whole = (
        isinstance(model, dict)
        and set(model) == {"name", "weights", "vocabulary"}
        and all(isinstance(value, str) for value in model.values())
        and isinstance(record.get("columns"), dict)
        and all(kind in ("labels", "numbers") for kind in record["columns"].values())
        and isinstance(record.get("cell_names"), str)
        and isinstance(record.get("score_weight", 0.0), float | int)
        and isinstance(files, dict)
        and {EMBEDDINGS_FILE, CELLS_FILE, OWN_DISTANCES_FILE} <= set(files)
        and all(isinstance(record.get(name), int) and record[name] > 0 for name in ("cells", "size"))
        and (record.get("graph") is None or (isinstance(record["graph"], dict) and GRAPH_FILE in files))
    )
    if not whole:
        raise InputError(f"{path} is damaged: something is missing or of a wrong type; {AGAIN}")


def _array(path: Path, shape: tuple[int | None, int | None]) -> np.ndarray:
    with reading(path, AGAIN):
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    fits = array.ndim == 2 and all(want in (None, have) for want, have in zip(shape, array.shape, strict=True))
    if not fits or array.dtype not in (np.float16, np.float32):
        raise InputError(f"{path} has {array.dtype} of shape {array.shape}, not what {RECORD_FILE} says: {AGAIN}")
    return array


__all__ = [
    "CELLS_FILE",
    "EMBEDDINGS_FILE",
    "FORMAT_VERSION",
    "GRAPH_FILE",
    "OWN_DISTANCES_FILE",
    "RECORD_FILE",
    "ModelIdentity",
    "Reference",
    "find_reference",
]
