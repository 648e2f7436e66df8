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


OPTIONS = {ExceiverTokenizer: {}, RankValueTokenizer: {"model_max_length": 200, "return_expression_values": True}}


def further_inputs(model, batch):
    """What the model needs beside the tokenizer's output: which genes to predict, where it predicts genes."""
    if "masked_genes" not in inspect.signature(model.forward).parameters:
        return {}
    return {"masked_genes": (torch.arange(batch["input_ids"].shape[1]) % 3 == 0) & batch["attention_mask"].bool()}


@pytest.fixture(scope="module")
def saved(make_family, model_names, vocabulary, few_cells, tmp_path_factory):
    """Folders of all models, saved by each Auto class, with further inputs, and of tokenizers alone."""
    root = tmp_path_factory.mktemp("saved")
    counts, genes = few_cells
    for model_name in model_names:
        family = make_family(model_name)
        batch = family.tokenizer(counts, genes=genes, return_tensors="pt")
        for kind, path in next(iter(family.models.values())).config.auto_map.items():
            if kind.startswith("AutoModel"):
                model, folder = family.models[path.split(".")[1]], root / model_name / kind
                model.save_pretrained(folder)
                family.tokenizer.save_pretrained(folder)
                save_file(further_inputs(model, batch), folder / "more.safetensors")
    for kind, options in OPTIONS.items():
        kind.from_vocabulary(vocabulary, **options).save_pretrained(root / "tokenizers" / kind.__name__)
    return root


@pytest.fixture(scope="module")
def loaded(saved, model_names, stranger, few_cells, tmp_path_factory):
    """What a clean process loads of all folders, by folder; it writes there what it computed."""
    counts, genes = few_cells
    cells = tmp_path_factory.mktemp("cells") / "cells.npz"
    np.savez(cells, counts=counts, genes=np.array(genes))
    jobs = [(str(folder), folder.name) for name in model_names for folder in sorted((saved / name).iterdir())]
    jobs += [(str(folder), "") for folder in sorted((saved / "tokenizers").iterdir())]
    return json.loads(stranger(STRANGER, str(cells), *jobs, lacking=LACKING).splitlines()[-1])


def test_models_give_the_same_numbers_without_cellglot(loaded, saved, family, model_name, few_cells):
    counts, genes = few_cells
    batch = family.tokenizer(counts, genes=genes, return_tensors="pt")
    auto_map = next(iter(family.models.values())).config.auto_map
    for folder in (saved / model_name).iterdir():
        model = getattr(transformers, folder.name).from_pretrained(folder)  # cellglot is imported: no trust is asked
        assert type(model) is type(family.models[auto_map[folder.name].split(".")[1]])
        with torch.no_grad():
            outputs = model.eval()(**batch, **load_file(folder / "more.safetensors"))
        tensors = {n: v for n, v in outputs.items() if isinstance(v, torch.Tensor)}
        assert any(v.is_floating_point() for v in tensors.values())
        tokenizer_name, tokenizer_module, loaded_name, loaded_module = loaded[str(folder)]
        assert tokenizer_module.startswith("transformers_modules") and loaded_module.startswith("transformers_modules")
        assert (tokenizer_name, loaded_name) == (type(family.tokenizer).__name__, type(model).__name__)
        given = load_file(folder / "given.safetensors")
        assert given.keys() == tensors.keys()
        for name, values in tensors.items():
            torch.testing.assert_close(given[name], values, rtol=1e-6, atol=1e-6, msg=f"{loaded_name}: {name}")


@pytest.mark.parametrize("kind", OPTIONS)
def test_tokenizers_load_from_folders_of_their_own(loaded, saved, few_cells, kind):
    counts, genes = few_cells
    folder = saved / "tokenizers" / kind.__name__
    assert not (folder / "config.json").exists()
    assert loaded[str(folder)][0] == kind.__name__
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert type(tokenizer).__module__.startswith("cellglot.")
    here, there = tokenizer(counts, genes=genes, return_tensors="pt"), load_file(folder / "given.safetensors")
    assert here.keys() == there.keys() >= {"input_ids", "expression_values", "attention_mask"}
    assert all(torch.equal(here[name], there[name]) for name in there)
    if kind is RankValueTokenizer:
        assert there["input_ids"].shape[1] == 200
