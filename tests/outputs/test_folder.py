"""Output folders know their own files; nothing else in them is touched."""

import json
import os
import shutil

import pytest

from cellglot.outputs import MANIFEST_FILE, LockedError, OutputError, OutputFolder


FILES = {
    "tokenize": ["manifest.json", "data/train-000000.parquet", "tokenizer/gene_vocab.json", ".work/units/000000.json"],
    "pretrain": ["config.json", "model.safetensors", "checkpoint-5/trainer_state.json", "modeling_sccello.py"],
    "finetune": ["adapter_config.json", "adapter_model.safetensors", "training_run.json"],
    "convert": ["config.json", "model.safetensors", "README.md"],
    "evaluate": ["evaluation.json", "umap_a_cell_type.png"],
}
FOREIGN = ["notes.txt", "data/cells.h5ad", "data/extra.parquet", "tokenizer/mine.txt", "train.py", "umap_mine.svg"]


def _write(folder, names, text="ours"):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def _names(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("finished", [True, False])
def test_clearing_deletes_the_files_of_the_run_and_nothing_else(tmp_path, kind, finished):
    _write(tmp_path, FOREIGN, "mine")
    with OutputFolder(tmp_path, kind) as folder:
        assert folder.own == [] and not folder.was_finished
        _write(tmp_path, FILES[kind])
        if finished:
            folder.finish()
    with OutputFolder(tmp_path, kind) as folder:
        assert folder.own == sorted(FILES[kind]) and folder.was_finished is finished
        assert folder.clear() == []
    assert _names(tmp_path) == sorted(FOREIGN)
    assert all((tmp_path / name).read_text() == "mine" for name in FOREIGN)


@pytest.mark.parametrize("kind", FILES)
def test_a_foreign_file_at_a_name_to_be_written_is_refused_before_anything_is_written(tmp_path, kind):
    for name in FILES[kind]:
        folder = tmp_path / name.replace("/", "-")
        _write(folder, [name], "mine")
        with pytest.raises(OutputError, match=name.split("/")[-1]), OutputFolder(folder, kind):
            pass
        assert _names(folder) == [name]


def test_files_that_were_changed_are_kept_under_another_name(tmp_path):
    with OutputFolder(tmp_path, "tokenize") as folder:
        _write(tmp_path, FILES["tokenize"])
        folder.finish()
    (tmp_path / "manifest.json").write_text("what somebody made of it")
    copy = tmp_path.with_name("copy")
    shutil.copytree(tmp_path, copy, copy_function=shutil.copyfile)  # other times, the same bytes
    for place in (tmp_path, copy):
        with OutputFolder(place, "tokenize") as folder:
            assert folder.clear() == [place / "manifest.json.changed"]
        assert _names(place) == ["manifest.json.changed"]


def test_a_file_added_later_at_a_name_of_ours_is_not_ours(tmp_path):
    with OutputFolder(tmp_path, "tokenize") as folder:
        _write(tmp_path, FILES["tokenize"])
        folder.finish()
    _write(tmp_path, ["data/test-000001.parquet"], "mine")
    with pytest.raises(OutputError, match="test-000001"), OutputFolder(tmp_path, "tokenize"):
        pass


@pytest.mark.parametrize(
    ("first", "second"), [("pretrain", "tokenize"), ("convert", "finetune"), ("tokenize", "convert")]
)
def test_a_result_of_another_kind_is_refused(tmp_path, first, second):
    with OutputFolder(tmp_path, first) as folder:
        _write(tmp_path, FILES[first])
        folder.finish()
    with pytest.raises(OutputError, match="cannot be written to it"), OutputFolder(tmp_path, second):
        pass
    with OutputFolder(tmp_path, "evaluate") as folder:  # may lie beside a model
        _write(tmp_path, FILES["evaluate"])
        folder.finish()
    with OutputFolder(tmp_path, first) as folder:
        folder.clear()
    assert _names(tmp_path) == sorted([MANIFEST_FILE, *FILES["evaluate"]])


def test_a_run_that_is_refused_leaves_a_finished_result_finished(tmp_path):
    with OutputFolder(tmp_path / "out", "tokenize") as folder:
        _write(tmp_path / "out", FILES["tokenize"])
        folder.finish()
    before = (tmp_path / "out" / MANIFEST_FILE).read_bytes()
    with pytest.raises(ValueError, match="other settings"), OutputFolder(tmp_path / "out", "tokenize"):
        raise ValueError("other settings")
    assert (tmp_path / "out" / MANIFEST_FILE).read_bytes() == before
    with pytest.raises(ValueError), OutputFolder(tmp_path / "new", "tokenize"):
        raise ValueError("cells cannot be read")
    assert not (tmp_path / "new").exists()


def test_folders_of_earlier_versions_are_recognised_by_what_they_hold(tmp_path):
    corpus, model = tmp_path / "corpus", tmp_path / "model"
    _write(corpus, [*FILES["tokenize"], "notes.txt"])
    (corpus / "manifest.json").write_text(json.dumps({"format_version": 1, "shards": [], "plan": {}}))
    with OutputFolder(corpus, "tokenize") as folder:
        assert folder.own == sorted(FILES["tokenize"])
        folder.clear()
    assert _names(corpus) == ["notes.txt"]
    _write(model, ["model.safetensors", "training_run.json"])
    (model / "training_run.json").write_text(json.dumps({"cellglot": "0.1.0"}))
    for kind in ("tokenize", "convert"):
        with pytest.raises(OutputError, match="cannot be written to it"), OutputFolder(model, kind):
            pass
    with OutputFolder(model, "pretrain") as folder:
        assert folder.own == ["model.safetensors", "training_run.json"]


def test_links_are_neither_followed_nor_replaced(tmp_path):
    mine, output = tmp_path / "mine", tmp_path / "out"
    _write(mine, ["train-000000.parquet"], "mine")
    output.mkdir()
    (output / "data").symlink_to(mine)
    with pytest.raises(OutputError, match="link"), OutputFolder(output, "tokenize"):
        pass
    (output / "data").unlink()
    with OutputFolder(output, "tokenize") as folder:
        _write(output, FILES["tokenize"])
        (output / ".work" / "elsewhere").symlink_to(mine)
        folder.clear()
    assert _names(mine) == ["train-000000.parquet"]


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"format_version": 9, "outputs": {}}', '{"format_version": 1, "outputs": {"x": {}}}',
                '{"format_version": 1, "outputs": {"tokenize": {"files": []}}}']
)  # fmt: skip
def test_a_damaged_manifest_is_named(tmp_path, content):
    (tmp_path / MANIFEST_FILE).write_text(content)
    with pytest.raises(OutputError, match=MANIFEST_FILE), OutputFolder(tmp_path, "tokenize"):
        pass


