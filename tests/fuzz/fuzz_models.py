"""Damaged models, adapters, corpora and settings: cut and flipped files, and values that no configuration has."""

import atexit
import copy
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import scipy.sparse as sp
import torch
from frame import Target
from peft import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import AutoModel
from transformers.utils import logging

from cellglot import modeling
from cellglot.evaluation.scores.marker_table import read_marker_table
from cellglot.model_cards.card.details import read_details
from cellglot.model_cards.card.run_record import read_run
from cellglot.modeling.adapters import load_with_adapter
from cellglot.modeling.loading import load_model, load_tokenizer
from cellglot.tokenization import GeneVocabulary, RankValueTokenizer
from cellglot.tokenization.corpus import Corpus, tokenize_corpus
from cellglot.tokenization.genes.gene_catalogue import read_gene_table
from cellglot.tokenization.ontology.candidates import read_candidates
from cellglot.tokenization.ontology.cell_ontology import CellOntology
from cellglot.training.config import load_config
from cellglot.training.data.labels import read_gene_labels
from cellglot.training.finetuning.adapters import put_adapter, save_adapter


WHOLE = "CELLGLOT_FUZZ_WHOLE"
os.environ["HF_HUB_OFFLINE"] = "1"
logging.set_verbosity_error()
logging.disable_progress_bar()

GENES = [f"ENSG{i:011d}" for i in range(1, 31)]
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
TYPES = ("B cell", "T cell", "monocyte")

# Values that no configuration has.
ODD: list[Any] = [
    None, True, -1, 0, 1, 3, 10**6, 10**9, 10**19, 1e308, float("nan"), float("inf"), "", "x", "../../x",
    "/etc/hostname", "a" * 100_000, "(a+)+$", [], {}, [[]], ["x"], {"x": 1}, "other/repo--code.Class", "\ud800",
]  # fmt: skip


# -------------------------------------------------------------------- whole inputs


def whole() -> Path:
    """Give the folder of whole inputs, made once by the process that starts the workers."""
    made = os.environ.get(WHOLE)
    if made is None:
        made = tempfile.mkdtemp(prefix="fuzz-whole-")
        atexit.register(shutil.rmtree, made, True)
        _make(Path(made))
        os.environ[WHOLE] = made
    return Path(made)


def _make(place: Path) -> None:
    """Make a small model of each kind, an adapter, a corpus and settings."""
    random = np.random.default_rng(0)
    statistics = {"medians": random.uniform(1, 3, 30), "means": random.uniform(0, 1, 30), "stds": np.ones(30)}
    tokenizer = RankValueTokenizer.from_vocabulary(GeneVocabulary.from_statistics(GENES, **statistics))
    torch.manual_seed(0)
    towers = SIZES | {"vocab_size": tokenizer.vocab_size}
    configs = {
        "exceiver": modeling.ExceiverConfig(gene_embedding_size=8, num_latents=4, **towers),
        "sccello": modeling.ScCelloConfig(**towers),
        "langcell": modeling.LangCellConfig(cell_config=towers, text_config=towers, projection_dim=8),
    }
    for name, kind in (("exceiver", "ExceiverModel"), ("sccello", "ScCelloModel"), ("langcell", "LangCellCellModel")):
        config = configs[name].cell_config if name == "langcell" else configs[name]
        getattr(modeling, kind)(config).save_pretrained(place / name)
        tokenizer.save_pretrained(place / name)
    config = configs["sccello"]
    config.id2label = dict(enumerate(TYPES))
    classifier = modeling.ScCelloForSequenceClassification.from_pretrained(place / "sccello", config=config)
    save_adapter(put_adapter(classifier, "lora", ("classifier",)), place / "adapter")
    _corpus(place, random)
    _settings(place)


def _corpus(place: Path, random: np.random.Generator) -> None:
    counts = sp.csr_matrix(random.poisson(1.5, (40, 30)).astype(np.float32))
    obs = pd.DataFrame({"cell_type": random.choice(TYPES, 40)}, index=[f"c{i}" for i in range(40)])
    ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=GENES)).write_h5ad(place / "cells.h5ad")
    tokenize_corpus([place / "cells.h5ad"], place / "corpus", tokenizer="rank-value", processes=1, progress=False)


def _settings(place: Path) -> None:
    terms = "".join(
        f"[Term]\nid: CL:{i:07d}\nname: type {i}\n" + (f"is_a: CL:{i // 2:07d} ! type\n" if i > 1 else "") + "\n"
        for i in range(1, 12)
    )
    rows = "".join(f"{gene}\tG{i}\tA{i}|B{i}\n" for i, gene in enumerate(GENES))
    texts = {
        "training.yaml": "model:\n  type: sccello\n  hidden_size: 16\ndata: {mask_fraction: 0.15}\n"
        "trainer:\n  max_steps: 3\n  learning_rate: 1e-3\n",
        "card.yaml": "license: mit\ntraining_data: cells\ndatasets: [a/b, c/d]\ntags: [x]\n",
        "ontology.obo": f"format-version: 1.2\ndata-version: releases/2024-04-05\n\n{terms}",
        "genes.tsv": f"ensembl_gene_id\tsymbol\talias_symbol\n{rows}",
        "labels.csv": "gene,class\n" + "".join(f"{gene},{'ab'[i % 2]}\n" for i, gene in enumerate(GENES)),
        "candidates.json": json.dumps({"B cell": "a text", "T cell": ["two", "texts"]}),
        "markers.csv": "cell_type,gene\n" + "".join(f"type,{gene}\n" for gene in GENES),
        "training_run.json": json.dumps({"base_model": "a/b", "config": {"data": {}}, "seconds": 3}),
    }
    (place / "settings").mkdir()
    for name, text in texts.items():
        (place / "settings" / name).write_text(text)


