"""The commands on real cells, one after the other."""

import json
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from cellglot.tokenization import GeneCoverageError


@pytest.fixture(scope="module")
def files(blood, blood_log, tmp_path_factory):
    """90 blood cells in three files; the last lacks ten genes."""
    folder = tmp_path_factory.mktemp("three")
    for number in range(3):
        cells = blood[30 * number : 30 * (number + 1), 10 if number == 2 else 0 :].copy()
        cells.obs["louvain"] = blood_log.obs["louvain"].loc[cells.obs_names]
        cells.write_h5ad(folder / f"{number}.h5ad")
    return sorted(folder.glob("*.h5ad"))


def content(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


@pytest.mark.parametrize("kind", ["exceiver", "rank-value"])
def test_tokenize(cellglot_command, files, blood, blood_log, tmp_path, kind):
    chosen = ["--tokenizer", kind, "--obs-column", "louvain", "--processes", 1, "--validation-fraction", 0.3]
    done = cellglot_command("tokenize", *files, "-o", tmp_path / "corpus", *chosen)
    assert done.status == 0, done.err
    manifest = json.loads((tmp_path / "corpus" / "manifest.json").read_text())
    tables = [pq.read_table(tmp_path / "corpus" / s["file"]).to_pylist() for s in manifest["shards"]]
    rows = {row["cell_id"]: row for table in tables for row in table}
    assert set(rows) == set(blood.obs_names[:90])
    assert f"90 cells ({manifest_cells(manifest, 'train')} train, " in done.out
    assert "2: 30 cells, counts in X, 755 genes" in done.out
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "corpus" / "tokenizer")
    for number in (0, 45):
        name = blood.obs_names[number]
        assert rows[name]["input_ids"] == tokenizer(blood[number].copy())["input_ids"][0]
        assert rows[name]["louvain"] == blood_log.obs["louvain"].iloc[number]
        assert rows[name]["cell_type"] == blood.obs["cell_type"].iloc[number]


def manifest_cells(manifest, split):
    return sum(shard["cells"] for shard in manifest["shards"] if shard["split"] == split)


def test_tokenize_goes_on_where_it_was_stopped(cellglot_command, files, tmp_path, monkeypatch):
    from cellglot.tokenization.corpus.worker import Worker

    done, tokens = [], Worker.start_tokens

    def stopped_by_hand(self, *piece):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(piece)
        return tokens(self, *piece)

    command = ["tokenize", *files, "-o", tmp_path / "stopped", "--processes", 1]
    with monkeypatch.context() as patch:
        patch.setattr(Worker, "start_tokens", stopped_by_hand)
        assert cellglot_command(*command).status != 0
    assert len(done) == 2 and not (tmp_path / "stopped" / "manifest.json").exists()
    stopped = content(tmp_path / "stopped")
    done.clear()
    with monkeypatch.context() as patch:
        patch.setattr(Worker, "start_tokens", lambda self, *piece: (done.append(piece), tokens(self, *piece))[1])
        assert cellglot_command(*command).status == 0
    assert len(done) == 1
    whole = tmp_path / "whole"
    assert cellglot_command("tokenize", *files, "-o", whole, "--processes", 1).status == 0
    assert content(tmp_path / "stopped") == content(whole)
    assert {name for name in stopped if name.endswith(".parquet")} < set(content(whole))
    assert cellglot_command("tokenize", *files[:2], "-o", tmp_path / "stopped", "--processes", 1).status == 2


@pytest.fixture(scope="module")
def model_folder(vocabulary, tmp_path_factory):
    """A small Exceiver with its tokenizer, of 745 of the blood cells' genes."""
    from cellglot.modeling import ExceiverConfig, ExceiverModel
    from cellglot.tokenization import ExceiverTokenizer, GeneVocabulary

    known = GeneVocabulary.from_statistics(
        vocabulary.genes[:745], means=vocabulary.means[:745], stds=vocabulary.stds[:745]
    )
    tokenizer = ExceiverTokenizer.from_vocabulary(known)
    torch.manual_seed(0)
    config = ExceiverConfig(vocab_size=tokenizer.vocab_size, num_latents=4, num_hidden_layers=1, intermediate_size=8)
    folder = tmp_path_factory.mktemp("model")
    ExceiverModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("ending", ["h5ad", "parquet", "npy"])
