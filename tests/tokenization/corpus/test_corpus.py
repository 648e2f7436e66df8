import errno
import gzip
import hashlib
import json
import os
import subprocess
import sys
import textwrap
import time
from collections import Counter

import anndata as ad
import datasets
import h5py
import numpy as np
import pandas as pd
import psutil
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp
from typer.testing import CliRunner

from cellglot.cli import app
from cellglot.tokenization import CellFileError, ExceiverTokenizer, GeneCoverageError, RankValueTokenizer
from cellglot.tokenization.corpus import shards as token_shards
from cellglot.tokenization.corpus import worker as corpus_worker
from cellglot.tokenization.corpus.corpus import Corpus, CorpusError
from cellglot.tokenization.corpus.count_cache import KeptCounts
from cellglot.tokenization.corpus.plan import draw_split
from cellglot.tokenization.corpus.tokenize import tokenize_corpus
from cellglot.tokenization.corpus.worker import Worker


QUIET = {"processes": 1, "progress": False}


@pytest.fixture(scope="module")
def files(blood, tmp_path_factory):
    """Real cells in three files: two with donors, one by columns without; genes by symbol and by id."""
    folder = tmp_path_factory.mktemp("files")
    genes = [f"ENSG{i:011d}" for i in range(765)]
    paths = []
    for number, part in enumerate((slice(0, 250), slice(250, 500), slice(500, 700))):
        cells = blood[part].copy()
        if number < 2:
            cells.var = pd.DataFrame({"feature_name": list(blood.var_names)}, index=genes)
            cells.obs["donor_id"] = [f"d{number}{i % 3}" for i in range(cells.n_obs)]
        else:
            cells.X = cells.X.tocsc()
        paths.append(folder / f"part{number}.h5ad")
        cells.write_h5ad(paths[-1], compression="gzip")
    return paths


def rows(corpus):
    table = [pq.read_table(corpus.folder / s["file"]).to_pandas() for s in corpus.manifest["shards"]]
    return pd.concat(table, ignore_index=True)