# -------------------------------------------------------------------- damage


def change_bytes(random: np.random.Generator, path: Path) -> str:
    """Flip, cut, repeat or replace bytes."""
    content = bytearray(path.read_bytes()) or bytearray(b"x")
    kind = random.choice(["flip", "cut", "empty", "zeros", "repeat", "remove", "noise", "append"])
    low, high = sorted(random.integers(0, len(content) + 1, 2).tolist())
    if kind == "flip":
        for place in random.integers(0, len(content), int(random.integers(1, 4))):
            content[place] ^= 1 << int(random.integers(8))
    elif kind == "cut":
        del content[low:]
    elif kind == "empty":
        content.clear()
    elif kind == "zeros":
        content[low:high] = bytes(high - low)
    elif kind == "repeat":
        content[low:low] = content[low:high] * int(random.integers(1, 50))
    elif kind == "remove":
        del content[low:high]
    elif kind == "noise":
        content[low : low + 8] = random.bytes(8)
    else:
        content += random.bytes(int(random.integers(1, 100)))
    path.write_bytes(content)
    return f"{kind} in {path.name}"


def change_json(random: np.random.Generator, path: Path) -> str:
    """Put an odd value somewhere, or take one away."""
    content = json.loads(path.read_text())
    holder: Any = content
    keys: list[Any] = []
    while isinstance(holder, dict | list) and holder and (not keys or random.random() < 0.6):
        key = (
            list(holder)[int(random.integers(len(holder)))]
            if isinstance(holder, dict)
            else int(random.integers(len(holder)))
        )
        keys.append(key)
        inner = holder[key]
        if not (isinstance(inner, dict | list) and inner):
            break
        if random.random() < 0.3:
            break
        holder = inner
    if not keys:
        return "nothing"
    kind = random.choice(["odd", "odd", "odd", "remove", "deep", "unknown"])
    holder = content
    for key in keys[:-1]:
        holder = holder[key]
    value = copy.deepcopy(ODD[int(random.integers(len(ODD)))])
    if kind == "remove":
        del holder[keys[-1]]
    elif kind == "deep":
        path.write_text("[" * int(random.integers(1, 200_000)))
        return f"deep nesting in {path.name}"
    elif kind == "unknown" and isinstance(holder, dict):
        holder["unknown_field"] = value
    else:
        holder[keys[-1]] = value
    path.write_text(json.dumps(content))
    return f"{kind} {'.'.join(map(str, keys))} = {value!r:.40} in {path.name}"


def change_weights(random: np.random.Generator, path: Path) -> str:
    """Rename, drop, reshape, convert or spoil tensors."""
    weights = load_file(path)
    names = sorted(weights)
    name = names[int(random.integers(len(names)))]
    kind = random.choice(["prefix", "rename", "drop", "half", "nan", "inf", "shape", "kind", "more", "transpose"])
    if kind == "prefix":
        weights = {f"module.{k}": v for k, v in weights.items()}
    elif kind == "rename":
        weights[f"{name}_"] = weights.pop(name)
    elif kind == "drop":
        del weights[name]
    elif kind == "half":
        weights = {k: weights[k] for k in names[::2]}
    elif kind in ("nan", "inf"):
        weights[name] = weights[name].double().index_fill(0, torch.tensor([0]), float(kind)).to(weights[name].dtype)
    elif kind == "shape":
        weights[name] = weights[name][:-1]
    elif kind == "kind":
        weights[name] = weights[name].to([torch.int64, torch.float16, torch.bool][int(random.integers(3))])
    elif kind == "more":
        weights["more"] = torch.zeros(3)
    else:
        weights[name] = weights[name].T
    save_file({k: v.clone().contiguous() for k, v in weights.items()}, path, metadata={"format": "pt"})
    return f"{kind} of {name} in {path.name}"


