"""Tables of cells and genes of every type that AnnData and pandas write: read, and written back."""

import subprocess
import sys
import warnings

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr

from cellglot.evaluation.output import write_annotated
from cellglot.tokenization import CellFileError, read_cells
from cellglot.tokenization.reading.refusals import why_not_opened
from cellglot.tokenization.reading.storable_table import storable_frame


N = 6
FORMATS = ("h5ad", "zarr 2", "zarr 3")


def typed_cells():
    names = pd.Index(pd.array([f"cell {i}" for i in range(N)], dtype="string"))
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical(["B", "T", None] * 2),
            "donor_id": pd.Categorical([1, 2, 1] * 2),
            "sex": pd.array([1, None, 2] * 2, dtype="Int64"),
            "rounds": pd.array([200, None, 3] * 2, dtype="UInt8"),
            "is_primary_data": pd.array([True, None, False] * 2, dtype="boolean"),
            "tissue": pd.array(["lung", None, "liver"] * 2, dtype="string"),
            "stage": pd.Categorical(["late", "early", "late"] * 2, categories=["early", "late"], ordered=True),
            "score": pd.Categorical([0.5, 1.5, None] * 2),
            "flag": pd.Categorical([True, False, True] * 2),
        },
        index=names,
    )
    var = pd.DataFrame({"gene_ids": pd.array([f"ENSG{i:011d}" for i in range(5)], dtype="string")})
    var.index = pd.Index(pd.array([f"G{i}" for i in range(5)], dtype="string"))
    return ad.AnnData(sp.csr_matrix(np.arange(5 * N, dtype=np.float32).reshape(N, 5)), obs=obs, var=var)


