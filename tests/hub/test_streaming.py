"""A corpus on a Hub on this machine, read by ranges while a model trains on it."""

import json

import pytest
from huggingface_hub import constants
from local_hub import LocalHub, Repository

from cellglot.inputs import network
from cellglot.tokenization.corpus import sources
from cellglot.tokenization.corpus.check import CorpusError
from cellglot.tokenization.corpus.corpus import Corpus
from cellglot.training.config import configs_folder, load_config
from cellglot.training.data import streaming
from cellglot.training.pretraining.pretrain import pretrain


ADDRESS = "hf://datasets/lab/cells"
SETTINGS = ["trainer.per_device_train_batch_size=64", "trainer.max_steps=2", "trainer.logging_steps=1",
            "trainer.eval_strategy=no", "trainer.save_strategy=no", "trainer.use_cpu=true"]  # fmt: skip


@pytest.fixture(scope="module")
def hub(corpus):
    """A Hub with the blood cells, which the client of this process reaches."""
    import fsspec
    from huggingface_hub import HfFileSystem

    with LocalHub() as hub, pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "ENDPOINT", hub.address)
        patch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        patch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
        patch.setattr(network, "PAUSE_SECONDS", 0.01)
        HfFileSystem.clear_instance_cache()
        files = {str(path.relative_to(corpus.folder)): path.read_bytes() for path in corpus.folder.rglob("*")
                 if path.is_file()}  # fmt: skip
        made = hub.repositories["dataset", "lab/cells"] = Repository(False, {})
        hub.commit(made, {name: hub.store(content) for name, content in files.items()})
        yield hub
        HfFileSystem.clear_instance_cache()
    assert fsspec.get_filesystem_class("hf") is HfFileSystem


def losses(folder):
    log = json.loads((folder / "training_run.json").read_text())["log"]
    return [entry["loss"] for entry in log if "loss" in entry]


def test_a_model_trains_on_a_corpus_of_the_hub_as_on_a_folder(hub, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "BUFFER_TOKENS", 20_000)
    config = load_config(configs_folder() / "exceiver_tiny.yaml", SETTINGS)
    pretrain(config, ADDRESS, tmp_path / "hub")
    pretrain(config, corpus, tmp_path / "folder")
    assert len(losses(tmp_path / "hub")) == 2
    assert losses(tmp_path / "hub") == losses(tmp_path / "folder")
    assert hub.ranges  # no shard was read whole
    opened = Corpus.open(f"{ADDRESS}/")
    commit = hub.repositories["dataset", "lab/cells"].commits[-1][0]
    assert opened.source == f"hf://datasets/lab/cells@{commit}"
    assert opened.folder.name == "cells"
    assert opened.summary() == corpus.summary()


def test_a_source_that_breaks_off_is_read_again_and_named_in_the_end(hub, monkeypatch):
    opened = Corpus.open(ADDRESS)
    shard, tries = opened.shards("validation")[0], []
    real = sources.open_parquet

    def breaks(times):
        def open_parquet(path, footer=None):
            tries.append(path)
            if len(tries) <= times:
                raise ConnectionResetError("the connection was closed")
            return real(path, footer)

        return open_parquet

    monkeypatch.setattr("cellglot.training.data.blocks.open_parquet", breaks(2))
    cells = streaming.StreamedCells(opened, "validation")
    assert len(tries) == 3
    assert len(cells[0]["input_ids"]) > 0
    tries.clear()
    monkeypatch.setattr("cellglot.training.data.blocks.open_parquet", breaks(99))
    with pytest.raises(
        CorpusError, match=r"train-0.* could not be read in 4 tries \(the connection was closed\): check"
    ):
        streaming.StreamedCells(opened, "train")
    assert shard.startswith("hf://")


def test_a_source_that_stalls_is_given_up(hub, monkeypatch):
    import threading

    monkeypatch.setattr(network, "STALLED_SECONDS", 0.05)
    stalled = threading.Event()
    with pytest.raises(CorpusError, match=r"s3://a/b could not be read in 4 tries \(no answer within 0\.05 s\)"):
        sources.retried("s3://a/b", stalled.wait)
    stalled.set()


def test_shards_that_do_not_match_the_manifest_are_named(hub, corpus):
    repository = hub.repositories["dataset", "lab/cells"]
    name = next(s["file"] for s in corpus.manifest["shards"] if s["split"] == "train")
    whole = repository.commits[-1][1]
    for changed, removed, what in (
        ({name: hub.store(b"PAR1")}, (), "has 4 bytes, but the manifest says"),
        ({}, (name,), "is missing: publish the whole corpus again"),
        ({}, ("manifest.json",), r"contains no corpus \(no manifest\.json\)"),
        ({}, ("tokenizer/gene_vocab.json",), r"gene_vocab\.json is missing: publish the whole corpus"),
    ):
        hub.commit(repository, whole | changed, removed)
        with pytest.raises(CorpusError, match=what):
            Corpus.open(ADDRESS)
        hub.commit(repository, whole)
    with pytest.raises(CorpusError, match="hf://datasets/lab/none"):
        Corpus.open("hf://datasets/lab/none")
    with pytest.raises(CorpusError, match="nowhere"):
        Corpus.open("nowhere://a/b")
