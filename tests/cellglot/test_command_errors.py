"""Errors in what was given: one message that names what is wrong, no trace, exit status 2."""

import json
import subprocess
import sys

import numpy as np
import pytest


@pytest.fixture(scope="module")
def files(blood, tmp_path_factory):
    """A folder with files of cells that are wrong, each in its own way."""
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "text.h5ad").write_text("gene,count\nCD3D,4\n")
    (folder / "folder").mkdir()
    cells = blood[:20].copy()
    cells.write_h5ad(folder / "good.h5ad")
    values = cells.X.toarray().astype("float32")
    cells.X = values / values.sum(1, keepdims=True) * np.random.default_rng(0).uniform(0.5, 2, values.shape)
    cells.write_h5ad(folder / "normalised.h5ad")
    return folder


ERRORS = {
    "missing file": ("tokenize none.h5ad -o new", "none.h5ad does not exist"),
    "text named h5ad": ("tokenize text.h5ad -o new", "text.h5ad is a text file, not HDF5"),
    "normalised data": ("tokenize normalised.h5ad -o new", "no raw counts in normalised.h5ad"),
    "unknown layer": ("tokenize good.h5ad -o new --layer spliced", "has no 'spliced'"),
    "unknown tokenizer": ("tokenize good.h5ad -o new --tokenizer words", "'words': it is one of exceiver, rank-value"),
    "no pair": ("tokenize good.h5ad -o new --rename celltype", "--rename 'celltype': write it as KEY=VALUE"),
    "unknown column": ("tokenize good.h5ad -o new --obs-column weather", "no file has a column weather"),
    "missing list": ("tokenize good.h5ad -o new --genes none.txt", "none.txt"),
    "unknown model": ("embed nowhere good.h5ad -o new.npy", "nowhere is not a folder, and not a repository"),
    "no model": ("embed folder good.h5ad -o new.npy", "folder holds no config.json"),
    "model to tune": ("finetune nowhere --cells good.h5ad -o new", "nowhere is not a folder, and not a repository"),
    "unknown repository": (
        "embed nobody/nothing good.h5ad -o new.npy",
        "nobody/nothing is not a folder, and not a repos",
    ),
    "no cells to tune": ("finetune folder -o new", "pass cells by --cells, or their tokens by --corpus"),
    "unknown configuration": ("pretrain --config none.yaml --corpus folder -o new", "no configuration none.yaml"),
    "no corpus": ("pretrain --config exceiver_tiny.yaml --corpus folder -o new", "folder contains no corpus"),
    "unknown system": (
        "convert word2vec none.ckpt -o new",
        "'word2vec': it is one of exceiver, sccello, langcell",
    ),
    "missing checkpoint": ("convert exceiver none.ckpt -o new", "none.ckpt does not exist"),
    "no labels named": ("demo --cells good.h5ad -o new", "--labels COLUMN"),
    "unknown labels": ("demo --cells good.h5ad --labels weather -o new", "no column 'weather' in obs"),
    "few cells": ("demo --cells good.h5ad --labels cell_type -o new", "the demo takes 100 cells or more"),
}


@pytest.mark.parametrize(("command", "message"), ERRORS.values(), ids=ERRORS)
def test_what_is_wrong_is_named(cellglot_command, files, monkeypatch, command, message):
    monkeypatch.chdir(files)
    done = cellglot_command(*command.split())
    assert done.status == 2
    assert message in done.err
    lines = [line for line in done.err.splitlines() if line.strip()]
    assert lines[0].startswith("error: ")
    assert len(lines) == 1
    assert not (files / "new.npy").exists() and not (files / "new" / "manifest.json").exists()


BEFORE_PYTORCH = {
    "annotate nowhere good.h5ad -o new.h5ad": "nowhere is not a folder",
    "annotate model good.h5ad -o new.h5ad --adapter nowhere": "nowhere is not a folder",
    "annotate model good.h5ad -o new.h5ad --dtype int": "dtype 'int'",
    "annotate model good.h5ad -o new.csv": "new.csv: annotated cells are written as .h5ad",
    "embed nowhere good.h5ad -o new.npy": "nowhere is not a folder",
    "embed model none.h5ad -o new.npy": "none.h5ad does not exist",
    "embed model good.h5ad -o new.csv": "new.csv: embeddings are written as",
    "query nowhere good.h5ad text": "nowhere is not a folder",
    "query model none.h5ad text": "none.h5ad does not exist",
    "evaluate nowhere --cells good.h5ad -o new": "nowhere is not a folder",
    "evaluate model --cells good.h5ad -o new --tasks cooking": "task 'cooking'",
    "finetune nowhere --cells good.h5ad -o new": "nowhere is not a folder",
    "finetune model --cells none.h5ad -o new": "none.h5ad does not exist",
    "finetune model --cells good.h5ad -o new --task magic": "task 'magic'",
    "finetune model --cells good.h5ad -o new --config none.yaml": "no configuration none.yaml",
    "pretrain --config exceiver_tiny.yaml --cells none.h5ad -o new": "none.h5ad does not exist",
    "publish nowhere --dry-run": "nowhere is not a folder",
    "publish model": "name a repository",
    "convert exceiver none.ckpt -o new": "none.ckpt does not exist",
    "demo --cells none.h5ad --labels cell_type -o new": "none.h5ad does not exist",
}


def test_names_and_options_are_checked_before_pytorch_is_imported(files):
    (files / "model").mkdir()
    (files / "model" / "config.json").write_text("{}")
    code = (
        "import contextlib, io, json, sys\n"
        "from cellglot.cli import main\n"
        "for command in json.loads(sys.argv[1]):\n"
        "    sys.argv[1:], said = command.split(), io.StringIO()\n"
        "    with contextlib.redirect_stderr(said), contextlib.suppress(SystemExit):\n"
        "        main()\n"
        "    print(json.dumps([command, said.getvalue(), 'torch' in sys.modules]))\n"
    )
    words = [sys.executable, "-c", code, json.dumps(list(BEFORE_PYTORCH))]
    done = subprocess.run(words, cwd=files, capture_output=True, text=True, check=True)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [command for command, *_ in found] == list(BEFORE_PYTORCH)
    for command, said, loaded in found:
        assert BEFORE_PYTORCH[command] in said and not loaded, command


def test_a_damaged_checkpoint_is_named(cellglot_command, files, tmp_path):
    done = cellglot_command("convert", "exceiver", files / "text.h5ad", "-o", tmp_path / "new")
    assert done.status == 2
    assert done.err.startswith(f"error: {files / 'text.h5ad'} cannot be read safely")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tokenize", "good.h5ad"], "Missing option '--output'"),
        (["tokenize", "good.h5ad", "-o", "new", "--seed", "two"], "Invalid value for '--seed'"),
        (["embed", "folder", "good.h5ad", "-o", "new.npy", "--colour", "x"], "No such option"),
        (["embd"], "No such command 'embd'"),
    ],
)
def test_misuse(cellglot_command, arguments, message):
    done = cellglot_command(*arguments)
    assert done.status == 2
    assert message in done.err
    assert "Traceback" not in done.err