def test_embed(cellglot_command, files, model_folder, tmp_path, ending):
    output = tmp_path / f"embedding.{ending}"
    done = cellglot_command("embed", model_folder, files[0], "-o", output, "--batch-size", 7, "--device", "cpu")
    assert done.status == 0, done.err
    assert "745 of 765 genes are in the vocabulary" in done.out
    assert "lost: 20 unknown genes" in done.out and "of counts are covered" in done.out
    assert f"{output}: 30 cells x 16" in done.out
    cells = ad.read_h5ad(files[0])
    tokenizer, model = AutoTokenizer.from_pretrained(model_folder), AutoModel.from_pretrained(model_folder)
    with torch.no_grad():
        expected = model(**tokenizer(cells, return_tensors="pt")).pooler_output.numpy()
    if ending == "npy":
        given = np.load(output)
    elif ending == "parquet":
        table = pq.read_table(output)
        assert table["cell_id"].to_pylist() == list(cells.obs_names)
        given = np.array(table["embedding"].to_pylist())
    else:
        result = ad.read_h5ad(output)
        assert list(result.obs_names) == list(cells.obs_names)
        assert list(result.obs["cell_type"]) == list(cells.obs["cell_type"])
        given = result.X
    np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.long
def test_the_installed_command_embeds(files, model_folder, tmp_path):
    command = [Path(sys.executable).with_name("cellglot"), "embed", model_folder, files[2], "-o", tmp_path / "e.npy"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "735 of 755 genes are in the vocabulary" in done.stdout
    assert np.load(tmp_path / "e.npy").shape == (30, 16)


def test_embed_refuses_cells_of_other_genes(cellglot_command, files, model_folder, tmp_path):
    cells = ad.read_h5ad(files[0])
    cells.var_names = [f"other_{name}" for name in cells.var_names]
    cells.write_h5ad(tmp_path / "mouse.h5ad")
    done = cellglot_command("embed", model_folder, tmp_path / "mouse.h5ad", "-o", tmp_path / "new.npy")
    assert done.status == 2
    assert "no gene of these cells: 765 of 765 genes (100%) are not in it" in done.err
    assert not (tmp_path / "new.npy").exists()


@pytest.fixture
def converted(cellglot_command, golden, tmp_path):
    """The golden checkpoint in the released format, through the command."""
    folder = golden / "exceiver" / "random"
    checkpoint = {
        "hyper_parameters": json.loads((folder / "config.json").read_text()),
        "state_dict": load_file(folder / "reference_weights.safetensors"),
    }
    torch.save(checkpoint, tmp_path / "released.ckpt")
    done = cellglot_command("convert", "exceiver", tmp_path / "released.ckpt", "-o", tmp_path / "converted")
    assert done.status == 0, done.err
    assert "cannot be tied to genes" in done.out
    return tmp_path / "converted"


def test_a_converted_folder_loads_and_refuses_cells(cellglot_command, converted, files, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(converted)
    tokenizer = AutoTokenizer.from_pretrained(converted)
    assert model.config.vocab_size == tokenizer.vocab_size
    assert model.config.gene_order_known is False
    with pytest.raises(GeneCoverageError, match="cannot be tied to genes"):
        tokenizer(ad.read_h5ad(files[0]))
    for command in (
        ["embed", converted, files[0], "-o", tmp_path / "new.npy"],
        ["tokenize", files[0], "--vocabulary", converted, "-o", tmp_path / "new"],
    ):
        done = cellglot_command(*command)
        assert done.status == 2
        assert "error: cells cannot be tokenized for this model" in done.err.replace(f"{files[0].stem}: ", "")
        assert "cannot be tied to genes" in done.err
    assert not (tmp_path / "new.npy").exists() and not (tmp_path / "new" / "manifest.json").exists()
