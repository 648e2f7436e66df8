"""SOMA experiments on disk, from a server of S3 on this machine, and as CELLxGENE Census stores them."""

import os
import shutil
import subprocess
import sys
import threading
import types

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import tiledbsoma
import tiledbsoma.io
from local_s3 import LocalS3

from cellglot.inputs import network
from cellglot.outputs.environment import EnvironmentFailureError
from cellglot.tokenization import CellFileError, read_cells
from cellglot.tokenization.reading import soma
from cellglot.tokenization.reading.soma_experiment import dated_census


@pytest.fixture(scope="module")
def cells(blood):
    made = blood[:120].copy()
    n = np.arange(120)
    made.obs["donor_id"] = pd.Categorical([f"d{i % 3}" for i in n])
    made.obs["is_primary_data"] = n % 3 > 0
    made.obs["age"] = np.where(n % 5, n, np.nan)
    made.obs["remark"] = pd.Categorical([None if i % 4 == 0 else f"r{i % 2}" for i in n])
    made.var["feature_name"] = made.var_names
    made.var.index = [f"ENSG{i:011d}" for i in range(made.n_vars)]
    return made


@pytest.fixture(scope="module")
def stored(cells, tmp_path_factory):
    folder = tmp_path_factory.mktemp("soma")
    cells.write_h5ad(folder / "cells.h5ad")
    tiledbsoma.io.from_h5ad(str(folder / "cells"), folder / "cells.h5ad", "RNA")
    return folder


def same(left, right):
    assert (left.X != right.X).nnz == 0
    pd.testing.assert_frame_equal(left.obs, right.obs)
    pd.testing.assert_frame_equal(left.var, right.var)


def test_an_experiment_has_the_cells_of_the_h5ad_that_it_was_written_from(stored, monkeypatch):
    monkeypatch.setattr(soma, "MOST_CELLS", 50)
    monkeypatch.setattr(soma, "MOST_ROWS", 32)
    with read_cells(stored / "cells.h5ad") as file, read_cells(stored / "cells") as experiment:
        assert experiment.format == "SOMA"
        assert experiment.counts.location == "X"
        same(experiment.to_anndata(), file.to_anndata())
        pd.testing.assert_frame_equal(experiment.table(every=True), file.table(every=True))
        for start, stop in ((0, 1), (45, 120), (49, 51), (60, 60)):
            mine, theirs = experiment.counts.rows(start, stop), file.counts.rows(start, stop)
            assert np.array_equal(mine.data, theirs.data) and np.array_equal(mine.indices, theirs.indices)
            pd.testing.assert_frame_equal(experiment.metadata(start, stop), file.metadata(start, stop))


def test_a_filter_chooses_the_same_cells_as_of_the_h5ad(stored, monkeypatch):
    monkeypatch.setattr(soma, "MOST_CELLS", 7)
    for text in ('donor_id in ["d0", "d2"] and age > 20', "not is_primary_data == True", "remark is None"):
        with read_cells(stored / "cells.h5ad", filter=text) as file, read_cells(stored / "cells", filter=text) as mine:
            assert 0 < mine.n_cells < 120
            same(mine.to_anndata(), file.to_anndata())
            assert np.array_equal(mine.row_numbers(), file.row_numbers())
            assert mine.notes == file.notes