def content(folder):
    """Hash of every file of a folder."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def test_tokens_are_those_of_the_tokenizer(files, tmp_path):
    for name, kind in (("exceiver", ExceiverTokenizer), ("rank-value", RankValueTokenizer)):
        corpus = tokenize_corpus(files, tmp_path / name, tokenizer=name, **QUIET)
        tokenizer = corpus.tokenizer()
        assert isinstance(tokenizer, kind)
        table = rows(corpus)
        assert len(table) == 700
        for number, path in enumerate(files):
            cells = ad.read_h5ad(path)
            mine = table[table.dataset_id == f"part{number}"].sort_values("cell_index")
            batch = tokenizer(cells)
            assert [t.tolist() for t in mine.input_ids] == batch["input_ids"]
            assert mine.length.tolist() == [len(t) for t in batch["input_ids"]]
            assert mine.cell_id.tolist() == list(cells.obs_names)
            assert mine.cell_type.tolist() == cells.obs["cell_type"].tolist()
            if name == "exceiver":
                values = np.concatenate(mine.expression_values.to_list())
                assert np.array_equal(values, np.concatenate(batch["expression_values"]).astype(np.float32))


@pytest.mark.parametrize(
    ("tokenizer", "fast"), [("exceiver", {"input_ids", "expression_values"}), ("rank-value", set())]
)
def test_every_column_of_a_shard_is_compressed_and_row_groups_are_bounded(
    files, tmp_path, monkeypatch, tokenizer, fast
):
    monkeypatch.setattr("cellglot.tokenization.corpus.shards.ROW_GROUP_CELLS", 16)
    corpus = tokenize_corpus(files, tmp_path / "corpus", tokenizer=tokenizer, **QUIET)
    for shard in corpus.shards("train"):
        metadata = pq.read_metadata(shard)
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        assert all(group.num_rows <= 64 for group in groups)
        columns = [group.column(i) for group in groups for i in range(group.num_columns)]
        codecs = {c.path_in_schema.split(".")[0]: c.compression for c in columns}
        assert {"input_ids", "length", "cell_type"} < set(codecs)
        assert codecs == {name: "LZ4" if name in fast else "ZSTD" for name in codecs}


def test_statistics_come_from_the_training_cells_alone(files, tmp_path):
    corpus = tokenize_corpus(files, tmp_path / "c", validation_fraction=0.3, **QUIET)
    table = rows(corpus)
    train = set(table[table.split == "train"].cell_id)
    cells = ad.concat([ad.read_h5ad(p) for p in files[:2]])
    third = ad.read_h5ad(files[2])
    counts = sp.vstack([cells.X, third.X]).toarray().astype(float)
    kept = np.isin([*cells.obs_names, *third.obs_names], list(train))
    scaled = counts[kept] / counts[kept].sum(1, keepdims=True) * 1e4
    vocab = corpus.tokenizer().vocabulary
    order = [int(g.removeprefix("ENSG")) for g in vocab.genes]
    assert order == np.flatnonzero(counts[kept].any(0)).tolist()
    assert np.allclose(vocab.means, np.log1p(scaled).mean(0)[order], rtol=1e-10)
    assert np.allclose(vocab.stds, np.log1p(scaled).std(0)[order], rtol=1e-8)
    medians = np.array([np.median(s[s > 0]) for s in scaled.T[order]])
    assert np.allclose(vocab.medians, medians, rtol=0.008)
    assert vocab.metadata["training_cells"] == kept.sum()


def test_whole_donors_are_held_out(files, tmp_path):
    corpus = tokenize_corpus(files, tmp_path / "c", validation_fraction=0.2, test_fraction=0.1, **QUIET)
    table = rows(corpus)
    group = table.donor_id.fillna(table.dataset_id)
    assert (table.groupby(group).split.nunique() == 1).all()
    shares = table.split.value_counts(normalize=True)
    assert 0.1 <= shares["validation"] <= 0.4
    assert shares["test"] > 0
    assert corpus.manifest["split"]["by"] == "donor_id, else dataset_id"
    assert {s["split"] for s in corpus.manifest["shards"]} == {"train", "validation", "test"}


def test_cells_are_held_out_where_there_is_one_group(blood_file, tmp_path):
    drawn = []
    for seed in (0, 0, 1):
        corpus = tokenize_corpus([blood_file], tmp_path / f"{len(drawn)}", validation_fraction=0.2, seed=seed, **QUIET)
        table = rows(corpus)
        drawn.append(set(table[table.split == "validation"].cell_id))
        assert corpus.manifest["split"]["by"] == "cell"
        assert 0.12 < len(drawn[-1]) / 700 < 0.28
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({"donor a": 90, "donor b": 10}, {"donor b"}),
        ({"donor a": 50, "donor b": 50}, {"donor a"}),
        ({"donor a": 100}, set()),
    ],
)
def test_few_donors(sizes, expected):
    split = draw_split(sizes, 0, {"validation": 0.1, "test": 0.0})
    assert set(split.held_out) == expected
    assert split.by == ("donor_id" if expected else "cell")


def test_load_dataset_reads_the_result_whole_and_streamed(corpus):
    folder = str(corpus.folder / "data")
    whole = datasets.load_dataset("parquet", data_dir=folder)
    assert {s: len(d) for s, d in whole.items()} == {s: corpus.n_cells(s) for s in ("train", "validation")}
    streamed = datasets.load_dataset("parquet", data_dir=folder, streaming=True)["validation"]
    for a, b in zip(streamed, whole["validation"], strict=True):
        assert a == b
    assert set(whole["train"].column_names) >= {"input_ids", "expression_values", "length", "split", "cell_type"}


def test_the_manifest_says_what_was_left_out(files, blood, tmp_path):
    odd = blood[:30].copy()
    odd.X = odd.X.copy()
    odd.X[:3] = 0
    odd.obs_names = ["same"] * 30
    odd.write_h5ad(tmp_path / "odd.h5ad")
    corpus = tokenize_corpus(
        [*files, tmp_path / "odd.h5ad"], tmp_path / "c", tokenizer="rank-value",
        tokenizer_options={"model_max_length": 100}, **QUIET,
    )  # fmt: skip
    file = corpus.manifest["files"][3]
    assert file["duplicate_names"] == 29
    assert file["report"]["cells_without_genes"] == 3
    lengths = np.diff(odd.X.tocsr().indptr) * (np.asarray(odd.X.sum(1)).ravel() > 0)
    assert file["report"]["cells_cut"] == (lengths > 99).sum()
    assert file["report"]["tokens_cut"] == np.maximum(lengths - 99, 0).sum()
    assert "29 duplicate cell names" in corpus.summary()
    assert "converted to rows" in corpus.manifest["files"][2]["notes"][0]


def test_a_vocabulary_is_used_as_it_is(files, corpus, tmp_path):
    again = tokenize_corpus(files[2:], tmp_path / "c", vocabulary=corpus.tokenizer_folder, **QUIET)
    assert again.tokenizer().vocabulary == corpus.tokenizer().vocabulary
    with pytest.raises(GeneCoverageError, match=r"part0\.h5ad: the vocabulary covers"):
        tokenize_corpus(files[:1], tmp_path / "d", vocabulary=corpus.tokenizer_folder, gene_column="index", **QUIET)


def test_the_least_coverage_is_an_option(blood, tmp_path):
    names = [f"ENSG{i:011d}" for i in range(blood.n_vars)]
    whole, other = blood.copy(), blood.copy()
    whole.var_names = names
    other.var_names = [n if i % 10 == 0 else f"other{i}" for i, n in enumerate(names)]
    for cells, name in ((whole, "whole"), (other, "other")):
        cells.write_h5ad(tmp_path / f"{name}.h5ad")
    corpus = tokenize_corpus([tmp_path / "whole.h5ad"], tmp_path / "c", **QUIET)
    command = ["tokenize", str(tmp_path / "other.h5ad"), "-o", str(tmp_path / "d"), "--processes", "1"]
    command += ["--vocabulary", str(corpus.folder)]
    refused = CliRunner().invoke(app, command)
    assert isinstance(refused.exception, GeneCoverageError)
    assert "min_coverage" in str(refused.exception)
    accepted = CliRunner().invoke(app, [*command, "--option", "min_coverage=0.001", "--overwrite"])
    assert accepted.exit_code == 0, accepted.output
    assert Corpus.open(tmp_path / "d").tokenizer().min_coverage == 0.001
    again = CliRunner().invoke(app, [*command, "--option", "min_coverage=0.9", "--overwrite"])
    assert isinstance(again.exception, GeneCoverageError)
    assert Corpus.open(tmp_path / "d").tokenizer().min_coverage == 0.001  # a refused run leaves the earlier corpus
    with pytest.raises(ValueError, match="has no option nope; its options: .*min_coverage"):
        tokenize_corpus([tmp_path / "other.h5ad"], tmp_path / "e", tokenizer_options={"nope": 3}, **QUIET)


def test_genes_tables_and_options(files, tmp_path):
    corpus = tokenize_corpus(
        files, tmp_path / "c", tokenizer="rank-value", tokenizer_options={"total": "vocabulary"},
        genes=[f"ENSG{i:011d}" for i in range(700)], rename={"cell_type": "label"}, obs_columns=["cell_type"], **QUIET,
    )  # fmt: skip
    tokenizer = corpus.tokenizer()
    assert tokenizer.total == "vocabulary"
    assert len(tokenizer.vocabulary.genes) <= 700
    assert "label" in rows(corpus).columns
    with pytest.raises(ValueError, match="no file has a column batch in obs"):
        tokenize_corpus(files, tmp_path / "d", obs_columns=["batch"], **QUIET)


# -------------------------------------------------------------------- processes, kills, resumes


def small_units(monkeypatch=None):
    """Small pieces of work, so that there are many."""
    from cellglot.tokenization.corpus import plan, tokenize

    for module, name, value in ((plan, "UNIT_CELLS", 40), (tokenize, "CHECKPOINT_SECONDS", -1.0)):
        if monkeypatch is None:
            setattr(module, name, value)
        else:
            monkeypatch.setattr(module, name, value)


def test_two_processes_give_the_bytes_of_one(files, tmp_path, monkeypatch):
    small_units(monkeypatch)
    one = tokenize_corpus(files, tmp_path / "one", processes=1, progress=False)
    done_here = {"statistics": 0, "tokens": 0}

    def slowly(method):
        work = getattr(Worker, method)

        def work_here(self, *arguments):
            done_here[method] += 1
            time.sleep(0.2)  # so that the other process, which has to start first, takes its part
            return work(self, *arguments)

        monkeypatch.setattr(Worker, method, work_here)

    slowly("statistics")
    slowly("tokens")
    two = tokenize_corpus(files, tmp_path / "two", processes=2, progress=False)
    units = len(one.manifest["plan"]["units"])
    assert units > 10
    assert all(0 < done < units for done in done_here.values()), (done_here, units)
    assert content(one.folder) == content(two.folder)


@pytest.mark.parametrize("tokenizer", ["rank-value", "exceiver"])
@pytest.mark.parametrize("by_donor", [True, False])
def test_how_much_is_read_at_once_changes_no_cell(files, tmp_path, monkeypatch, tokenizer, by_donor):
    files = files if by_donor else files[2:]
    usual = rows(tokenize_corpus(files, tmp_path / "usual", tokenizer=tokenizer, test_fraction=0.1, **QUIET))
    monkeypatch.setattr(corpus_worker, "METADATA_CELLS", 7)
    monkeypatch.setattr(corpus_worker, "CHUNK_VALUES", 2500)
    small = rows(tokenize_corpus(files, tmp_path / "small", tokenizer=tokenizer, test_fraction=0.1, **QUIET))
    pd.testing.assert_frame_equal(small, usual)
    assert small.split.nunique() == 3
    names = np.concatenate([ad.read_h5ad(path).obs_names for path in files])
    ordered = small.sort_values(["dataset_id", "cell_index"])
    assert ordered.cell_id.tolist() == names.tolist()


@pytest.mark.parametrize("tokenizer", ["rank-value", "exceiver"])
def test_counts_kept_from_the_first_pass_change_nothing(files, tmp_path, monkeypatch, tokenizer):
    read = []
    rows_of = corpus_worker.small_rows
    monkeypatch.setattr(corpus_worker, "small_rows", lambda *a: (read.append(a), rows_of(*a))[1])
    kept = tokenize_corpus(files, tmp_path / "kept", tokenizer=tokenizer, **QUIET)
    once = len(read)
    monkeypatch.setattr(KeptCounts, "_fits", lambda self, n_bytes: False)
    again = tokenize_corpus(files, tmp_path / "again", tokenizer=tokenizer, **QUIET)
    assert len(read) == 3 * once
    assert not (kept.folder / ".work").exists()
    assert content(kept.folder) == content(again.folder)


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from cellglot.tokenization.corpus import plan, tokenize
from cellglot.tokenization.corpus.worker import Worker
plan.UNIT_CELLS, tokenize.CHECKPOINT_SECONDS = 40, -1.0
left = {after}
work = getattr(Worker, {method!r})
def dying(self, *arguments):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return work(self, *arguments)
setattr(Worker, {method!r}, dying)
tokenize.tokenize_corpus({files!r}, {output!r}, processes=1, progress=False)
"""