@pytest.fixture(scope="module", params=FORMATS)
def path(request, tmp_path_factory):
    """Cells with names as nullable texts, as AnnData with pandas 3 writes them."""
    path = tmp_path_factory.mktemp("typed") / f"cells.{request.param.split()[0]}"
    with ad.settings.override(allow_write_nullable_strings=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if path.suffix == ".h5ad":
            with h5py.File(path, "w") as file:
                ad.io.write_elem(file, "/", typed_cells())
        else:
            group = zarr.open_group(path, mode="w", zarr_format=int(request.param[-1]))
            ad.io.write_elem(group, "/", typed_cells())
    return path


def test_names_and_columns_are_read(path):
    with read_cells(path) as cells:
        assert cells.names(1, 3).tolist() == ["cell 1", "cell 2"]
        assert list(cells.var.index[:2]) == ["G0", "G1"] and cells.var["gene_ids"].iloc[4] == "ENSG00000000004"
        table = cells.metadata(0, 3)
        assert table["cell_type"].tolist() == ["B", "T", None] and table["donor_id"].tolist() == [1, 2, 1]
        assert table["sex"].tolist() == [1, None, 2] and table["is_primary_data"].tolist() == [True, None, False]
        assert table["tissue"].tolist() == ["lung", None, "liver"]


def test_columns_are_written_back_with_their_type(path, tmp_path):
    with read_cells(path) as cells:
        write_annotated(cells, path, tmp_path / "out.h5ad", obs={"cellglot_rank": np.arange(N)})
    obs, given = ad.read_h5ad(tmp_path / "out.h5ad").obs, typed_cells().obs
    assert set(obs.columns) == {*given.columns, "cellglot_rank"} and obs["cellglot_rank"].tolist() == list(range(N))
    assert obs["sex"].dtype == "Int64" and obs["is_primary_data"].dtype == "boolean"
    assert obs["rounds"].dtype == "UInt8"
    assert obs["stage"].cat.ordered and obs["stage"].cat.categories.tolist() == ["early", "late"]
    assert obs["donor_id"].cat.categories.tolist() == [1, 2] and obs["score"].cat.categories.tolist() == [0.5, 1.5]
    assert obs["tissue"].isna().tolist() == given["tissue"].isna().tolist()
    for name in given:
        written = obs[name].astype(object).where(obs[name].notna(), None).tolist()
        assert written == given[name].astype(object).where(given[name].notna(), None).tolist()


def test_annotating_twice_replaces_only_its_own_columns(tmp_path):
    cells = typed_cells()
    cells.obs.index = cells.obs.index.astype(object)
    cells.var.index, cells.var["gene_ids"] = cells.var.index.astype(object), cells.var["gene_ids"].astype(object)
    cells.obs["tissue"] = cells.obs["tissue"].astype(object).fillna("none")
    cells.write_h5ad(tmp_path / "a.h5ad")
    for number, (source, output) in enumerate((("a", "b"), ("b", "c"))):
        with read_cells(tmp_path / f"{source}.h5ad") as opened:
            write_annotated(opened, opened.path if hasattr(opened, "path") else tmp_path / f"{source}.h5ad",
                            tmp_path / f"{output}.h5ad", obs={"cellglot_x": np.full(N, number)})  # fmt: skip
    obs = ad.read_h5ad(tmp_path / "c.h5ad").obs
    assert list(obs.columns) == [*cells.obs.columns, "cellglot_x"] and (obs["cellglot_x"] == 1).all()


ODD = {
    "dates": pd.to_datetime(["2020-01-01", None, "2021-01-01"]),
    "durations": pd.to_timedelta([1, None, 2], unit="D"),
    "intervals": pd.cut([1, 2, 3], 2),
    "periods": pd.period_range("2020-01", periods=3, freq="M"),
    "mixed": [1, "a", None],
    "bytes": [b"x", None, b"y"],
    "lists": [[1], None, {"a": 2}],
    "huge": pd.Series([2**70, None, 1], dtype=object),
    "complex": [1j, 2, 3],
    "with zero bytes": ["a\0b", "c", "d"],
    "half a sign": ["\ud800", "c", None],
    "categories of dates": pd.Categorical(pd.to_datetime(["2020-01-01", None, "2020-01-01"])),
    "arrow's numbers": pd.array([1, None, 2], dtype="int64[pyarrow]"),
    "nothing": [None, None, None],
    "a/name with/slashes" * 20: [1, 2, 3],
    "_index": [1, 2, 3],
    7: [1.5, np.nan, 2.5],
}


def test_whatever_a_table_holds_can_be_written(tmp_path):
    frame = pd.DataFrame(ODD, index=pd.Index(["a", None, "c"]))
    frame = pd.concat([frame, frame[["mixed"]]], axis=1)  # a name twice
    stored, notes = storable_frame(frame)
    ad.AnnData(np.ones((3, 1), dtype=np.float32), obs=stored).write_h5ad(tmp_path / "a.h5ad")
    stored.to_parquet(tmp_path / "a.parquet")
    read = ad.read_h5ad(tmp_path / "a.h5ad").obs
    assert len(read.columns) == len(ODD) + 1 and read.index.tolist() == ["a", "NA", "c"]
    assert read["dates"].astype(object).tolist()[::2] == ["2020-01-01", "2021-01-01"] and read["dates"].isna()[1]
    assert read["mixed"].astype(object).tolist()[:2] == ["1", "a"] and read["bytes"].tolist()[2] == "y"
    assert read["arrow's numbers"].dtype == "Int64" and read["7"].tolist()[0] == 1.5
    assert any("'mixed'" in note and "text" in note for note in notes) and any("'index_'" in note for note in notes)


def test_a_backed_anndata_counts_as_it_is_now(tmp_path):
    cells = typed_cells()
    cells.obs, cells.var = storable_frame(cells.obs)[0], storable_frame(cells.var)[0]
    cells.raw = cells
    cells.write_h5ad(tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    backed.var["gene_ids"] = [f"ENSG{i:011d}" for i in range(100, 105)]
    backed.var_names = [f"NEW{i}" for i in range(5)]
    backed.obs["cell_type"] = "changed"
    backed.layers["mine"] = cells.X * 2
    with read_cells(backed, layer="X") as opened:
        assert list(opened.counts.index) == [f"NEW{i}" for i in range(5)]
        assert opened.var["gene_ids"].iloc[0] == "ENSG00000000100"
        assert set(opened.metadata()["cell_type"]) == {"changed"}
        assert (next(opened.chunks()).toarray() == cells.X.toarray()).all()
    with read_cells(backed, layer="mine") as opened:
        assert (next(opened.chunks()).toarray() == 2 * cells.X.toarray()).all()


def test_texts_of_pandas_3_in_memory():
    with pd.option_context("future.infer_string", True):
        cells = typed_cells()
        cells.obs["cell_type"] = pd.Series(["B", None, "T"] * 2, index=cells.obs_names)
        cells.obs_names = [f"c{i}" for i in range(N)]
        with read_cells(cells) as opened:
            assert opened.names(0, 2).tolist() == ["c0", "c1"]
            assert opened.metadata()["cell_type"].tolist()[:3] == ["B", None, "T"]
            opened.to_anndata()


def test_a_locked_file_is_not_called_damaged(tmp_path):
    path = tmp_path / "open.h5ad"
    cells = typed_cells()
    cells.obs, cells.var = storable_frame(cells.obs)[0], storable_frame(cells.var)[0]
    cells.write_h5ad(path)
    program = f"import h5py, sys; f = h5py.File({str(path)!r}, 'r+'); print('open', flush=True); sys.stdin.read()"
    holder = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        holder.stdout.readline()
        with pytest.raises(
            CellFileError, match="is open for writing elsewhere.*HDF5_USE_FILE_LOCKING=FALSE"
        ) as caught:
            read_cells(path)
        assert str(path) in str(caught.value) and "damaged" not in str(caught.value)
    finally:
        holder.communicate()
    with read_cells(path) as opened:
        assert len(opened) == N


def test_other_reasons_for_which_a_file_is_not_opened(tmp_path):
    path = tmp_path / "a.h5ad"
    assert "is not readable for this user" in why_not_opened(path, PermissionError("no"))
    assert "h5clear" in why_not_opened(path, OSError("file is already open for write (may use <h5clear file>)"))
    assert "damaged" in why_not_opened(path, OSError("truncated file"))