def test_ids_with_gaps_dense_and_other_layers(cells, tmp_path):
    """What `tiledbsoma.io` does not write, and others may: ids of cells with gaps, no names of cells, dense counts."""
    path = str(tmp_path / "made")
    counts = cells.X[:5, :4].toarray()
    with tiledbsoma.Experiment.create(path) as made:
        obs = made.add_new_dataframe("obs", schema=pa.schema([("tissue", pa.string())]), domain=[[0, 20]])
        obs.write(pa.table({"soma_joinid": [3, 4, 9, 10, 20], "tissue": ["a", "b", "a", "b", "a"]}))
        measurements = made.add_new_collection("ms")
        rna = measurements.add_new_collection("other", tiledbsoma.Measurement)
        var = rna.add_new_dataframe(
            "var", schema=pa.schema([("feature_id", pa.string()), ("feature_name", pa.string())]), domain=[[0, 3]]
        )
        names = list(cells.var["feature_name"][:4])
        var.write(pa.table({"soma_joinid": [0, 1, 2, 3], "feature_id": list("wxyz"), "feature_name": names}))
        layers = rna.add_new_collection("X")
        raw = layers.add_new_sparse_ndarray("raw", type=pa.float32(), shape=(21, 4))
        rows, genes = np.nonzero(counts)
        ids = np.array([3, 4, 9, 10, 20])[rows]
        raw.write(pa.table({"soma_dim_0": ids, "soma_dim_1": genes, "soma_data": counts[rows, genes]}))
        normalized = layers.add_new_sparse_ndarray("normalized", type=pa.float32(), shape=(21, 4))
        normalized.write(pa.table({"soma_dim_0": ids, "soma_dim_1": genes, "soma_data": counts[rows, genes] / 4}))
        dense = layers.add_new_dense_ndarray("dense", type=pa.float32(), shape=(21, 4))
        block = np.zeros((21, 4), np.float32)
        block[[3, 4, 9, 10, 20]] = counts
        dense.write((slice(0, 20), slice(0, 3)), pa.Tensor.from_numpy(block))
    with read_cells(path) as opened:
        assert opened.counts.location == "layers['raw']"
        assert opened.to_anndata().X.toarray().tolist() == counts.tolist()
        assert list(opened.names()) == ["3", "4", "9", "10", "20"]
        assert list(opened.var.index) == list("wxyz")
    with read_cells(path, layer="dense", filter='tissue == "a"') as opened:
        assert opened.to_anndata().X.toarray().tolist() == counts[[0, 2, 4]].tolist()
        assert opened.row_numbers().tolist() == [3, 9, 20]


