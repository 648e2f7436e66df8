"""Making of a reference: its cells are embedded once, and written to a folder with their columns of obs."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from cellglot.evaluation.embedding import stream_batches
from cellglot.evaluation.mapping import neighbours
from cellglot.evaluation.mapping.coordinates import EMBEDDING, joined, parts_of, score_weight
from cellglot.evaluation.mapping.neighbours import NeighbourGraph, exact_neighbours, without_self
from cellglot.evaluation.mapping.reference import (
    CELLS_FILE,
    EMBEDDINGS_FILE,
    FORMAT_VERSION,
    GRAPH_FILE,
    OWN_DISTANCES_FILE,
    RECORD_FILE,
    ModelIdentity,
)
from cellglot.inputs import digest_of
from cellglot.modeling.collection import shipped_models
from cellglot.modeling.loaded_model import LoadedModel
from cellglot.outputs import OutputFolder, atomic, write_json
from cellglot.outputs.writing import temporary_name
from cellglot.tokenization.corpus.check import vocabulary_digest
from cellglot.tokenization.gene_report import GeneReport
from cellglot.tokenization.reading.cells import Cells, read_cells
from cellglot.tokenization.reading.labels import value_text


OWN_CELLS = 2_000  # whose distances to their neighbours say what is usual in the reference
OWN_NEIGHBOURS = 50
ROWS_AT_ONCE = 1 << 14


def index_cells(
    model: LoadedModel,
    cells: Any,
    output: Path,
    *,
    columns: Sequence[str] | None = None,
    layer: str | None = None,
    species: str | None = None,
    overwrite: bool = False,
    **options: Any,
) -> str:
    """Embed the cells of a reference, and write a folder to which others are mapped.

    Embeddings are divided by their length and kept as float16, ``embeddings.npy``; by a classifier with the
    probabilities of its classes (`cellglot.evaluation.mapping.coordinates`). Neighbours are those of the largest
    cosine, because the length of an embedding follows the depth of a cell more than its type. Above 100,000 cells a
    graph of neighbours is written, too, if it finds 98% of them.

    Parameters
    ----------
    cells
        File of cells, or an AnnData.
    output
        The folder.
    columns
        Columns of obs to keep; by default all.
    overwrite
        Replace a reference that is there.
    layer, species
        As for `read_cells`.
    **options
        As for `cellglot.evaluation.embedding.embed_cells`.

    Returns
    -------
    str
        What was read and written.

    Raises
    ------
    ValueError
        If a column does not exist, or no cell expresses a gene of the model.
    OutputError
        If the folder must not be written to.
    """
    source = cells if isinstance(cells, str | os.PathLike) else getattr(cells, "filename", None)
    folder = OutputFolder(output, "index", [source, model.name])
    with read_cells(cells, layer=layer, species=species) as opened, folder:
        folder.refuse_earlier(overwrite)
        table, kinds = _columns(opened, columns)
        folder.clear()
        report, weight = GeneReport(), score_weight(model)
        with atomic(output / EMBEDDINGS_FILE) as temporary:
            known = _embed(model, opened, temporary, weight, report=report, **options)
        cell_names = _write_cells(table, opened, known, output / CELLS_FILE)
        vectors = np.load(output / EMBEDDINGS_FILE, mmap_mode="r", allow_pickle=False)
        graph, recall = NeighbourGraph.build(vectors) if len(vectors) > neighbours.LARGE else (None, 0.0)
        facts = None
        if graph is not None and recall >= neighbours.RECALL:
            with atomic(output / GRAPH_FILE) as temporary:
                graph.save(temporary)
            facts = graph.facts() | {"recall": round(recall, 4)}
        with atomic(output / OWN_DISTANCES_FILE) as temporary:
            _save(temporary, _own_distances(graph if facts else None, vectors))
        record = {
            "format_version": FORMAT_VERSION,
            "cellglot": _version(),
            "model": vars(identify(model, weight)),
            "metric": "cosine",
            "score_weight": weight,
            "cells": len(vectors),
            "cells_left_out": int((~known).sum()),
            "size": vectors.shape[1],
            "dtype": str(vectors.dtype),
            "source": opened.name,
            "columns": kinds,
            "cell_names": cell_names,
            "graph": facts,
            "files": {
                name: digest_of(output / name)
                for name in (EMBEDDINGS_FILE, CELLS_FILE, OWN_DISTANCES_FILE, *([GRAPH_FILE] if facts else []))
            },
        }
        write_json(output / RECORD_FILE, record)
        folder.finish()
        return _summary(opened, report, record, output)


def identify(model: LoadedModel, weight: float = 0.0) -> ModelIdentity:
    """Return name and checksums of a loaded model: those of its encoder of cells, and of its vocabulary.

    With a `weight` of the probabilities the weights are those of the whole model.
    """
    digest = hashlib.blake2b(digest_size=16)
    digest.update(str(getattr(model.encoder.config, "pooling", "")).encode())
    for name, values in sorted((model.network if weight else model.encoder).state_dict().items()):
        array = values.detach().cpu().contiguous().reshape(-1)
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(memoryview(array.view(torch.uint8).numpy()))
    shipped = {str(folder): name for name, folder in shipped_models().items()}
    local = os.path.abspath(model.name) if os.path.isdir(model.name) else model.name
    vocabulary = vocabulary_digest(model.tokenizer.vocabulary)
    return ModelIdentity(shipped.get(local, local), digest.hexdigest(), vocabulary)


def _embed(model: LoadedModel, opened: Cells, path: Path, weight: float, **options: Any) -> np.ndarray:
    """Write the coordinates of the cells with a gene of the model, batch by batch; return which cells these are."""
    known = np.zeros(len(opened), dtype=bool)
    vectors: np.ndarray | None = None
    network, compute = parts_of(model, weight)
    for _, numbers, found in stream_batches(network, model.tokenizer, opened, compute, **options):
        values = joined(found, weight)
        if vectors is None:
            vectors = _new(path, len(opened), values.shape[1])
        known[numbers] = ~np.isnan(found[EMBEDDING][:, 0])
        vectors[numbers] = values
    if vectors is None or not known.any():
        raise ValueError(f"none of {len(opened):,} cells of {opened.name} expresses a gene of {model.name}")
    if not known.all():
        _keep_rows(vectors, np.flatnonzero(known), path)
    return known


def _new(path: Path, rows: int, size: int) -> np.ndarray:
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(rows, size))


def _keep_rows(vectors: np.ndarray, rows: np.ndarray, path: Path) -> None:
    """Write some rows of a file of vectors in its place."""
    temporary = temporary_name(path)
    try:
        kept = _new(temporary, len(rows), vectors.shape[1])
        for start in range(0, len(rows), ROWS_AT_ONCE):
            kept[start : start + ROWS_AT_ONCE] = vectors[rows[start : start + ROWS_AT_ONCE]]
        del kept
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _columns(opened: Cells, names: Sequence[str] | None) -> tuple[pd.DataFrame, dict[str, str]]:
    """Return the columns to keep, labels as texts, and whether each has labels or numbers."""
    table = opened.table(every=True)
    if names is not None:
        if missing := [name for name in names if name not in table.columns]:
            raise ValueError(
                f"{opened.name}: no column {', '.join(map(repr, missing))} in obs; it has "
                f"{', '.join(table.columns) or 'none'}"
            )
        table = table[list(dict.fromkeys(names))]
    kinds, kept = {}, {}
    for name in table.columns:
        column = table[name]
        if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
            kinds[name], kept[name] = "numbers", column
        else:
            kinds[name], kept[name] = "labels", _texts(column)
    return pd.DataFrame(kept, index=table.index), kinds


def _texts(column: pd.Series) -> pd.Series:
    codes, different = pd.factorize(column)
    texts = np.array([*map(value_text, different), None], dtype=object)
    return pd.Series(texts[codes], index=column.index, dtype=object)


def _write_cells(table: pd.DataFrame, opened: Cells, known: np.ndarray, path: Path) -> str:
    """Write the columns as Parquet, with a column of the cells' names; return its name."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    name = "cell_id"
    while name in table.columns:
        name = f"{name}_"
    arrays = {name: pa.array([str(n) for n in opened.names()[known]], pa.string())}
    for column in table.columns:
        values = table[column].array[known]
        arrays[str(column)] = pa.array(values, pa.string() if values.dtype == object else None, from_pandas=True)
    with atomic(path) as temporary:
        pq.write_table(pa.table(arrays), temporary)
    return name


