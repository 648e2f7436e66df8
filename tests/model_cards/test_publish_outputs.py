"""What publishing does to a folder: its own files are replaced, everything else stays as it is."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cellglot.model_cards import publishing
from cellglot.model_cards.prepare.staging import CORPUS_FILES, MODEL_FILES, stage_files
from cellglot.model_cards.publishing import publish
from cellglot.outputs import MANIFEST_FILE, OutputError
from cellglot.outputs.processes import own_mark


@pytest.fixture
def staged_only(monkeypatch, folders):
    """Publish three small files, without the check of numbers."""
    from cellglot.model_cards.checks.clean_process import Outcome
    from cellglot.model_cards.prepare.staging import Prepared, Staged

    def prepare(kind, source, target):
        for name in ("config.json", "README.md", "text_tokenizer/tokenizer.json"):
            (target / name).parent.mkdir(exist_ok=True)
            (target / name).write_text('{"model_type": "sccello"}' if name[-5:] == ".json" else "---\ncellglot\n---")
        return Prepared(Staged(target), {}, Outcome({}, {}, {}, {}))

    monkeypatch.setattr(publishing, "_prepare", prepare)
    monkeypatch.setattr(publishing, "visit_as_stranger", lambda job: Outcome({}, {}, {}, {}))
    return folders["sccello"]


def names(folder):
    return sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob("*") if p.is_file())


PUBLISHED = [MANIFEST_FILE, "README.md", "config.json", "text_tokenizer/tokenizer.json"]


def test_overwriting_replaces_what_was_published_and_keeps_the_rest(staged_only, details, tmp_path):
    output = tmp_path / "published"
    publish(staged_only, output=output, details=details())
    assert names(output) == PUBLISHED and os.listdir(tmp_path) == ["published"]
    (output / "notes").mkdir()
    (output / "notes" / "plan.md").write_text("mine")
    (output / "README.md").write_text("a card that somebody wrote")
    with pytest.raises(ValueError, match="is not empty"):
        publish(staged_only, output=output, details=details())
    publish(staged_only, output=output, details=details(), overwrite=True)
    assert names(output) == sorted([*PUBLISHED, "notes/plan.md", "README.md.changed"])
    assert (output / "README.md.changed").read_text() == "a card that somebody wrote"


def test_a_folder_of_an_earlier_version_is_replaced_file_by_file(staged_only, details, tmp_path):
    output = tmp_path / "published"
    publish(staged_only, output=output, details=details())
    (output / MANIFEST_FILE).unlink()
    (output / "model.safetensors").write_text("of the earlier model")
    (output / "mine.txt").write_text("mine")
    publish(staged_only, output=output, details=details(), overwrite=True)
    assert names(output) == sorted([*PUBLISHED, "mine.txt"])


@pytest.mark.parametrize("kind", ["project", "input", "above the input", "repository", "model"])
def test_folders_of_somebody_else_are_refused_with_all_that_they_hold(staged_only, details, tmp_path, kind):
    source = tmp_path / "work" / "model"
    shutil.copytree(staged_only, source)
    project = tmp_path / "project"
    (project / "data").mkdir(parents=True)
    for name in ("README.md", "thesis.tex", "data/cells.h5ad"):
        (project / name).write_text("mine")
    if kind == "repository":
        (project / ".git").mkdir()
    if kind == "model":
        shutil.copytree(staged_only, tmp_path / "other")
    output = {"project": project, "input": source, "above the input": source.parent, "repository": project,
              "model": tmp_path / "other"}[kind]  # fmt: skip
    before = {folder: names(folder) for folder in (source, project)}
    with pytest.raises(ValueError, match="choose|Choose"):
        publish(source, output=output, details=details(), overwrite=True)
    assert before == {folder: names(folder) for folder in (source, project)}


def test_what_a_killed_run_left_goes_and_what_others_do_stays(staged_only, details, tmp_path):
    code = "import sys, tempfile; from cellglot.outputs.processes import own_mark as m\n"
    code += "print(tempfile.mkdtemp(dir=sys.argv[1], prefix=f'.publishing-{m()}-'))"
    killed = Path(subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True,
                                 text=True).stdout.strip())  # fmt: skip
    (killed / "model").mkdir()
    (killed / "model" / "model.safetensors").write_text("half")
    at_work = tmp_path / f".publishing-{own_mark()}-x"
    at_work.mkdir()
    (tmp_path / ".publishing-mine").mkdir()
    publish(staged_only, output=tmp_path / "published", details=details())
    assert not killed.exists()
    assert {at_work.name, ".publishing-mine", "published"} == set(os.listdir(tmp_path))


def test_a_dry_run_writes_nothing(staged_only, details, tmp_path):
    publish(staged_only, output=tmp_path / "new" / "published", details=details(), dry_run=True)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("where", ["file", "folder", "relative", "hard"])
def test_links_are_not_staged(tmp_path, where):
    source, target, secret = tmp_path / "source", tmp_path / "target", tmp_path / "secret"
    for folder in (source, target, secret):
        folder.mkdir()
    (secret / "tokenizer.json").write_text('{"token": "secret"}')
    (source / "config.json").write_text("{}")
    if where == "file":
        (source / "tokenizer_config.json").symlink_to(secret / "tokenizer.json")
    elif where == "relative":
        (source / "tokenizer_config.json").symlink_to("../secret/tokenizer.json")
    elif where == "folder":
        (source / "text_tokenizer").symlink_to(secret)
    else:  # a hard link is a file like any other
        os.link(source / "config.json", source / "tokenizer_config.json")
        stage_files(source, target, MODEL_FILES)
        assert names(target) == ["config.json", "tokenizer_config.json"]
        return
    with pytest.raises(ValueError, match="link"):
        stage_files(source, target, MODEL_FILES)
    assert "secret" not in "".join(p.read_text() for p in target.rglob("*.json"))


def test_links_of_the_hubs_cache_are_resolved_inside_it(tmp_path):
    cache, target = tmp_path / "models--owner--name", tmp_path / "target"
    source = cache / "snapshots" / "abc"
    for folder in (source, cache / "blobs", target):
        folder.mkdir(parents=True)
    (cache / "blobs" / "1").write_text("{}")
    (source / "config.json").symlink_to("../../blobs/1")
    stage_files(source, target, MODEL_FILES)
    assert (target / "config.json").is_file() and not (target / "config.json").is_symlink()
    (tmp_path / "outside.json").write_text("{}")
    (source / "gene_vocab.json").symlink_to(tmp_path / "outside.json")
    with pytest.raises(ValueError, match="link"):
        stage_files(source, target, MODEL_FILES)


def test_of_a_corpus_only_what_its_manifest_names_is_published(corpus, details, tmp_path, no_process):
    source = tmp_path / "tokens"
    shutil.copytree(corpus.folder, source)
    shutil.copy(next((source / "data").glob("train-*")), source / "data" / "patients.parquet")
    (source / "tokenizer" / "private.json").write_text("{}")
    done = publish(source, output=tmp_path / "new", details=details())
    shards = {shard["file"] for shard in corpus.manifest["shards"]}
    assert shards <= set(done.files) and {"data/patients.parquet", "tokenizer/private.json"} <= set(done.left_out)
    assert not {"data/patients.parquet", "tokenizer/private.json"} & set(names(tmp_path / "new"))
    assert set(CORPUS_FILES) & set(done.files)
    (source / "data" / "train-000000.parquet").unlink()
    (source / "data" / "train-000000.parquet").symlink_to(corpus.folder / "data" / "train-000000.parquet")
    with pytest.raises((ValueError, OutputError), match="link"):
        publish(source, output=tmp_path / "linked", details=details())
    assert not (tmp_path / "linked").exists()
