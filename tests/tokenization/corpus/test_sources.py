"""Sources of a corpus besides single files: SOMA experiments, filters, folders, collections of zarr."""

import json
import os
import shutil
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import tiledbsoma.io
import zarr
from typer.testing import CliRunner

import cellglot
from cellglot.cli import app
from cellglot.tokenization import CellFileError
from cellglot.tokenization.corpus import plan as corpus_plan
from cellglot.tokenization.corpus.corpus import CorpusError
from cellglot.tokenization.corpus.folders import find_sources
from cellglot.tokenization.corpus.plan import unique_names
from cellglot.tokenization.corpus.tokenize import tokenize_corpus
from cellglot.tokenization.corpus.worker import Worker
from cellglot.tokenization.reading import soma


QUIET = {"processes": 1, "progress": False, "tokenizer": "rank-value"}


@pytest.fixture(scope="module")
def stored(blood, tmp_path_factory):
    """The same cells as h5ad and as a SOMA experiment."""
    folder = tmp_path_factory.mktemp("sources")
    cells = blood.copy()
    n = np.arange(cells.n_obs)
    cells.obs["donor_id"] = pd.Categorical([f"d{i % 5}" for i in n])
    cells.obs["is_primary_data"] = n % 4 > 0
    cells.obs["disease"] = pd.Categorical(np.where(n % 7, "normal", "lung carcinoma"))
    cells.obs["assay"] = pd.Categorical(np.where(n % 2, "10x 3' v3", "Smart-seq2"))
    cells.write_h5ad(folder / "cells.h5ad")
    tiledbsoma.io.from_h5ad(str(folder / "cells"), folder / "cells.h5ad", "RNA")
    return folder


def rows(corpus):
    table = [pq.read_table(corpus.folder / s["file"]).to_pandas() for s in corpus.manifest["shards"]]
    return pd.concat(table, ignore_index=True)


@pytest.mark.parametrize(
    "chosen", [{}, {"filter": "is_primary_data == True"}, {"preset": "sccello"}], ids=["all", "filter", "preset"]
)
def test_a_soma_experiment_gives_the_tokens_of_the_h5ad(stored, tmp_path, monkeypatch, chosen):
    monkeypatch.setattr(corpus_plan, "UNIT_CELLS", 150)
    monkeypatch.setattr(soma, "MOST_CELLS", 64)
    file = tokenize_corpus([stored / "cells.h5ad"], tmp_path / "file", **chosen, **QUIET)
    experiment = tokenize_corpus([stored / "cells"], tmp_path / "soma", **chosen, **QUIET)
    table = rows(file)
    by_split = ["split", "cell_index"]  # units, and so shards, may have other ranges of cells
    pd.testing.assert_frame_equal(
        rows(experiment).sort_values(by_split, ignore_index=True), table.sort_values(by_split, ignore_index=True)
    )
    assert experiment.tokenizer().vocabulary.means.tolist() == file.tokenizer().vocabulary.means.tolist()
    cells = ad.read_h5ad(stored / "cells.h5ad")
    kept = np.ones(700, dtype=bool)
    if chosen:
        kept = cells.obs["is_primary_data"].to_numpy().copy()
        assert "cells: the filter leaves out" in experiment.summary()
    if "preset" in chosen:
        kept &= (cells.obs["disease"] == "normal").to_numpy() & (cells.obs["assay"] == "10x 3' v3").to_numpy()
    assert sorted(table["cell_index"]) == np.flatnonzero(kept).tolist()
    assert sorted(table["cell_id"]) == sorted(cells.obs_names[kept])


def test_a_stopped_run_over_an_experiment_resumes_and_a_changed_one_is_an_error(stored, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_plan, "UNIT_CELLS", 100)
    options = {"filter": "is_primary_data == True", **QUIET}
    whole = tokenize_corpus([stored / "cells"], tmp_path / "whole", **options)
    write, written = Worker.start_tokens, []

    def stopping(self, *arguments):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(arguments)
        return write(self, *arguments)

    monkeypatch.setattr(Worker, "start_tokens", stopping)
    with pytest.raises(KeyboardInterrupt):
        tokenize_corpus([stored / "cells"], tmp_path / "stopped", **options)
    monkeypatch.setattr(Worker, "start_tokens", write)
    with pytest.raises(CorpusError, match="with other arguments"):
        tokenize_corpus([stored / "cells"], tmp_path / "stopped", **(options | {"filter": "is_primary_data == False"}))
    resumed = tokenize_corpus([stored / "cells"], tmp_path / "stopped", **options)
    assert resumed.manifest == whole.manifest
    for mine, theirs in zip(resumed.shards("train"), whole.shards("train"), strict=True):
        assert Path(mine).read_bytes() == Path(theirs).read_bytes()