@pytest.mark.parametrize(
    ("method", "after"), [pytest.param("statistics", 5, marks=pytest.mark.long), ("start_tokens", 7)]
)
def test_killed_and_started_again_it_gives_the_same_bytes(files, tmp_path, monkeypatch, method, after):
    small_units(monkeypatch)
    whole = tokenize_corpus(files, tmp_path / "whole", **QUIET)
    output = tmp_path / "killed"
    script = KILLED.format(
        tests=str(tmp_path), after=after, method=method, files=[str(f) for f in files], output=str(output)
    )
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert killed.returncode == -9
    with pytest.raises(CorpusError, match="unfinished corpus.* to resume it"):
        Corpus.open(output)
    if method == "statistics":
        assert (output / ".work" / "statistics-000005.npz").exists()
    else:  # what was being written may be lost
        after = len(list((output / ".work" / "units").glob("*.json")))
        assert after in (6, 7)
    done, calls = getattr(Worker, method), []
    monkeypatch.setattr(Worker, method, lambda self, *a: (calls.append(a), done(self, *a))[1])
    resumed = tokenize_corpus(files, output, **QUIET)
    assert len(calls) == len(whole.manifest["plan"]["units"]) - after
    assert content(resumed.folder) == content(whole.folder)


WAITING = """
import time
from cellglot.tokenization.corpus import plan, tokenize
from cellglot.tokenization.corpus.worker import Worker
plan.UNIT_CELLS = 40
if __name__ == "__main__":
    Worker.tokens = lambda self, *arguments: time.sleep(600)  # the helper alone writes
    tokenize.tokenize_corpus({files!r}, {output!r}, processes=2, progress=False)
"""


