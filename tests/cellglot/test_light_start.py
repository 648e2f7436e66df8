"""Commands start without the parts of transformers that they do not use, and compute what the library computes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


HEAVY = (
    "accelerate",
    "anndata",
    "scipy.optimize",
    "sympy",
    "torch._dynamo.symbolic_convert",
    "torch.distributed.tensor",
)
HEAVY = (*HEAVY, "zarr")

ANNOTATE = """
import json, sys
import cellglot.cli
sys.argv = ["cellglot", "annotate", {cells!r}, "-o", {output!r}]
try:
    cellglot.cli.app()
except SystemExit as ended:
    assert not ended.code, ended.code
loaded = [name for name in {heavy!r} if name in sys.modules]
import torch
doubled = torch.compile(lambda x: 2 * x, backend="eager")(torch.ones(2)).tolist()
print(json.dumps([loaded, doubled, "torch._dynamo.symbolic_convert" in sys.modules]))
"""


@pytest.fixture(scope="module")
def cells(tmp_path_factory) -> Path:
    import anndata
    import numpy as np
    import pandas as pd

    import cellglot

    names = json.loads(Path(cellglot.model_path("blood-exceiver"), "gene_vocab.json").read_text())
    genes = _ids(names)[:300]
    counts = np.random.default_rng(0).poisson(0.5, (24, len(genes))).astype(np.float32)
    adata = anndata.AnnData(counts, var=pd.DataFrame(index=genes))
    adata.obs_names = [f"cell{i}" for i in range(adata.n_obs)]
    path = tmp_path_factory.mktemp("light") / "cells.h5ad"
    adata.write_h5ad(path)
    return path


def _ids(content) -> list[str]:
    found: list[str] = []
    if isinstance(content, str):
        return [content] if content.startswith("ENSG") else []
    for item in content if isinstance(content, list) else [*content, *content.values()]:
        if isinstance(item, str | list | dict):
            found += _ids(item)
    return list(dict.fromkeys(found))


def test_the_command_loads_no_unused_parts_and_equals_the_library(cells):
    """A command imports no unused parts, PyTorch's compiler still works after it, and the scores are the library's."""
    import anndata
    import numpy as np

    import cellglot

    output = cells.with_name("annotated.h5ad")
    code = ANNOTATE.format(cells=str(cells), output=str(output), heavy=HEAVY)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=os.environ | {"RANK": "0"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.strip().split("\n")[-1]) == [[], [2.0, 2.0], True]

    adata = anndata.read_h5ad(cells)
    cellglot.annotate(adata)
    written = anndata.read_h5ad(output)
    np.testing.assert_array_equal(written.obsm["cellglot_scores"], adata.obsm["cellglot_scores"])
    assert list(written.obs["cellglot_cell_type"].astype(str)) == list(adata.obs["cellglot_cell_type"].astype(str))


def test_nothing_changes_where_transformers_is_loaded_or_another_version(monkeypatch):
    """A process that has transformers already, or another major version, is left as it is."""
    import transformers  # noqa: F401

    from cellglot import light_start

    before = list(sys.meta_path)
    assert not light_start.start_light()
    monkeypatch.delitem(sys.modules, "transformers")
    monkeypatch.setattr(light_start.importlib.metadata, "version", lambda _: "4.57.1")
    assert not light_start.start_light()
    assert sys.meta_path == before
