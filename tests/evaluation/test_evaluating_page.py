"""The code of docs/guides/evaluating.md runs: command and Python in their order, in one folder."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
import typer

from cellglot.cli import app
from cellglot.modeling import ScCelloConfig, ScCelloForSequenceClassification, ScCelloModel
from cellglot.tokenization import RankValueTokenizer


PAGE = Path(__file__).parents[2] / "docs" / "guides" / "evaluating.md"


@pytest.fixture
def folder(blood, vocabulary, tmp_path, monkeypatch):
    """A model, a classifier, labelled cells and a table of markers: what the page takes for granted."""
    cells = blood[:150].copy()
    cells.obs["batch"] = np.where(np.arange(150) % 2, "a", "b")
    cells.write_h5ad(tmp_path / "cells.h5ad")
    (tmp_path / "markers.tsv").write_text("cell_type\tgene\nB cell\tCD79A,MS4A1\nNK cell\tGNLY,NKG7\n")
    tokenizer = RankValueTokenizer.from_vocabulary(vocabulary, model_max_length=32)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    torch.manual_seed(0)
    for name, model_class in (("model", ScCelloModel), ("classifier", ScCelloForSequenceClassification)):
        config = ScCelloConfig(vocab_size=tokenizer.vocab_size, max_position_embeddings=32, **sizes)
        config.id2label = dict(enumerate(sorted(set(blood.obs["cell_type"].astype(str)))))
        model_class(config).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_runs(folder, capsys):
    blocks = re.findall(r"^```(bash|python)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert [language for language, _ in blocks] == ["bash", "python", "python", "python"]
    names: dict = {}
    for number, (language, text) in enumerate(blocks, 1):
        if language == "python":
            exec(compile(text, f"docs/guides/evaluating.md, block {number}", "exec"), names)
        else:
            program, *arguments = shlex.split(text)
            assert program == "cellglot"
            typer.main.get_command(app).main([*arguments, "--marker-cells", "5"], standalone_mode=False)
            written = {p.name for p in (folder / "evaluation").iterdir()}
            assert {"evaluation.json", "evaluation.md", "scores.png", "umap_model_batch.png"} <= written
    assert set(names["evaluation"].record.columns) == {"mine"}
    printed = capsys.readouterr().out
    assert "annotation: fine-tuned, accuracy" in printed and len(printed.strip().split("\n")[-1]) > 2
