"""Folders load by Auto classes where there is PyTorch, transformers, safetensors, NumPy, and nothing of ours."""

import inspect
import json

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from cellglot.tokenization import ExceiverTokenizer, RankValueTokenizer


# Nothing but what Hub files may import is there. Each folder is loaded and run; what came out is written beside it.
LACKING = (
    "accelerate", "anndata", "datasets", "h5py", "matplotlib", "pandas", "pyarrow", "scanpy", "scipy", "sklearn",
    "typer", "umap", "zarr",
)  # fmt: skip
STRANGER = """
import json
import numpy as np, torch, transformers
from safetensors.torch import load_file, save_file
torch.set_num_threads(2)
cells, *jobs = arguments
cells = np.load(cells)

class Table(dict):
    columns = ()

class Cells:  # an AnnData to those who look at attributes
    X, var, var_names = cells["counts"], Table(), cells["genes"]
    obs_names = [f"cell {number}" for number in range(len(X))]

class Rows:  # a CSR matrix to those who look at attributes
    shape, format, has_canonical_format = Cells.X.shape, "csr", True
    indptr = np.concatenate([[0], np.cumsum((Cells.X != 0).sum(1))])
    data, indices = Cells.X[Cells.X != 0], np.nonzero(Cells.X)[1]

facts = {}
for folder, auto_class in jobs:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    batch = tokenizer(Cells.X, genes=Cells.var_names.tolist(), return_tensors="pt")
    sparse = Cells()
    sparse.X = Rows()
    for other in (Cells(), sparse):
        again = tokenizer(other, return_tensors="pt")
        assert all(torch.equal(batch[name], again[name]) for name in batch), type(other.X)
    facts[folder] = [type(tokenizer).__name__, type(tokenizer).__module__]
    outputs = dict(batch)
    if auto_class:
        model = getattr(transformers, auto_class).from_pretrained(folder, trust_remote_code=True).eval()
        facts[folder] += [type(model).__name__, type(model).__module__]
        with torch.no_grad():
            outputs = model(**batch, **load_file(folder + "/more.safetensors"))
    tensors = {n: v.clone() for n, v in outputs.items() if isinstance(v, torch.Tensor)}
    save_file(tensors, folder + "/given.safetensors")
print(json.dumps(facts))
"""


@pytest.fixture
def loaded_by_a_stranger(stranger, tmp_path, few_cells):
    """Run the jobs, (folder, Auto class) each, in a clean process; gives what was loaded, by folder."""

    def run(jobs):
        counts, genes = few_cells
        np.savez(tmp_path / "cells.npz", counts=counts, genes=np.array(genes))
        arguments = [str(tmp_path / "cells.npz"), *([str(folder), kind] for folder, kind in jobs)]
        return json.loads(stranger(STRANGER, *arguments, lacking=LACKING).splitlines()[-1])

    return run


def further_inputs(model, batch):
    """What the model needs beside the tokenizer's output: which genes to predict, where it predicts genes."""
    if "masked_genes" not in inspect.signature(model.forward).parameters:
        return {}
    return {"masked_genes": (torch.arange(batch["input_ids"].shape[1]) % 3 == 0) & batch["attention_mask"].bool()}


def test_models_give_the_same_numbers_without_cellglot(loaded_by_a_stranger, models, tokenizer, few_cells, tmp_path):
    jobs, expected = [], {}
    counts, genes = few_cells
    batch = tokenizer(counts, genes=genes, return_tensors="pt")
    for kind, path in next(iter(models.values())).config.auto_map.items():
        if not kind.startswith("AutoModel"):
            continue
        saved, folder = models[path.split(".")[1]], tmp_path / kind
        saved.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        more = further_inputs(saved, batch)
        save_file(more, folder / "more.safetensors")
        model = getattr(transformers, kind).from_pretrained(folder)  # cellglot is imported: no trust is asked for
        assert type(model) is type(saved)
        with torch.no_grad():
            outputs = model.eval()(**batch, **more)
        expected[folder] = {n: v for n, v in outputs.items() if isinstance(v, torch.Tensor)}
        assert any(v.is_floating_point() for v in expected[folder].values())
        jobs.append((folder, kind))
    loaded = loaded_by_a_stranger(jobs)
    for folder, tensors in expected.items():
        tokenizer_name, tokenizer_module, model_name, model_module = loaded[str(folder)]
        assert tokenizer_module.startswith("transformers_modules") and model_module.startswith("transformers_modules")
        assert tokenizer_name == type(tokenizer).__name__
        given = load_file(folder / "given.safetensors")
        assert given.keys() == tensors.keys()
        for name, values in tensors.items():
            torch.testing.assert_close(given[name], values, rtol=1e-6, atol=1e-6, msg=f"{model_name}: {name}")


def test_tokenizers_load_from_folders_of_their_own(loaded_by_a_stranger, vocabulary, few_cells, tmp_path):
    counts, genes = few_cells
    options = {RankValueTokenizer: {"model_max_length": 200, "return_expression_values": True}}
    for kind in (ExceiverTokenizer, RankValueTokenizer):
        saved = kind.from_vocabulary(vocabulary, **options.get(kind, {}))
        saved.save_pretrained(tmp_path / kind.__name__)
        assert not (tmp_path / kind.__name__ / "config.json").exists()
    folders = [tmp_path / "ExceiverTokenizer", tmp_path / "RankValueTokenizer"]
    loaded = loaded_by_a_stranger([(folder, "") for folder in folders])
    for folder in folders:
        assert loaded[str(folder)][0] == folder.name
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        assert type(tokenizer).__module__.startswith("cellglot.")
        here, there = tokenizer(counts, genes=genes, return_tensors="pt"), load_file(folder / "given.safetensors")
        assert here.keys() == there.keys() >= {"input_ids", "expression_values", "attention_mask"}
        assert all(torch.equal(here[name], there[name]) for name in there)
    assert load_file(folders[1] / "given.safetensors")["input_ids"].shape[1] == 200