def _own_distances(graph: NeighbourGraph | None, vectors: np.ndarray) -> np.ndarray:
    """Return the distances of some cells to their nearest other cells, float32; none for a single cell."""
    if len(vectors) < 2:
        return np.zeros((0, 1), dtype=np.float32)
    rows = np.sort(np.random.default_rng(0).choice(len(vectors), min(OWN_CELLS, len(vectors)), replace=False))
    asked, k = np.asarray(vectors[rows], dtype=np.float32), OWN_NEIGHBOURS + 1
    found = exact_neighbours(asked, vectors, k) if graph is None else graph.search(asked, k)
    return without_self(*found, rows)[1]


def _save(path: Path, array: np.ndarray) -> None:
    with open(path, "wb") as file:
        np.save(file, array, allow_pickle=False)


def _summary(opened: Cells, report: GeneReport, record: dict[str, Any], output: Path) -> str:
    lines = [opened.summary(), report.summary()]
    if record["cells_left_out"]:
        lines.append(f"{record['cells_left_out']:,} cells express no gene of the model: they are left out")
    graph = record["graph"]
    if graph:
        lines.append(f"a graph of neighbours finds {graph['recall']:.1%} of the nearest cells")
    elif record["cells"] > neighbours.LARGE:
        lines.append("a graph of neighbours would find too few of the nearest cells: the search is exact")
    lines.append(f"columns: {', '.join(record['columns']) or 'none'}")
    lines.append(f"{output}: {record['cells']:,} cells x {record['size']:,}, made by {record['model']['name']}")
    return "\n".join(lines)


def _version() -> str:
    from cellglot import __version__

    return __version__


__all__ = ["identify", "index_cells"]
