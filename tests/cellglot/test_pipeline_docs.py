"""The code of docs/guides/pipelines.md runs, block after block."""

import re
from pathlib import Path

import numpy as np


PAGE = Path(__file__).parents[2] / "docs" / "guides" / "pipelines.md"


def test_blocks_run_in_order(gene_classifiers, cell_text_folder, blood, tmp_path, monkeypatch):
    for name, folder in {**gene_classifiers, "langcell": cell_text_folder}.items():
        (tmp_path / name).symlink_to(folder)
    blood[:30].write_h5ad(tmp_path / "cells.h5ad")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    names = {"adata": blood[:30].copy()}
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"docs/guides/pipelines.md, block {number}", "exec"), names)
    assert len(blocks) == 5 and names["embedding"].shape == (30, 16)
    assert np.isfinite(names["embedding"]).all()