def test_helpers_end_with_the_process_that_is_killed(files, tmp_path, monkeypatch):
    small_units(monkeypatch)
    whole = tokenize_corpus(files, tmp_path / "whole", **QUIET)
    output = tmp_path / "killed"
    script = WAITING.format(files=[str(f) for f in files], output=str(output))
    run = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)])
    try:
        wait_until(lambda: list(output.glob(".work/units/*.json")) or run.poll() is not None)
        helpers = psutil.Process(run.pid).children(recursive=True)
        assert helpers
    finally:
        run.kill()
        run.wait()
    try:
        wait_until(lambda: all(map(ended, helpers)), seconds=30)
    finally:
        for process in (h for h in helpers if not ended(h)):
            process.kill()
    (output / "data" / "train-000000.parquet.1.tmp").write_text("left by a process that was killed")
    assert content(tokenize_corpus(files, output, **QUIET).folder) == content(whole.folder)


def ended(process):
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_until(condition, seconds=180):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_finished_corpus_is_not_made_again(corpus, blood_file, monkeypatch):
    monkeypatch.setattr(Worker, "tokens", None)
    again = tokenize_corpus([blood_file], corpus.folder, validation_fraction=0.2, **QUIET)
    assert again.manifest == corpus.manifest


def test_other_arguments_need_another_folder_or_overwriting(blood_file, files, tmp_path):
    first = tokenize_corpus([blood_file], tmp_path / "c", **QUIET)
    (tmp_path / "c" / "notes.txt").write_text("mine")
    with pytest.raises(CorpusError, match="with other split: choose another folder"):
        tokenize_corpus([blood_file], tmp_path / "c", seed=5, **QUIET)
    assert Corpus.open(tmp_path / "c").manifest == first.manifest
    other = tokenize_corpus(files, tmp_path / "c", overwrite=True, **QUIET)
    assert len(other.manifest["files"]) == 3
    assert (tmp_path / "c" / "notes.txt").read_text() == "mine"


