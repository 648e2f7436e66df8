"""The code of docs/guides/finetuning.md runs: commands and Python in their order, in one folder."""

import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from cellglot.modeling import ScCelloConfig, ScCelloForMaskedLM
from cellglot.tokenization import RankValueTokenizer


PAGE = Path(__file__).parents[2] / "docs" / "guides" / "finetuning.md"
FEW_STEPS = ("--set", "trainer.max_steps=3", "--set", "trainer.use_cpu=true", "--set", "trainer.eval_strategy=steps")
FEW_STEPS += ("--set", "trainer.eval_steps=3", "--set", "trainer.save_strategy=steps", "--set", "trainer.save_steps=3")


@pytest.fixture
def folder(blood, vocabulary, tmp_path, monkeypatch):
    """A tiny pretrained model, cells with labels, a table of genes: what the page takes for granted."""
    cells = blood[:120].copy()
    cells.obs = pd.DataFrame(
        {"cell_type": blood.obs["cell_type"].astype(str)[:120], "age": np.arange(120) % 50}, index=cells.obs_names
    )
    cells.write_h5ad(tmp_path / "cells.h5ad")
    genes = [vocabulary.symbol(g) for g in vocabulary.genes]
    rows = [f"{g},{'ribosomal' if g.startswith('RP') else 'other'}" for g in genes[:300]]
    (tmp_path / "genes.csv").write_text("gene,class\n" + "\n".join(rows))
    tokenizer = RankValueTokenizer.from_vocabulary(vocabulary, add_cls_token=True, model_max_length=32)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    torch.manual_seed(0)
    config = ScCelloConfig(vocab_size=tokenizer.vocab_size, max_position_embeddings=32, **sizes)
    ScCelloForMaskedLM(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(words, cellglot_command):
    """Run a command of the page with few steps; `accelerate launch` as what it starts."""
    if words[:2] == ["accelerate", "launch"]:
        assert words[2:4] == ["-m", "cellglot"]
        words = words[3:]
    done = cellglot_command(*words[1:], *(FEW_STEPS if words[1] == "finetune" else ()))
    assert done.status == 0, done.err


def test_the_page_runs(folder, blood, cellglot_command, monkeypatch):
    blocks = re.findall(r"^```(bash|python)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    names, commands = {"adata": blood[:10].copy()}, 0
    for number, (language, text) in enumerate(blocks, 1):
        if language == "python":
            exec(compile(text, f"docs/guides/finetuning.md, block {number}", "exec"), names)
            continue
        for line in text.replace("\\\n", " ").splitlines():
            run(shlex.split(line, comments=True), cellglot_command)
            commands += 1
    assert commands == 7 and len(names["labels"]) == 10
    assert set(names["labels"]) <= set(blood.obs["cell_type"])
    with torch.no_grad():
        batch = names["tokenizer"](names["adata"], return_tensors="pt")
        expected = names["model"](**batch).logits
        assert torch.allclose(names["stranger"](**batch).logits, expected, atol=1e-5)
    assert {"modeling_sccello.py", "gene_vocab.json", "training_run.json"} <= {
        p.name for p in (folder / "merged").iterdir()
    }
    assert "transformers" in sys.modules and 0 <= names["metrics"]["eval_accuracy"] <= 1
