import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from cellglot.model_cards.content_scan import Cleaned, UnsafeContentError, clean_json, scan_folder, scan_text


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ("/home/ada/models/base", "base"),
        ("/somewhere/odd/base/", "base"),
        ("~/models/base", "base"),
        (r"C:\models\base", "base"),
        ("file:///data/cells.h5ad", "cells.h5ad"),
        (
            "cellglot evaluate /scratch/ada/model --cells /data/x/cells.h5ad",
            "cellglot evaluate model --cells cells.h5ad",
        ),
    ],
)
def test_paths_are_shortened_and_counted(given, left):
    cleaned = Cleaned()
    content = {"model": given, "deep": [{"same": given}]}
    assert clean_json(content, "a.json", cleaned) == {"model": left, "deep": [{"same": left}]}
    assert cleaned.number == len(cleaned.paths["a.json"]) == (4 if " " in given else 2)


@pytest.mark.parametrize(
    "text",
    [
        "owner/name",
        "CD4+/CD25 T Reg",
        "/",
        "https://host.org/data/x/y",
        "doi.org/10.1/data",
        "##/",
        "a b",
        "CD8+/data/x",
    ],
)
def test_other_texts_stay(text):
    cleaned = Cleaned()
    assert clean_json([text, 3, None], "a.json", cleaned) == [text, 3, None]
    assert cleaned.number == 0 and scan_text(text, "a.md") == []


SECRETS = {
    "hub": 'token = "hf_' + "aB3" * 11 + '"',
    "openai": "key: sk-" + "a1" * 15,
    "github": "ghp_" + "a1" * 18,
    "aws": "AKIA" + "ABCD" * 4,
    "key file": "-----BEGIN RSA " + "PRIVATE KEY-----",
    "password": '"password": "correct-horse-battery-1"',
    "hub_token": '{"hub_token": "0123456789abcdef0123"}',
}


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("file", ["a.json", "b.py", "c.md", "d.yaml", "sub/e.txt"])
def test_secrets_are_refused_and_not_repeated(tmp_path, name, file):
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"x": SECRETS[name]}) if file.endswith("json") else f"first\n{SECRETS[name]}\n")
    if file.endswith("json") and name in ("password", "hub_token"):
        path.write_text("{" + SECRETS[name].strip("{}") + "}")
    with pytest.raises(UnsafeContentError, match=f"nothing was published.*{file}, line") as error:
        scan_folder(tmp_path)
    assert SECRETS[name][-12:-4] not in str(error.value)


def test_values_of_the_environment_are_secrets(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "plainword99")
    (tmp_path / "notes.md").write_text("use plainword99 to log in")
    with pytest.raises(UnsafeContentError, match=r"notes\.md: the value of the environment's WANDB_API_KEY"):
        scan_folder(tmp_path)


def test_tokens_of_a_vocabulary_are_no_secrets(tmp_path):
    content = {
        "cls_token": "<cls>",
        "pad_token": "<pad>",
        "mask_token": "[MASK]",
        "tokenizer_class": "RankValueTokenizer",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(content))
    scan_folder(tmp_path)


def test_paths_in_texts_and_in_json_are_refused(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\ny = '/home/ada/x.txt'\n")
    (tmp_path / "b.json").write_text('{"x": "/odd/place"}')
    with pytest.raises(
        UnsafeContentError, match=r"a\.py, line 2: the path /home/ada/x\.txt; b\.json: the path /odd/place"
    ):
        scan_folder(tmp_path)


def test_headers_of_weights_and_columns_of_cells_are_looked_at(tmp_path):
    save_file({"x": np.zeros(1)}, tmp_path / "model.safetensors", metadata={"from": "/home/ada/model"})
    with pytest.raises(UnsafeContentError, match=r"model\.safetensors \(header\), line 1: the path"):
        scan_folder(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    pq.write_table(pa.table({"cell_id": ["a", "/home/ada/b"], "n": [1, 2]}), tmp_path / "x.parquet")
    with pytest.raises(UnsafeContentError, match=r"x\.parquet, column cell_id, line 2: the path /home/ada/b"):
        scan_folder(tmp_path)
    pq.write_table(pa.table({"n": [1]}).replace_schema_metadata({"made": "in /home/ada/b"}), tmp_path / "x.parquet")
    with pytest.raises(UnsafeContentError, match=r"x\.parquet \(metadata\)"):
        scan_folder(tmp_path)