def test_damaged_and_other_groups_are_named(stored, tmp_path):
    cut = tmp_path / "cut"
    shutil.copytree(stored / "cells", cut)
    fragment = max((cut / "ms" / "RNA" / "X" / "data" / "__fragments").glob("*/a0.tdb"))
    fragment.write_bytes(fragment.read_bytes()[: fragment.stat().st_size // 2])
    with pytest.raises(CellFileError, match=f"{cut} cannot be read, it may be damaged or cut short"):
        read_cells(cut).to_anndata()
    shutil.rmtree(cut / "ms" / "RNA" / "var")
    with pytest.raises(CellFileError, match=f"{cut} cannot be read"):
        read_cells(cut)
    with pytest.raises(CellFileError, match="/ms is a SOMACollection, not a SOMA experiment: .*contains RNA"):
        read_cells(stored / "cells" / "ms")


def test_without_the_package_the_message_says_what_to_install(stored, monkeypatch):
    monkeypatch.setitem(sys.modules, "tiledbsoma", None)
    with pytest.raises(CellFileError, match=r"needs a package that is missing: pip install 'cellglot\[census\]'"):
        read_cells(stored / "cells")
    monkeypatch.setitem(sys.modules, "cellxgene_census", None)
    with pytest.raises(CellFileError, match=r"Census needs a package that is missing: pip install"):
        dated_census("census:stable")


# -------------------------------------------------------------------- a network source


@pytest.fixture
def s3(stored, monkeypatch):
    monkeypatch.setattr(network, "PAUSE_SECONDS", 0.01)
    with LocalS3(stored) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


def forget(cells):
    """Forget the block of cells that was read last."""
    cells.counts.matrix._kept = (-1, cells.counts.matrix._kept[1])


def test_a_network_source_that_breaks_off_is_read_again_and_named_in_the_end(s3, stored, caplog):
    with read_cells(stored / "cells") as local, read_cells("s3://bucket/cells/") as remote:
        assert remote.name == "cells"
        forget(remote)
        s3.set(broken=6)
        same(remote.to_anndata(), local.to_anndata())
        assert "s3://bucket/cells: " in caplog.text and "trying again" in caplog.text
        s3.set(broken=10**6)
        forget(remote)
        with pytest.raises(
            EnvironmentFailureError, match=r"s3://bucket/cells could not be read in 4 tries \(.*\): check"
        ):
            remote.counts.rows(0, 10)
        s3.set(broken=0)
        assert len(remote.counts.rows(0, 10)) == 10
    with pytest.raises(CellFileError, match="s3://bucket/none: it does not exist"):
        read_cells("s3://bucket/none")
    with pytest.raises(CellFileError, match="is an address, not a file: download it first"):
        read_cells("s3://bucket/cells.h5ad")


def test_a_network_source_that_stalls_is_given_up(s3, monkeypatch):
    with read_cells("s3://bucket/cells") as remote:
        monkeypatch.setattr(network, "STALLED_SECONDS", 0.1)
        s3.set(delay=1)
        with pytest.raises(EnvironmentFailureError, match=r"in 4 tries \(no answer within 0\.1 s\)"):
            remote.obs.column("remark", 0, 10)
        s3.set(delay=0)


def test_a_command_ends_with_its_message_while_a_read_stalls(s3, tmp_path):
    """TileDB would abort a process whose interpreter ends before the read."""
    script = (
        "import sys; from cellglot.inputs import network; network.PAUSE_SECONDS, network.STALLED_SECONDS = 0.01, 0.1; "
        f"sys.argv = ['cellglot', 'tokenize', 's3://bucket/cells', '-o', '{tmp_path}/corpus', '--processes', '1']; "
        "from cellglot.cli import main; main()"
    )
    s3.set(delay=0.5)
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | s3.environment, capture_output=True, text=True, check=False
    )
    assert done.stderr.splitlines()[-1].startswith("error: s3://bucket/cells could not be read in 4 tries")
    assert done.returncode == 2


def test_the_end_of_a_process_waits_for_reads_that_were_given_up(monkeypatch):
    end = threading.Event()
    with pytest.raises(TimeoutError, match=r"no answer within 0\.01 s"):
        network.within(0.01, end.wait)
    monkeypatch.setattr(network, "END_SECONDS", 0.05)
    network._wait_for_reads()
    assert network._stalled()
    end.set()
    network._wait_for_reads()
    assert not network._stalled()


# -------------------------------------------------------------------- Census


@pytest.fixture
def census(stored, tmp_path, monkeypatch):
    """The package of Census, reduced to what is used, with a small Census on disk."""
    with tiledbsoma.Collection.create(str(tmp_path / "census")) as made:
        data = made.add_new_collection("census_data")
        data.set("homo_sapiens", tiledbsoma.open(str(stored / "cells")), use_relative_uri=False)
    package = types.ModuleType("cellxgene_census")
    package.opened = []

    def open_soma(*, census_version, context):
        package.opened.append(census_version)
        return tiledbsoma.open(str(tmp_path / "census"), context=context)

    def description(version):
        if version not in ("stable", "2023-07-25"):
            raise ValueError(f"Unable to locate Census version: {version}.")
        return {"release_build": "2023-07-25"}

    package.open_soma = open_soma
    package.get_census_version_description = description
    package.get_default_soma_context = lambda tiledb_config: tiledbsoma.SOMATileDBContext(tiledb_config=tiledb_config)
    monkeypatch.setitem(sys.modules, "cellxgene_census", package)
    return package


def test_census_is_opened_by_release_and_organism(census, stored, monkeypatch):
    monkeypatch.setattr(network, "PAUSE_SECONDS", 0.01)
    assert dated_census("census:stable") == "census:2023-07-25/homo_sapiens"
    assert dated_census("census:2023-07-25/Homo sapiens") == "census:2023-07-25/homo_sapiens"
    with read_cells("census:2023-07-25", filter="is_primary_data == True") as cells:
        assert cells.format == "Census"
        assert cells.name == "census-2023-07-25"
        with read_cells(stored / "cells", filter="is_primary_data == True") as local:
            same(cells.to_anndata(), local.to_anndata())
    assert set(census.opened) == {"2023-07-25"}
    with pytest.raises(CellFileError, match="mus_musculus: Census has no 'mus_musculus', but homo_sapiens"):
        read_cells("census:2023-07-25/mus_musculus")
    with pytest.raises(CellFileError, match="census:1999: there is no release '1999' of Census"):
        dated_census("census:1999")
    with pytest.raises(CellFileError, match="census:: name a release of Census, as in census:2023-07-25"):
        dated_census("census:")