# -------------------------------------------------------------------- bad input


@pytest.fixture
def broken(files, tmp_path):
    """A file whose cells break off while they are read: its head is whole, a chunk in its middle is not."""
    content = bytearray(files[0].read_bytes())
    with h5py.File(files[0]) as file:
        data = file["X/data"]
        # between the cells that are sampled when the file is opened (0 to 63, 125 to 188, 186 to 249)
        place = int(file["X/indptr"][95]) // data.chunks[0]
        chunk = data.id.get_chunk_info(place)
        assert file["X/indptr"][64] < place * data.chunks[0] < (place + 1) * data.chunks[0] < file["X/indptr"][125]
    content[chunk.byte_offset : chunk.byte_offset + chunk.size] = b"\x00" * chunk.size
    path = tmp_path / "broken.h5ad"
    path.write_bytes(bytes(content))
    return path


def test_broken_files_are_all_named(files, tmp_path):
    (tmp_path / "text.h5ad").write_text("no cells\n")
    (tmp_path / "short.h5ad").write_bytes(files[0].read_bytes()[:5000])
    bad = [tmp_path / "text.h5ad", tmp_path / "short.h5ad", tmp_path / "missing.h5ad"]
    with pytest.raises(CellFileError, match=r"(?s)3 of 6 files.*text: .*text file.*short: .*missing: .*--skip-broken"):
        tokenize_corpus([*files, *bad], tmp_path / "c", **QUIET)
    corpus = tokenize_corpus([*files, *bad], tmp_path / "c", skip_broken=True, **QUIET)
    assert sorted(corpus.manifest["broken"]) == ["missing", "short", "text"]
    assert len(rows(corpus)) == 700
    with pytest.raises(CellFileError, match="2 of 2 files"):
        tokenize_corpus(bad[:2], tmp_path / "d", skip_broken=True, **QUIET)


