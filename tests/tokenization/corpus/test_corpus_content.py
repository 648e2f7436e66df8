"""A corpus is known by its content: every flipped bit, swapped shard or changed file is noticed before a result."""

import json
import os
import shutil

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from cellglot.tokenization.corpus import plan as corpus_plan
from cellglot.tokenization.corpus.corpus import Corpus, CorpusError
from cellglot.tokenization.corpus.tokenize import tokenize_corpus
from cellglot.tokenization.reading.matrices import ConvertedRows


def write_cells(path, seed=0, n=60, columns=False):
    random = np.random.default_rng(seed)
    counts = random.poisson(random.gamma(0.5, 2, 40), (n, 40)).astype(np.float32)
    cells = ad.AnnData(
        sp.csc_matrix(counts) if columns else sp.csr_matrix(counts),
        obs=pd.DataFrame({"cell_type": random.choice(["a", "b"], n)}, index=[f"c{i}" for i in range(n)]),
        var=pd.DataFrame(index=[f"ENSG{i:011d}" for i in range(1, 41)]),
    )
    cells.write_h5ad(path)
    return path


def tokens(corpus):
    return [(corpus.folder / s["file"]).read_bytes() for s in corpus.manifest["shards"]]


def make(path, output, **options):
    return tokenize_corpus([path], output, processes=1, progress=False, tokenizer="rank-value", **options)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    return make(write_cells(folder / "a.h5ad"), folder / "corpus")


@pytest.fixture
def corpus(made, tmp_path):
    shutil.copytree(made.folder, tmp_path / "corpus")
    return tmp_path / "corpus"


def test_every_bit_of_a_shard_counts(corpus):
    shard = corpus / Corpus.open(corpus).manifest["shards"][0]["file"]
    good = shard.read_bytes()
    for place in np.linspace(0, len(good) - 1, 25).astype(int):
        damaged = bytearray(good)
        damaged[place] ^= 1 << (place % 8)
        shard.write_bytes(damaged)
        with pytest.raises(CorpusError, match=shard.name):
            Corpus.open(corpus)
    shard.write_bytes(good)
    Corpus.open(corpus)


def test_a_change_is_noticed_though_size_and_dates_are_as_before(corpus):
    shard = corpus / Corpus.open(corpus).manifest["shards"][0]["file"]
    before, damaged = shard.stat(), bytearray(shard.read_bytes())
    damaged[len(damaged) // 2] ^= 4
    shard.write_bytes(damaged)
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(CorpusError, match="does not match the manifest"):
        Corpus.open(corpus)


def test_the_vocabulary_of_a_corpus_counts(corpus):
    statistics = corpus / "tokenizer" / "gene_stats.safetensors"
    damaged = bytearray(statistics.read_bytes())
    damaged[-3] ^= 1
    statistics.write_bytes(damaged)
    with pytest.raises(CorpusError, match=r"statistics of .*tokenizer do not match the manifest"):
        Corpus.open(corpus).tokenizer()


def test_manifests_of_earlier_versions_are_read(corpus):
    path = corpus / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["vocabulary_digest"]
    for shard in manifest["shards"]:
        del shard["digest"]
    path.write_text(json.dumps(manifest))
    Corpus.open(corpus).tokenizer()


def test_a_file_changed_in_the_middle_is_another_file(made, tmp_path):
    path = write_cells(tmp_path / "a.h5ad")
    make(path, tmp_path / "c")
    with pytest.raises(CorpusError, match="other files"):
        make(write_cells(path, seed=1), tmp_path / "c")


def test_plans_of_earlier_versions_compare_files_as_they_did(tmp_path):
    path = write_cells(tmp_path / "a.h5ad")
    corpus = make(path, tmp_path / "c")
    manifest = corpus.manifest
    manifest["plan"]["files"][0]["fingerprint"] = corpus_plan.fingerprint_of_ends(path)
    (corpus.folder / "manifest.json").write_text(json.dumps(manifest))
    assert tokens(make(path, tmp_path / "c")) == tokens(corpus)
    write_cells(path, seed=1)
    with pytest.raises(CorpusError, match="other files"):
        make(path, tmp_path / "c")


def test_converted_matrices_belong_to_a_content(tmp_path, monkeypatch):
    """A run that was killed after it converted a file; the file is then replaced."""
    path, output = write_cells(tmp_path / "a.h5ad", columns=True), tmp_path / "c"
    convert = ConvertedRows._convert

    def convert_and_stop(self, folder):
        convert(self, folder)
        raise KeyboardInterrupt

    with monkeypatch.context() as stopped:
        stopped.setattr(ConvertedRows, "_convert", convert_and_stop)
        with pytest.raises(KeyboardInterrupt):
            make(path, output)
    write_cells(path, seed=1, columns=True)
    assert tokens(make(path, output)) == tokens(make(path, tmp_path / "fresh"))


def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path, monkeypatch):
    path = write_cells(tmp_path / "a.h5ad")

    class Changing(corpus_plan.Split):
        def assign(self, groups, names):
            write_cells(tmp_path / "b.h5ad", seed=2).replace(path)
            return super().assign(groups, names)

    monkeypatch.setattr(corpus_plan, "Split", Changing)
    with pytest.raises(CorpusError, match=r"a\.h5ad changed while it was read"):
        make(path, tmp_path / "c")
    assert not (tmp_path / "c" / "manifest.json").exists()