def test_an_experiment_that_is_rewritten_in_mid_run_ends_it(stored, tmp_path, monkeypatch):
    write = Worker.start_tokens
    copy = tmp_path / "cells"
    tiledbsoma.io.from_h5ad(str(copy), stored / "cells.h5ad", "RNA")

    def rewriting(self, *arguments):
        with tiledbsoma.open(str(copy / "obs"), "w") as obs:
            obs.metadata["changed"] = 1
        return write(self, *arguments)

    monkeypatch.setattr(Worker, "start_tokens", rewriting)
    with pytest.raises(CorpusError, match=f"{copy} changed while it was read"):
        tokenize_corpus([copy], tmp_path / "corpus", **QUIET)


# -------------------------------------------------------------------- filters of several files


def test_files_without_chosen_cells_are_left_out_and_listed(blood, tmp_path):
    for name in ("lung", "blood", "gut"):
        cells = blood[:60].copy()
        cells.obs["tissue"] = name
        cells.write_h5ad(tmp_path / f"{name}.h5ad")
    files = [tmp_path / f"{name}.h5ad" for name in ("lung", "blood", "gut")]
    corpus = tokenize_corpus(files, tmp_path / "corpus", filter='tissue in ["lung", "gut"]', **QUIET)
    assert corpus.n_cells("train") + corpus.n_cells("validation") == 120
    assert "skipped blood: " in corpus.summary() and "none of its 60 cells meets the filter" in corpus.summary()
    again = tokenize_corpus(files, tmp_path / "corpus", filter='tissue in ["lung", "gut"]', **QUIET)
    assert again.manifest == corpus.manifest
    with pytest.raises(CellFileError, match=r"lung\.h5ad: none of its 60 .*; so it is in 2 further files"):
        tokenize_corpus(files, tmp_path / "none", filter='tissue == "skin"', **QUIET)
    with pytest.raises(CellFileError, match=r"(?s)3 of 3 files cannot be used.*no column 'tisue', which the filter"):
        tokenize_corpus(files, tmp_path / "none", filter='tisue == "lung"', **QUIET)
    with pytest.raises(ValueError, match="cannot be read: a filter is, for example"):
        tokenize_corpus([tmp_path / "missing.h5ad"], tmp_path / "none", filter="tissue ==", **QUIET)


def test_filters_and_presets_of_the_command_line(stored, tmp_path):
    arguments = ["tokenize", str(stored / "cells"), "-o", str(tmp_path / "c"), "--tokenizer", "rank-value",
                 "--filter", 'donor_id != "d0"', "--preset", "sccello"]  # fmt: skip
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "the filter leaves out" in done.output
    manifest = json.loads((tmp_path / "c" / "manifest.json").read_text())
    assert manifest["plan"]["arguments"]["filter"] == 'preset("sccello") and (donor_id != "d0")'
    done = CliRunner().invoke(app, [*arguments[:-1], "other"])
    assert isinstance(done.exception, ValueError)
    assert "no preset 'other' of filters: it is one of sccello" in str(done.exception)


# -------------------------------------------------------------------- folders and collections


def test_a_folder_stands_for_the_files_in_it_in_the_order_of_their_paths(stored, tmp_path, caplog):
    for name in ("b/z.h5ad", "a/cells.h5ad", "b/cells.h5ad", "part_10.h5ad", "dataset_2.h5ad", "dataset_10.h5ad"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"")
    zarr.open_group(tmp_path / "in" / "b" / "s.zarr", mode="w").create_group("obs")
    os.symlink(stored / "cells", tmp_path / "in" / "c")
    (tmp_path / "in" / "b" / "readme.txt").write_text("notes")
    found = find_sources([tmp_path / "in", stored / "cells.h5ad"])
    names = ["a/cells.h5ad", "b/cells.h5ad", "b/s.zarr", "b/z.h5ad", "c", "part_10.h5ad", "dataset_2.h5ad",
             "dataset_10.h5ad"]  # fmt: skip
    assert [str(p.relative_to(tmp_path / "in")) for p in found[:-1]] == names
    assert found[-1] == stored / "cells.h5ad"
    assert "not read, because only .h5ad, zarr and SOMA are: b/readme.txt" in caplog.text
    assert unique_names(found)[:2] == ["a/cells", "b/cells"]
    assert unique_names(found)[-4:] == ["part_10", "dataset_2", "dataset_10", "cells.h5ad"]


