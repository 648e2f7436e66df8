"""Files of embeddings that `cellglot query` reads: damaged ones are named, cells without embedding are no damage."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cellglot.evaluation.search.file import _stored
from cellglot.tokenization import CellFileError


SIZE = 4


class Model:
    class config:  # noqa: N801
        projection_dim = SIZE


def vectors(n=70):
    rows = np.random.default_rng(0).normal(size=(n, SIZE)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def write_parquet(path, rows):
    flat = pa.array(np.asarray(rows).reshape(-1))
    table = {
        "cell_id": [f"c{i}" for i in range(len(rows))],
        "embedding": pa.FixedSizeListArray.from_arrays(flat, SIZE),
    }
    pq.write_table(pa.table(table), path)


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_cells_without_embedding_may_come_first(tmp_path, suffix):
    rows, path = vectors(), tmp_path / f"e{suffix}"
    rows[:66] = np.nan
    np.save(path, rows) if suffix == ".npy" else write_parquet(path, rows)
    np.testing.assert_array_equal(_stored(Model, path).embedding, rows)


def damaged(path, kind):
    if kind == "missing":
        return
    if kind == "null":
        table = pa.table(
            {"cell_id": ["a", "b"], "embedding": pa.array([[1.0, 0, 0, 0], None], pa.list_(pa.float32(), 4))}
        )
        pq.write_table(table, path)
    elif kind == "ragged":
        pq.write_table(pa.table({"cell_id": ["a", "b"], "embedding": [[1.0, 0.0], [1.0]]}), path)
    elif kind == "no column":
        pq.write_table(pa.table({"cell_id": ["a"]}), path)
    elif kind == "text":
        np.save(path, np.array([["a"] * SIZE]))
    elif kind == "objects":
        np.save(path, np.array([[None] * SIZE]), allow_pickle=True)
    elif kind == "one dimension":
        np.save(path, np.ones(SIZE, np.float32))
    elif kind == "cut":
        np.save(path, vectors()) if path.suffix == ".npy" else write_parquet(path, vectors())
        path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [
        *((suffix, kind) for suffix in (".npy", ".parquet") for kind in ("missing", "cut")),
        *((".parquet", kind) for kind in ("null", "ragged", "no column")),
        *((".npy", kind) for kind in ("text", "objects", "one dimension")),
    ],
)
def test_damaged_embeddings_are_named(tmp_path, suffix, kind):
    path = tmp_path / f"e{suffix}"
    damaged(path, kind)
    with pytest.raises((CellFileError, ValueError), match=rf"e\{suffix}"):
        _stored(Model, path)