def test_a_manifest_cannot_name_files_outside_or_of_others(tmp_path):
    output, victims = tmp_path / "out", ["out/notes.txt", "beside.txt"]
    _write(tmp_path, victims, "mine")
    files = {name: {"bytes": 4, "sha256": ""} for name in ("../beside.txt", str(tmp_path / "beside.txt"), "notes.txt")}
    record = {"finished": True, "files": files}
    (output / MANIFEST_FILE).write_text(json.dumps({"format_version": 1, "outputs": {"tokenize": record}}))
    with OutputFolder(output, "tokenize") as folder:
        folder.clear()
    assert [n for n in victims if (tmp_path / n).exists()] == victims


def test_one_run_at_a_time_and_inputs_are_checked(tmp_path):
    _write(tmp_path, ["out/cells.h5ad"])
    with (
        pytest.raises(OutputError, match="input"),
        OutputFolder(tmp_path / "out", "tokenize", [tmp_path / "out" / "cells.h5ad"]),
    ):
        pass
    assert os.listdir(tmp_path / "out") == ["cells.h5ad"]
    import threading

    refused = []

    def second():
        try:
            with OutputFolder(tmp_path / "other", "tokenize"):
                pass
        except LockedError as error:
            refused.append(error)

    with OutputFolder(tmp_path / "other", "tokenize"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert len(refused) == 1