def change_text(random: np.random.Generator, path: Path) -> str:
    """Change lines, as people do, or write what takes endless time."""
    lines = path.read_text().split("\n")
    number = int(random.integers(len(lines)))
    kind = random.choice(["line", "twice", "long", "aliases", "deep", "circle", "columns", "tag", "quote"])
    text = {
        "line": "x: [", "long": "a" * 5_000_000, "aliases": "\n".join(
            ["a0: &a0 [x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10))]
        ), "deep": "x: " + "[" * 20_000, "circle": "[Term]\nid: CL:0000001\nis_a: CL:0000011",
        "columns": "a,b\tc,d" * 99,
        "tag": "x: !!python/object/apply:os.getpid []", "twice": lines[number], "quote": '"',
    }[str(kind)]  # fmt: skip
    lines.insert(number, text)
    path.write_text("\n".join(lines))
    return f"{kind} at line {number} of {path.name}"


def damage(random: np.random.Generator, path: Path) -> str:
    """Damage a file as its kind allows."""
    own: Callable[..., str] | None = {".json": change_json, ".safetensors": change_weights}.get(path.suffix)
    if own is None and path.suffix in (".yaml", ".obo", ".tsv", ".csv"):
        own = change_text
    if own is None or random.random() < 0.35:
        return change_bytes(random, path)
    try:
        return own(random, path)
    except Exception:  # noqa: BLE001 (it is damaged already)
        return change_bytes(random, path)


def builder(name: str | Callable[[np.random.Generator], str], files: tuple[str, ...]) -> Any:
    """Make a function that copies a whole folder, and damages one or two of its files."""

    def build(random: np.random.Generator, folder: Path) -> tuple[Path, str]:
        target = folder / "damaged-input"
        shutil.copytree(whole() / (name if isinstance(name, str) else name(random)), target)
        found = sorted({p for pattern in files for p in target.glob(pattern) if p.is_file()})
        said = [damage(random, found[int(random.integers(len(found)))]) for _ in range(int(random.integers(1, 3)))]
        return target, ", ".join(said)

    return build


# -------------------------------------------------------------------- use and references


def load_whole_model(path: Path) -> dict[str, torch.Tensor]:
    """Load a model and its tokenizer; returns the weights that it computes with."""
    tokenizer = load_tokenizer(path)
    cell = dict.fromkeys(GENES[:5], 1.0)
    model = load_model(AutoModel, path)
    if tokenizer.vocab_size == model.config.vocab_size and model.config.model_type != "exceiver":
        tokenizer(cell)
    return dict(model.state_dict())


def weights_of_file(path: Path, ours: Any) -> dict[str, torch.Tensor]:
    """Read the same weights by safetensors alone."""
    return load_file(path / "model.safetensors")


def other_weights(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> str | None:
    """Say which weights are not those of the file."""
    for name, tensor in ours.items():
        there = next((theirs[n] for n in (name, f"sccello.{name}", f"exceiver.{name}") if n in theirs), None)
        if there is None:
            return f"{name} is not in the file"
        if not torch.equal(torch.nan_to_num(there.to(tensor.dtype)), torch.nan_to_num(tensor)):
            return f"{name} is not that of the file"
    return None


def load_whole_adapter(path: Path) -> dict[str, torch.Tensor]:
    """Load an adapter on its base; returns its own weights."""
    return get_peft_model_state_dict(load_with_adapter(path, whole() / "sccello"))


def weights_of_adapter(path: Path, ours: Any) -> dict[str, torch.Tensor]:
    """Read the same weights by safetensors alone."""
    return load_file(path / "adapter_model.safetensors")


def open_corpus(path: Path) -> dict[str, Any]:
    """Open a corpus and read all of it."""
    corpus = Corpus.open(path)
    corpus.summary()
    vocabulary = corpus.tokenizer().vocabulary
    tables = [pq.read_table(shard).to_pydict() for split in ("train", "validation") for shard in corpus.shards(split)]
    return {"tables": tables, "genes": vocabulary.genes, "medians": vocabulary.medians.tolist()}


def whole_corpus(path: Path, ours: Any) -> dict[str, Any]:
    """Read the corpus as it was."""
    return open_corpus(whole() / "corpus")


def other_cells(ours: dict[str, Any], theirs: dict[str, Any]) -> str | None:
    """Say what differs between two corpora."""
    return next((f"other {name}" for name in theirs if str(ours[name]) != str(theirs[name])), None)


def read_settings(path: Path) -> None:
    """Read each file of settings by what reads it."""
    load_config(path / "training.yaml")
    read_details(path)
    read_gene_table(path / "genes.tsv")
    read_gene_labels(path / "labels.csv")
    read_candidates(path / "candidates.json")
    read_marker_table(path / "markers.csv")
    read_run(path)
    CellOntology.from_file(path / "ontology.obo", cache_folder=path)


def _model(random: np.random.Generator) -> str:
    return ["exceiver", "sccello", "langcell"][int(random.integers(3))]


REFUSALS = (ValueError, OSError)
TARGETS = [
    Target(
        "model", builder(_model, ("*.json", "*.safetensors")), load_whole_model, REFUSALS, weights_of_file,
        other_weights,
    ),
    Target(
        "adapter", builder("adapter", ("*.json", "*.safetensors")), load_whole_adapter, REFUSALS, weights_of_adapter,
        other_weights,
    ),
    Target("corpus", builder("corpus", ("*.json", "*/*.parquet", "tokenizer/*.s*", "tokenizer/*.json")), open_corpus,
           REFUSALS, whole_corpus, other_cells),
    Target("settings", builder("settings", ("*",)), read_settings, REFUSALS),
]  # fmt: skip

whole()
