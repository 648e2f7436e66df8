import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cellglot.tokenization.corpus import shuffling, tokenize
from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.tokenization.corpus.tokenize import tokenize_corpus


OPTIONS = {"validation_fraction": 0.2, "processes": 1, "progress": False, "shuffle": True}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Several temporary files and shards for few cells."""
    monkeypatch.setattr(shuffling, "BUCKET_TOKENS", 40_000)
    monkeypatch.setattr(shuffling, "SHARD_CELLS", 100)


def cells_of(corpus, split):
    return pa.concat_tables([pq.read_table(shard) for shard in corpus.shards(split)])


def test_a_shuffled_corpus_has_the_same_cells(corpus, blood_file, tmp_path, monkeypatch):
    made = tokenize_corpus([blood_file], tmp_path / "whole", **OPTIONS)
    for split in ("train", "validation"):
        assert made.n_cells(split) == corpus.n_cells(split)
        there, here = cells_of(corpus, split), cells_of(made, split)
        assert there.sort_by("cell_index").combine_chunks().equals(here.sort_by("cell_index").combine_chunks())
        order = here["cell_index"].to_numpy()
        assert abs(np.corrcoef(order, np.arange(len(order)))[0, 1]) < 0.2
    assert len(made.shards("train")) > 4
    assert {f"data/{p.name}" for p in (made.folder / "data").iterdir()} == {s["file"] for s in made.manifest["shards"]}

    def stopped(output, folder):
        shard = next(path for path in folder.iterdir() if path.name == "train-000000.parquet")
        shutil.move(shard, output / "data" / shard.name)  # in place of the one of the unit
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shuffling, "_put_in_place", stopped)
        with pytest.raises(KeyboardInterrupt):
            tokenize_corpus([blood_file], tmp_path / "again", **OPTIONS)
    with monkeypatch.context() as patch:
        patch.setattr(tokenize._Run, "_in_order", lambda *arguments: iter(()))  # no cell is read again
        patch.setattr(tokenize._Run, "_job", lambda *arguments: None)
        again = tokenize_corpus([blood_file], tmp_path / "again", **OPTIONS)
    assert again.manifest["shards"] == made.manifest["shards"]
    assert Corpus.open(again.folder).manifest == again.manifest
    assert not (again.folder / ".work").exists()
