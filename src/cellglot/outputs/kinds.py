"""Kinds of output folders: the names of the files in each, and how folders of earlier versions are recognised."""

import importlib.util
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Kind:
    """A kind of output folder.

    Parameters
    ----------
    title
        What such a folder contains, in words.
    names
        Pattern of the names of its files, relative to the folder and with ``/`` between parts.
    folders
        Pattern of the names of its own folders, directly below the output.
    made_before
        Whether a folder without a manifest was certainly made by an earlier version of cellglot.
    code
        Whether code for the Hub is written to it.
    companion
        Whether it may be in one folder with another kind.
    named
        Whether only the names of `OutputFolder` are its own, also in folders of earlier versions.
    """

    title: str
    names: re.Pattern[str]
    folders: re.Pattern[str]
    made_before: Callable[[Path], bool]
    code: bool = False
    companion: bool = False
    named: bool = False

    def owns(self, name: str) -> bool:
        """Whether a file of this name, relative to the folder, belongs to the kind."""
        if name.startswith("/") or any(part in ("", ".", "..") for part in name.split("/")) or "\\" in name:
            return False
        return self.names.fullmatch(name) is not None or (self.code and name.split("/")[-1] in code_files())


@cache
def code_files() -> frozenset[str]:
    """Return the names of the files of code that are saved with a model or tokenizer."""
    found: set[str] = set()
    for package in ("cellglot.modeling", "cellglot.tokenization"):
        spec = importlib.util.find_spec(package)
        for place in (spec and spec.submodule_search_locations) or ():
            found |= {path.name for path in Path(place).glob("*.py") if path.name != "__init__.py"}
    return frozenset(found)


_WEIGHTS = r"(adapter_)?model(-\d{5}-of-\d{5})?\.safetensors|(adapter_)?model\.safetensors\.index\.json"
_SETTINGS = (
    r"(gene_vocab|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|config|generation_config|"
    r"processor_config|adapter_config|gene_labels)\.json|gene_stats\.safetensors|(vocab|merges)\.txt"
)
_SAVED = rf"((text_)?tokenizer/)?({_WEIGHTS}|{_SETTINGS}|[a-z_]+\.model)"
_STATE = (
    r"[\w.-]+\.(safetensors|json|pt|pth|bin|distcp|txt|py|md)|(text_tokenizer|tokenizer)/[\w.-]+|"
    r"(pytorch_model_fsdp_\d+|optimizer_\d+|global_step\d+)/[\w./-]+|latest"
)
_TRAINED = (
    rf"{_SAVED}|weight_average\.safetensors|training_run\.json|run_identity\.json|trainer_state\.json|"
    rf"training_args\.bin|checkpoint-\d+/({_STATE})|runs/[\w./-]*events\.out\.tfevents\.[\w.-]+"
)
_INDEX = r"reference\.json|(embeddings|own_distances)\.npy|cells\.parquet|neighbours\.usearch"
_GRAPHS = r"onnx/model(_fp16|_int8)?\.onnx"
_PAGE = r"[a-z_]+\.(js|css|html)|(model|vendor)/[\w./-]+"
_TRAINED_FOLDERS = r"checkpoint-\d+|runs|text_tokenizer|tokenizer"