def test_folders_without_cells_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CellFileError, match="empty is an empty folder"):
        find_sources([tmp_path / "empty"])
    (tmp_path / "other" / "deep").mkdir(parents=True)
    (tmp_path / "other" / "deep" / "a.csv").write_text("")
    with pytest.raises(CellFileError, match=r"no \.h5ad file, store of zarr or SOMA experiment: found deep/a\.csv"):
        find_sources([tmp_path / "other"])


@pytest.fixture(scope="module")
def collection(blood, tmp_path_factory):
    """A collection as annbatch writes it: a group of AnnData with sharded matrices."""
    path = tmp_path_factory.mktemp("collection") / "shuffled.zarr"
    root = zarr.open_group(path, mode="w", zarr_format=3)
    root.attrs.update({"encoding-type": "annbatch-preshuffled", "encoding-version": "0.1.0"})

    def sharded(write, store, name, element, dataset_kwargs, iospec):
        own = {"chunks": (1024,), "shards": (2048,)} if iospec.encoding_type == "csr_matrix" else {}
        write(store, name, element, dataset_kwargs={**dataset_kwargs, **own})

    for number in range(3):
        part = ad.AnnData(blood.X[number * 50 : number * 50 + 50], var=pd.DataFrame(index=blood.var_names))
        part.obs = pd.DataFrame({"src_path": "a.h5ad"}, index=blood.obs_names[number * 50 : number * 50 + 50])
        ad.experimental.write_dispatched(root, f"dataset_{number}", part, callback=sharded)
    return path


def test_a_collection_of_sharded_zarr_gives_the_tokens_of_its_cells(collection, blood, tmp_path):
    assert zarr.open_group(collection / "dataset_0")["X/data"].shards is not None
    corpus = tokenize_corpus([collection], tmp_path / "corpus", validation_fraction=0, **QUIET)
    table = rows(corpus)
    assert table["cell_id"].tolist() == list(blood.obs_names[:150])
    assert table["dataset_id"].iloc[::50].tolist() == ["dataset_0", "dataset_1", "dataset_2"]
    tokens = corpus.tokenizer()(ad.AnnData(blood.X[:150], var=pd.DataFrame(index=blood.var_names)))["input_ids"]
    assert [t.tolist() for t in table["input_ids"]] == tokens


def test_parts_of_a_collection_are_in_the_order_of_their_numbers(tmp_path):
    root = zarr.open_group(tmp_path / "many.zarr", mode="w", zarr_format=3)
    for number in range(12):
        root.create_group(f"dataset_{number}/obs")
    assert [p.name for p in find_sources([tmp_path / "many.zarr"])] == [f"dataset_{n}" for n in range(12)]


def test_a_shard_of_a_collection_that_is_missing_or_cut_is_named(collection, tmp_path):
    copy = Path(shutil.copytree(collection, tmp_path / "copy.zarr"))
    shard = max((copy / "dataset_1" / "X" / "data" / "c").iterdir())
    whole = shard.read_bytes()
    shard.write_bytes(whole[:100])
    with pytest.raises((CorpusError, CellFileError), match="dataset_1"):
        tokenize_corpus([copy], tmp_path / "corpus", **QUIET)
    shard.unlink()
    with pytest.raises((CorpusError, CellFileError), match="dataset_1.*missing and cannot be zeros"):
        tokenize_corpus([copy], tmp_path / "corpus", **QUIET)
    (copy / "dataset_1" / "zarr.json").unlink()
    with pytest.raises(CellFileError, match="has dataset_2 but no dataset_1 with cells: the copy is incomplete"):
        tokenize_corpus([copy], tmp_path / "corpus", **QUIET)


def test_the_verb_takes_folders_and_experiments(stored, tmp_path):
    corpus = cellglot.tokenize(stored, tmp_path / "corpus", tokenizer="rank-value", filter='donor_id == "d1"')
    assert [file["n_cells"] for file in corpus.manifest["files"]] == [140, 140]
