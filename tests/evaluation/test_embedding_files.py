import json

import numpy as np
import pandas as pd
import pytest

import cellglot
from cellglot.evaluation.embedding_files import facts_file, read_embeddings, write_embeddings
from cellglot.evaluation.endings import is_embedding_file
from cellglot.inputs import InputError


VALUES = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
NAMES = list("vwxyz")


def written(folder, ending, names=NAMES):
    path = folder / f"cell_emb.{ending}"
    write_embeddings(path, VALUES, names, facts={"model": "m"}, table=pd.DataFrame(index=names))
    return path


@pytest.mark.parametrize(("ending", "order"), [("npy", "checksum"), ("parquet", "names"), ("h5ad", "names")])
def test_what_is_written_is_read_and_compared(tmp_path, ending, order):
    path = written(tmp_path, ending)
    values, facts = read_embeddings(path, NAMES, "cells.h5ad")
    assert np.array_equal(values, VALUES) and facts["order"].startswith(order)
    with pytest.raises(InputError, match="order"):
        read_embeddings(path, NAMES[::-1], "cells.h5ad")
    with pytest.raises(InputError, match="other cells than cells.h5ad"):
        read_embeddings(path, [*NAMES[:4], "other"], "cells.h5ad")
    with pytest.raises(InputError, match="embeddings of 5 cells, but cells.h5ad has 4"):
        read_embeddings(path, NAMES[:4], "cells.h5ad")


def test_an_array_of_another_tool_has_no_names_and_says_so(tmp_path):
    np.save(tmp_path / "cell_emb.npy", VALUES.astype(np.float64))
    values, facts = read_embeddings(tmp_path / "cell_emb.npy", NAMES, "cells.h5ad")
    assert values.dtype == np.float32 and facts["order"].startswith("not compared")


@pytest.mark.parametrize("array", [np.zeros(5), np.zeros((5, 0)), np.zeros((5, 2), dtype=int)])
def test_arrays_that_are_no_embeddings_are_refused(tmp_path, array):
    np.save(tmp_path / "cell_emb.npy", array)
    with pytest.raises(InputError, match=r"embeddings are \(cells, size\)"):
        read_embeddings(tmp_path / "cell_emb.npy", NAMES, "cells.h5ad")


def test_files_that_cannot_be_read_are_named(tmp_path):
    for name, content in (("a.npy", b"no"), ("b.parquet", b"no"), ("c.h5ad", b"no")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises((InputError, OSError), match=name):
            read_embeddings(tmp_path / name, NAMES, "cells.h5ad")
    np.save(tmp_path / "objects.npy", np.array([{}, {}], dtype=object), allow_pickle=True)  # never unpickled
    with pytest.raises(InputError, match="objects.npy"):
        read_embeddings(tmp_path / "objects.npy", NAMES, "cells.h5ad")
    with pytest.raises(InputError, match="does not exist"):
        read_embeddings(tmp_path / "missing.npy", NAMES, "cells.h5ad")


def test_a_model_is_no_file_of_embeddings(tmp_path):
    (tmp_path / "model.npy").mkdir()
    assert is_embedding_file("cell_emb.npy") and is_embedding_file(tmp_path / "e.parquet")
    assert not any(map(is_embedding_file, ["blood-exceiver", "owner/name", tmp_path / "model.npy", object()]))


def test_embed_writes_the_rows_that_scfm_bench_reads(model_folders, blood, tmp_path):
    """scFM-Bench drops cells with fewer than 25 genes by scanpy, and takes the rows of cell_emb.npy as the rest."""
    import scanpy

    counts = blood[:40].copy()
    sparse = counts.X.tolil()
    sparse[[4, 9]] = 0
    sparse[4, :24] = 3
    counts.X = sparse.tocsr()
    counts.write_h5ad(tmp_path / "cells.h5ad")
    left = scanpy.pp.filter_cells(counts, min_genes=25, copy=True)
    target = tmp_path / "output" / "blood" / "X" / "model" / "cell_emb.npy"
    target.parent.mkdir(parents=True)
    said = cellglot.embed(
        tmp_path / "cells.h5ad", model_folders["model"], output=target, min_genes=25, device="cpu",
        plot=tmp_path / "cells.html",
    )  # fmt: skip
    assert "left out 2 cells with fewer than 25 expressed genes" in said
    values, facts = read_embeddings(target, left.obs_names, "what scFM-Bench keeps")
    assert values.shape == (38, 48) and facts["min_genes"] == 25
    assert json.loads(facts_file(target).read_text())["cells"] == 38
    with pytest.raises(InputError, match="38 cells, but cells.h5ad has 40"):
        read_embeddings(target, counts.obs_names, "cells.h5ad")
    with pytest.raises(ValueError, match="none of 40 cells expresses 100,000 genes"):
        cellglot.embed(
            tmp_path / "cells.h5ad", model_folders["model"], output=tmp_path / "e.npy", min_genes=100_000, device="cpu"
        )


def test_the_file_beside_an_array_is_not_replaced_unasked(model_folders, blood, tmp_path):
    blood[:20].write_h5ad(tmp_path / "cells.h5ad")
    mine = tmp_path / "e.cells.json"
    mine.write_text("mine")
    with pytest.raises(ValueError, match="e.cells.json"):
        cellglot.embed(tmp_path / "cells.h5ad", model_folders["model"], output=tmp_path / "e.npy", device="cpu")
    assert mine.read_text() == "mine" and not (tmp_path / "e.npy").exists()