@pytest.mark.parametrize("method", ["statistics", "tokens"])
def test_a_file_that_breaks_while_it_is_read(files, broken, corpus, tmp_path, method):
    options = QUIET  # the vocabulary has none of the invented ids
    if method == "tokens":
        options = QUIET | {"vocabulary": corpus.tokenizer_folder, "tokenizer_options": {"min_coverage": 0.0}}
    given = [files[2], files[1]]
    plain = tokenize_corpus(given, tmp_path / "plain", **options)
    with pytest.raises(CorpusError, match="(?s)broken: .*Skip it with skip_broken"):
        tokenize_corpus([*given, broken], tmp_path / "c", **options)
    skipped = tokenize_corpus([*given, broken], tmp_path / "d", skip_broken=True, **options)
    assert list(skipped.manifest["broken"]) == ["broken"]
    assert "skipped broken" in skipped.summary()
    assert rows(skipped).equals(rows(plain))
    assert skipped.tokenizer().vocabulary == plain.tokenizer().vocabulary


def test_a_file_whose_metadata_is_cut_is_passed_over(files, blood, tmp_path):
    blood.write_h5ad(tmp_path / "short.h5ad")
    with h5py.File(tmp_path / "short.h5ad", "r+") as file:
        column, codes = file["obs/cell_type"], file["obs/cell_type/codes"][:100]
        del column["codes"]
        column["codes"] = codes
    corpus = tokenize_corpus([tmp_path / "short.h5ad", files[0]], tmp_path / "c", skip_broken=True, **QUIET)
    assert "100 values, but the matrix has 700 cells" in corpus.manifest["broken"]["short"]


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_10x_folder_whose_gzip_is_cut_is_passed_over(files, blood, tmp_path, share):
    folder = tmp_path / "10x"
    folder.mkdir()
    entries = sp.coo_matrix(blood.X.T.astype(int))
    text = "%%MatrixMarket matrix coordinate integer general\n"
    text += f"{blood.n_vars} {blood.n_obs} {entries.nnz}\n"
    text += "".join(f"{r + 1} {c + 1} {v}\n" for r, c, v in zip(entries.row, entries.col, entries.data, strict=True))
    content = gzip.compress(text.encode())
    (folder / "matrix.mtx.gz").write_bytes(content[: int(len(content) * share)])
    (folder / "barcodes.tsv").write_text("".join(f"{b}\n" for b in blood.obs_names))
    (folder / "features.tsv").write_text("".join(f"{g}\n" for g in blood.var_names))
    command = ["tokenize", str(folder), str(files[0]), "-o", str(tmp_path / "c"), "--skip-broken", "--processes", "1"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert list(Corpus.open(tmp_path / "c").manifest["broken"]) == ["10x"]
    assert "skipped 10x: " in result.output
    assert "matrix.mtx.gz" in result.output


def test_normalised_files_are_refused_by_name(blood, tmp_path):
    scaled = blood.copy()
    scaled.X = blood.X * 0.37
    scaled.write_h5ad(tmp_path / "scaled.h5ad")
    with pytest.raises(CellFileError, match="scaled.h5ad: .*not whole numbers"):
        tokenize_corpus([tmp_path / "scaled.h5ad"], tmp_path / "c", **QUIET)


def test_a_file_given_twice(files, tmp_path):
    with pytest.raises(ValueError, match="given twice: .*part0.h5ad"):
        tokenize_corpus([files[0], files[0]], tmp_path / "c", **QUIET)
    with pytest.raises(ValueError, match="no files"):
        tokenize_corpus([], tmp_path / "c", **QUIET)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokenizer": "words"}, "tokenizer 'words': it is one of exceiver, rank-value"),
        ({"validation_fraction": 1.0}, "together below 1"),
        ({"rename": {"nothing": "cell_type"}}, "no column 'nothing' in obs"),
        ({"genes": ["NOPE"]}, "no gene is left"),
    ],
)
def test_arguments_that_cannot_be(files, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        tokenize_corpus(files, tmp_path / "c", **QUIET, **options)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:-100]), "was cut short or changed"),
        (lambda p: p.write_bytes(b"x" * p.stat().st_size), "does not match the manifest"),
        (lambda p: p.unlink(), "is missing"),
    ],
)
def test_damaged_shards_are_named(blood_file, tmp_path, damage, message):
    corpus = tokenize_corpus([blood_file], tmp_path / "c", **QUIET)
    shard = corpus.folder / corpus.manifest["shards"][0]["file"]
    damage(shard)
    with pytest.raises(CorpusError, match=f"{shard.name}.*{message}"):
        Corpus.open(corpus.folder)