def _json(path: Path) -> dict[str, Any]:
    """Read a JSON object; an empty one if there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _corpus(folder: Path) -> bool:
    manifest, plan = _json(folder / "manifest.json"), _json(folder / ".work" / "plan.json")
    if _published(folder):
        return False
    return {"format_version", "shards", "plan"} <= set(manifest) or {"arguments", "files", "units"} <= set(plan)


def _is_ours(folder: Path) -> bool:
    return _json(folder / "config.json").get("model_type") in ("exceiver", "sccello", "langcell")


def _trained(folder: Path) -> bool:
    states = folder.glob("checkpoint-*/trainer_state.json")
    if _published(folder):
        return False
    return "cellglot" in _json(folder / "training_run.json") or any(_is_ours(state.parent) for state in states)


def _converted(folder: Path) -> bool:
    return _is_ours(folder) and "converted from the released checkpoint" in _card(folder)


def _evaluated(folder: Path) -> bool:
    return {"results", "finished", "models"} <= set(_json(folder / "evaluation.json"))


def _published(folder: Path) -> bool:
    if not any(
        (folder / name).is_file()
        for name in ("config.json", "adapter_config.json", "manifest.json", "app.py", "reference.json")
    ):
        return False
    head = _card(folder)
    return head.startswith("---\n") and "cellglot" in head and "converted from the released checkpoint" not in head


def _card(folder: Path) -> str:
    try:
        with open(folder / "README.md", encoding="utf-8", errors="replace") as card:
            return card.read(1 << 16)
    except OSError:
        return ""


def _demo(folder: Path) -> bool:
    return _corpus(folder / "corpus-exceiver") or _corpus(folder / "corpus-rank-value")


def _nothing_before(folder: Path) -> bool:
    return False


KINDS = {
    "tokenize": Kind(
        "a corpus of tokens",
        re.compile(
            r"manifest\.json(\.\d+\.tmp)?|data/(train|validation|test)-\d{6,}\.parquet(\.\d+\.tmp)?|"
            rf"tokenizer/({_SETTINGS})|\.work/.+"
        ),
        re.compile(r"data|tokenizer|\.work"),
        _corpus,
        code=True,
    ),
    "pretrain": Kind(
        "a pretrained model", re.compile(_TRAINED), re.compile(_TRAINED_FOLDERS), _trained, code=True
    ),
    "finetune": Kind(
        "a fine-tuned model", re.compile(_TRAINED), re.compile(_TRAINED_FOLDERS), _trained, code=True
    ),
    "convert": Kind(
        "a converted model",
        re.compile(rf"{_SAVED}|README\.md"),
        re.compile(r"text_tokenizer|tokenizer"),
        _converted,
        code=True,
    ),
    "export": Kind(
        "an exported model",
        re.compile(rf"{_SAVED}|annotation_calibration\.safetensors|{_GRAPHS}"),
        re.compile(r"text_tokenizer|tokenizer|onnx"),
        _nothing_before,
        code=True,
    ),
    "merge": Kind(
        "a merged model",
        re.compile(rf"{_SAVED}|training_run\.json"),
        re.compile(r"(text_)?tokenizer"),
        _nothing_before,
        code=True,
    ),
    "evaluate": Kind(
        "an evaluation",
        re.compile(r"evaluation\.(json|md)|scores\.png|umap_\w+\.(png|html)"),
        re.compile(r"(?!)"),
        _evaluated,
        companion=True,
        named=True,
    ),
    "index": Kind(
        "a reference for mapping",
        re.compile(_INDEX),
        re.compile(r"(?!)"),
        _nothing_before,
    ),
    "genes": Kind(
        "unfinished sums of the states of genes",
        re.compile(r"genes\.json|sums\.npz"),
        re.compile(r"(?!)"),
        _nothing_before,
    ),
    "perturb": Kind(
        "finished parts of a perturbation",
        re.compile(r"perturbation\.json|part-\d{6,}\.npz"),
        re.compile(r"(?!)"),
        _nothing_before,
    ),
    "embed": Kind(
        "finished parts of an embedding",
        re.compile(r"embedding\.json|block-\d{6,}\.npz"),
        re.compile(r"(?!)"),
        _nothing_before,
    ),
    "publish": Kind(
        "a published folder",
        re.compile(
            rf"{_SAVED}|README\.md|training_run\.json|manifest\.json|data/(train|validation|test)-\d{{6,}}\.parquet|"
            r"(examples|evaluation)\.json|[\w-]+\.yaml|(app|handler)\.py|requirements\.txt|[\w/-]+\.(png|svg)|"
            rf"{_INDEX}|{_GRAPHS}|{_PAGE}"
        ),
        re.compile(r"data|model|onnx|(text_)?tokenizer|vendor"),
        _published,
        code=True,
    ),
    "demo": Kind(
        "a demo",
        re.compile(
            r"(pbmc68k_reduced|cells|held_out|annotated)\.h5ad|(report|cells)\.html|embedding-[\w-]+\.npy|(umap|confusion)-[\w-]+\.png|"
            r"(ontology-geometry|langcell-zero-shot)\.(png|json)"
        ),
        re.compile(r"(?!)"),
        _demo,
        companion=True,
    ),
}  # fmt: skip


def kinds_of_earlier_versions(folder: Path) -> list[str]:
    """Return the kinds of output that a folder without a manifest certainly contains."""
    return [name for name, kind in KINDS.items() if kind.made_before(folder)]


__all__ = ["KINDS", "Kind", "code_files", "kinds_of_earlier_versions"]
