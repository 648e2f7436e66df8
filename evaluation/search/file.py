"""Search for the cells that a sentence describes best, in a file or an AnnData."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from anndata import AnnData

from cellglot.evaluation.embedding import embed_cells
from cellglot.evaluation.endings import check_annotated, check_table
from cellglot.evaluation.output import (
    KEY,
    add_results,
    check_cells,
    write_annotated,
    write_table,
)
from cellglot.evaluation.search.retrieval import nearest
from cellglot.evaluation.text_model import as_processor, embed_texts, fingerprint
from cellglot.modeling.any_model import load_cell_text_model
from cellglot.outputs import check_files
from cellglot.tokenization.gene_report import GeneReport
from cellglot.tokenization.reading.cells import read_cells
from cellglot.tokenization.reading.errors import CellFileError, reading
from cellglot.tokenization.reading.formats import cell_table
from cellglot.tokenization.reading.groups import Hdf5Group
from cellglot.tokenization.reading.obs import schema_names
from cellglot.tokenization.reading.refusals import why_missing


OF_ANOTHER_MODEL = "of another model"
COLUMN = f"{KEY}_query"
SAMPLE = 64
SHOWN = ("cell_type", "tissue", "disease", "donor_id", "dataset_id")


def query_file(
    model: str | Path,
    cells: Path,
    text: str,
    *,
    top: int = 10,
    output: Path | None = None,
    table: Path | None = None,
    layer: str | None = None,
    species: str | None = None,
    dtype: str | None = None,
    loaded: tuple[Any, Any] | None = None,
    overwrite: bool = False,
    **options: Any,
) -> str:
    """Find the cells of a file that a sentence describes best, by cosine.

    Parameters
    ----------
    model
        Folder or repository of a LangCell model with its processor.
    cells
        Embeddings of that model, written by ``cellglot embed`` (``.h5ad``, ``.parquet``, ``.npy``) or ``cellglot
        annotate``; or a file of cells, which are embedded.
    top
        Number of cells in the table.
    output
        ``.h5ad``: the cells with ``cellglot_query`` (cosine) and ``cellglot_query_rank`` (from 1; 0 for cells without
        embedding) in obs.
    table
        ``.csv``, ``.tsv`` or ``.parquet`` with the best cells.
    layer, species
        Where the counts are, and of which species, as for `read_cells`.
    dtype
        Type of the weights.
    loaded
        The model and its processor, if they are loaded already.
    overwrite
        Replace outputs that exist; inputs are never replaced.
    **options
        As for `cellglot.evaluation.embedding.embed_cells`.

    Returns
    -------
    str
        Table of the best cells, and the written files.

    Raises
    ------
    OutputError
        If an output is an input, or exists without `overwrite`.
    ValueError
        If the text is empty, no cell has an embedding, or the embeddings are not of this model.
    """
    check_table(table)
    check_files([output, table], [cells, model], overwrite=overwrite)
    check_annotated(output)
    if output is not None and cells.suffix in (".npy", ".parquet"):
        raise ValueError(f"{cells} contains only embeddings, no cells to write to {output}: write a table instead")
    network, processor = loaded or load_cell_text_model(model, dtype)
    places = {"layer": layer, "species": species}
    stored = _stored(network, cells)
    given = stored if isinstance(stored, _Embedded) else _computed(network, processor, cells, places, output, options)
    if stored is OF_ANOTHER_MODEL:
        given.notes.append(f"the embeddings in {cells.name} are of another model: its cells are embedded again")
    asked = embed_texts(network, processor, text, device=options.get("device"))
    known = np.flatnonzero(~np.isnan(given.embedding[:, 0]))
    if not len(known):
        raise ValueError(f"no cell of {cells} has an embedding")
    found = nearest(asked, given.embedding[known], top)
    rows = known[found.numbers[0]]
    best = pd.DataFrame({"cell_id": given.metadata.index[rows].astype(str), "cosine": found.scores[0]})
    best.index = pd.RangeIndex(1, len(best) + 1, name="rank")
    for column, have in schema_names(list(given.metadata.columns)).items():
        if column in SHOWN:
            best[column] = given.metadata[have].to_numpy()[rows]
    lines = [*given.notes, best.to_string(float_format="{:.4f}".format, index_names=False)]
    if table is not None:
        write_table(best, table)
        lines.append(str(table))
    if output is not None:
        _write(given, _columns(given.embedding @ asked[0], cells), text, cells, output, places)
        lines.append(str(output))
    return "\n".join(lines)


@dataclass
class _Embedded:
    """Cell embeddings with names and metadata of the cells.

    Parameters
    ----------
    embedding
        Shape (cells, size); NaN for cells without known genes.
    notes
        Their source.
    stored
        Whether they were read from the file.
    """

    embedding: np.ndarray
    metadata: pd.DataFrame
    notes: list[str]
    stored: bool


def _stored(model: Any, path: Path) -> _Embedded | str | None:
    """Read the embeddings of a file, None without embeddings; those of another model are not read."""
    size = model.config.projection_dim
    if path.suffix in (".npy", ".parquet"):
        with reading(path):
            embedding, metadata = _vectors(path)
    elif path.suffix == ".h5ad" and path.exists() and h5py.is_hdf5(path):
        with reading(path), h5py.File(path, "r") as file:
            return _stored_anndata(model, Hdf5Group(file), size)
    else:
        return None
    if embedding.dtype.kind != "f" or embedding.shape[1:] != (size,) or not _normalised(embedding[:SAMPLE]):
        raise ValueError(
            f"{path} has embeddings of shape {embedding.shape}, but this model's are normalised and of size {size}: "
            "write them with cellglot embed and this model"
        )
    return _Embedded(embedding, metadata, [f"{len(embedding):,} embeddings of {path.name}"], True)


def _vectors(path: Path) -> tuple[np.ndarray, pd.DataFrame]:
    """Read vectors and names of cells (numbers if the file has no names)."""
    if not path.exists():
        raise CellFileError(why_missing(path))
    if path.suffix == ".npy":
        embedding = np.load(path, mmap_mode="r", allow_pickle=False)
        return embedding, pd.DataFrame(index=pd.RangeIndex(len(embedding)))
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=["cell_id", "embedding"]).combine_chunks()
    vectors = table["embedding"].combine_chunks()
    if vectors.null_count:
        raise CellFileError(
            f"{vectors.null_count:,} cells have no embedding: write the file again with cellglot embed"
        )
    names = pd.Index(table["cell_id"].to_pylist())
    return vectors.flatten().to_numpy().reshape(len(table), -1), pd.DataFrame(index=names)


def _stored_anndata(model: Any, file: Hdf5Group, size: int) -> _Embedded | str | None:
    place = f"obsm/X_{KEY}"
    own = file.get(f"uns/{KEY}/model_fingerprint")
    if place in file and own is not None and own.asstr()[()] == fingerprint(model):
        embedding, where = file[place][:], place
    else:
        matrix: Any = file.get("X")
        dense = isinstance(matrix, h5py.Dataset) and matrix.shape[1:] == (size,)
        if not dense or not _normalised(matrix[:SAMPLE]):
            return None if own is None else OF_ANOTHER_MODEL
        embedding, where = matrix[:], "X"
    beside = file["uns"] if hasattr(file.get("uns"), "keys") else {}
    table = cell_table(file["obs"], len(embedding), beside)
    shown = {name: have for name, have in schema_names(table.names).items() if name in SHOWN}
    columns = {have: table.column(have, 0, len(embedding)) for have in shown.values()}
    metadata = pd.DataFrame(columns, index=pd.Index(table.index(0, len(embedding))))
    return _Embedded(embedding, metadata, [f"{len(embedding):,} embeddings in {where}"], True)


def _normalised(rows: np.ndarray) -> bool:
    """Return whether vectors have length 1, except for cells without known genes, which are NaN."""
    lengths = np.linalg.norm(np.asarray(rows, dtype=np.float64), axis=1)
    return bool(len(rows)) and bool(np.allclose(lengths[~np.isnan(lengths)], 1, atol=1e-2))


def _computed(
    model: Any,
    processor: Any,
    path: Path,
    places: Mapping[str, Any],
    output: Path | None,
    options: dict[str, Any],
) -> _Embedded:
    report = GeneReport()
    with read_cells(path, **places) as opened:
        if output is not None:
            check_cells(opened)
        embedding = embed_cells(model, as_processor(processor, model).tokenizer, opened, report=report, **options)
        return _Embedded(embedding, opened.metadata(), [opened.summary(), report.summary()], False)


def query_anndata(
    model: str | Path,
    adata: AnnData,
    text: str,
    *,
    layer: str | None = None,
    species: str | None = None,
    dtype: str | None = None,
    loaded: tuple[Any, Any] | None = None,
    **options: Any,
) -> None:
    """Score the cells of an AnnData by a sentence in place, with the columns that `query_file` writes to a file.

    Embeddings of this model in ``adata.obsm["X_cellglot"]`` are used. Other parameters as for `query_file`.
    """
    network, processor = loaded or load_cell_text_model(model, dtype)
    facts = adata.uns.get(KEY, {})
    if f"X_{KEY}" in adata.obsm and facts.get("model_fingerprint") == fingerprint(network):
        embedding = np.asarray(adata.obsm[f"X_{KEY}"])
    else:
        with read_cells(adata, layer=layer, species=species) as opened:
            embedding = embed_cells(network, as_processor(processor, network).tokenizer, opened, **options)
    asked = embed_texts(network, processor, text, device=options.get("device"))
    add_results(adata, obs=_columns(embedding @ asked[0], "the AnnData"), uns={COLUMN: text})


def _columns(cosines: np.ndarray, source: str | Path) -> dict[str, np.ndarray]:
    """Return the columns of obs: cosines, and ranks from 1; 0 for cells without embedding."""
    known = np.flatnonzero(~np.isnan(cosines))
    if not len(known):
        raise ValueError(f"no cell of {source} has an embedding")
    rank = np.zeros(len(cosines), dtype=np.int64)
    rank[known[np.argsort(-cosines[known], kind="stable")]] = np.arange(1, len(known) + 1)
    return {COLUMN: cosines.astype(np.float32), f"{COLUMN}_rank": rank}


def _write(
    given: _Embedded,
    columns: dict[str, Any],
    text: str,
    path: Path,
    output: Path,
    places: Mapping[str, Any],
) -> None:
    with ExitStack() as stack:
        opened = None if given.stored else stack.enter_context(read_cells(path, **places))
        write_annotated(opened, path, output, obs=columns, uns={COLUMN: text})


__all__ = ["query_anndata", "query_file"]