@pytest.mark.parametrize("damage", [lambda p: p.write_bytes(p.read_bytes()[:-100]), lambda p: p.unlink()])
def test_a_damaged_shard_is_repaired_by_overwriting(blood_file, tmp_path, damage):
    corpus = tokenize_corpus([blood_file], tmp_path / "c", **QUIET)
    whole = content(corpus.folder)
    damage(corpus.folder / corpus.manifest["shards"][0]["file"])
    with pytest.raises(CorpusError, match="again with --overwrite"):
        tokenize_corpus([blood_file], tmp_path / "c", **QUIET)
    tokenize_corpus([blood_file], tmp_path / "c", overwrite=True, **QUIET)
    assert content(corpus.folder) == whole


def test_no_corpus(tmp_path):
    with pytest.raises(CorpusError, match="contains no corpus"):
        Corpus.open(tmp_path)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EACCES])
def test_a_full_disk_leaves_nothing_that_passes_for_done(blood_file, tmp_path, monkeypatch, error):
    whole = tokenize_corpus([blood_file], tmp_path / "whole", **QUIET)
    write = pq.ParquetWriter.write_table

    def failing(self, table, **options):
        write(self, table.slice(0, len(table) // 2), **options)
        raise OSError(error, os.strerror(error), "shard")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", failing)
    with pytest.raises(OSError, match=os.strerror(error)):
        tokenize_corpus([blood_file], tmp_path / "c", **QUIET)
    assert not list((tmp_path / "c").rglob("*.parquet*"))
    with pytest.raises(CorpusError, match="unfinished"):
        Corpus.open(tmp_path / "c")
    monkeypatch.undo()
    assert content(tokenize_corpus([blood_file], tmp_path / "c", **QUIET).folder) == content(whole.folder)


@pytest.mark.parametrize(
    ("split", "at_the_end"),
    [
        ("train", False),
        ("validation", True),
        pytest.param("train", True, marks=pytest.mark.long),
        pytest.param("validation", False, marks=pytest.mark.long),
    ],
)
def test_a_shard_of_any_split_that_cannot_be_written_is_an_error(files, tmp_path, monkeypatch, split, at_the_end):
    small_units(monkeypatch)
    monkeypatch.setattr(token_shards, "ROW_GROUP_CELLS", 1 << 20 if at_the_end else 1)
    options = QUIET | {"validation_fraction": 0.3}
    whole = tokenize_corpus(files, tmp_path / "whole", **options)
    flush, left = token_shards.ShardWriter._flush, 3

    def failing(self, of):
        nonlocal left
        flush(self, of)
        left -= of == split
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "shard")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space"):
        patched.setattr(token_shards.ShardWriter, "_flush", failing)
        tokenize_corpus(files, tmp_path / "c", **options)
    assert not list((tmp_path / "c").rglob("*.tmp"))
    assert content(tokenize_corpus(files, tmp_path / "c", **options).folder) == content(whole.folder)


def test_a_folder_that_cannot_be_written(blood_file, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="which is not a folder: choose a folder"):
        tokenize_corpus([blood_file], tmp_path / "file" / "c", **QUIET)


def test_every_cell_is_there_once(files, tmp_path, monkeypatch):
    small_units(monkeypatch)
    corpus = tokenize_corpus(files, tmp_path / "c", validation_fraction=0.2, **QUIET)
    seen = Counter(zip(rows(corpus).dataset_id, rows(corpus).cell_index, strict=True))
    assert set(seen.values()) == {1}
    assert len(seen) == 700
    assert json.loads((corpus.folder / "manifest.json").read_text()) == corpus.manifest