def test_barcodes_and_features_are_part_of_a_matrix_market_file(tmp_path):
    for name, text in (("matrix.mtx", "x"), ("barcodes.tsv", "a"), ("features.tsv", "g")):
        (tmp_path / name).write_text(text)
    before = corpus_plan.fingerprint(tmp_path / "matrix.mtx")
    (tmp_path / "features.tsv").write_text("h")
    assert corpus_plan.fingerprint(tmp_path / "matrix.mtx") != before


NOT_A_SHARD = {
    "absolute": lambda shard: shard | {"file": "/etc/hostname"},
    "upwards": lambda shard: shard | {"file": "../other/data.parquet"},
    "of windows": lambda shard: shard | {"file": "C:\\data\\x.parquet"},
    "no text": lambda shard: shard | {"file": ["data/x.parquet"]},
    "no number": lambda shard: shard | {"cells": "many"},
    "negative": lambda shard: shard | {"bytes": -1},
    "other split": lambda shard: shard | {"split": "all"},
    "no mapping": lambda shard: "data/train-000000.parquet",
}


@pytest.mark.parametrize("kind", NOT_A_SHARD)
def test_manifests_that_cannot_be_are_refused(corpus, kind):
    path = corpus / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["shards"][0] = NOT_A_SHARD[kind](manifest["shards"][0])
    path.write_text(json.dumps(manifest))
    with pytest.raises(CorpusError, match=r"manifest\.json"):
        Corpus.open(corpus)


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("broken",), 3), (("split", "by"), None), (("files", 0), "cells"), (("files", 0, "n_cells"), -1),
        (("files", 0, "report"), []), (("files", 0, "report", "coverage"), "all"), (("vocab_size",), True),
    ],
)  # fmt: skip
def test_what_a_manifest_says_of_files_has_its_type(corpus, where, value):
    path = corpus / "manifest.json"
    manifest = content = json.loads(path.read_text())
    for key in where[:-1]:
        content = content[key]
    content[where[-1]] = value
    path.write_text(json.dumps(manifest))
    with pytest.raises(CorpusError, match=r"manifest\.json is damaged: .* of"):
        Corpus.open(corpus)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "\ufeff\0", '{"shards": 3}', "null"])
def test_damaged_manifests_are_named(corpus, text):
    (corpus / "manifest.json").write_text(text)
    with pytest.raises(CorpusError, match=r"manifest\.json"):
        Corpus.open(corpus)


def test_a_shard_that_is_a_link_out_of_the_corpus_is_refused(corpus, tmp_path):
    shard = corpus / Corpus.open(corpus).manifest["shards"][0]["file"]
    shard.rename(tmp_path / "elsewhere.parquet")
    shard.symlink_to(tmp_path / "elsewhere.parquet")
    with pytest.raises(CorpusError, match="leads out of its folder"):
        Corpus.open(corpus)


def test_links_of_the_cache_of_the_hub_are_followed(corpus, tmp_path):
    blobs, snapshot = tmp_path / "datasets--a--b" / "blobs", tmp_path / "datasets--a--b" / "snapshots" / "0123"
    blobs.mkdir(parents=True)
    snapshot.parent.mkdir()
    corpus.rename(snapshot)
    for number, file in enumerate([p for p in snapshot.rglob("*") if p.is_file()]):
        file.rename(blobs / str(number))
        file.symlink_to(blobs / str(number))
    Corpus.open(snapshot)
