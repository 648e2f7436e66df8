"""Every block of README.md, CONTRIBUTING.md and docs/ runs, page by page, in a folder with the files that pages name.

Blocks of one page run in their order: Python in one namespace, commands of cellglot in this process, trainings in few
steps. A corpus or a training that several pages make in the same way is made once. A block after
``<!-- not run: REASON -->`` is parsed: its options, modules and names have to exist.
"""

import ast
import dataclasses
import glob
import importlib
import json
import re
import shlex
import shutil
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
import typer
import yaml

from cellglot.evaluation.benchmark.jobs import Settings


ROOT = Path(__file__).parents[2]
PAGES = sorted(
    str(p.relative_to(ROOT))
    for p in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    if "generated" not in p.parts
)
BLOCK = re.compile(r"(?:<!-- not run: (?P<reason>[^>]+) -->\n+)?^```(?P<language>\w+)\n(?P<text>.*?)^```", re.S | re.M)
FEW_STEPS = {
    "max_steps": 2, "use_cpu": True, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps",
    "save_steps": 2, "per_device_train_batch_size": 4,
}  # fmt: skip


SIZES = {
    "gene_embedding_size": 16, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_latents": 4, "projection_dim": 8,
}  # fmt: skip


class Block(NamedTuple):
    language: str
    text: str
    runs: bool
    place: str

    def commands(self):
        """Words of each command: continued lines joined, prompts, comments and variables left out."""
        for line in self.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            while words and re.fullmatch(r"\w+=.*", words[0]):
                words.pop(0)
            if words:
                yield words


def blocks(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        line = text.count("\n", 0, found.start("text")) + 1
        yield Block(found["language"], found["text"], found["reason"] is None, f"{page}, line {line}")


def command_line():
    from cellglot.cli import app

    return typer.main.get_command(app)


def without_launcher(words):
    """A command that `accelerate launch` or `torchrun` starts in several processes, as it is in one."""
    if words[0] == "torchrun" or words[:2] == ["accelerate", "launch"]:
        assert words[words.index("-m") + 1] == "cellglot", words
        return ["cellglot", *words[words.index("-m") + 2 :]]
    return words


def small(model):
    """Sizes of a configuration, made small."""
    return {k: small(v) if isinstance(v, dict) else SIZES.get(k, v) for k, v in model.items()}


class Results:
    """Runs commands; a folder that an earlier page made from the same inputs is copied."""

    def __init__(self, store):
        self.store, self.made = store, {}  # (command, what its inputs are) -> folder
        self.page, self.known = "", {}  # name of a file or folder on the present page -> what it is
        self.of_things = {}

    def begin(self, page, known):
        self.page, self.known = page, dict(known)

    def run(self, words):
        """Run a command of cellglot here, its patterns of files expanded as a shell does."""
        words = [w for word in words for w in (sorted(glob.glob(word)) or [word])]
        if words[0] == "evaluate":
            words += ["--marker-cells", "5"]
        if words[0] not in ("tokenize", "pretrain", "finetune"):
            command_line().main(words, standalone_mode=False)
            return
        at = words.index("-o") + 1
        output = words[at]
        command = (*words[:at], *words[at + 1 :])
        key = (command, tuple(self.what(word.rpartition("=")[2]) for word in command))
        if key in self.made and not Path(output).exists():
            shutil.copytree(self.made[key], output)
        else:
            command_line().main(words, standalone_mode=False)
            self.made[key] = shutil.copytree(output, self.store / str(len(self.made)))
        self.known[output] = key

    def what(self, name):
        """Say what a name on this page is: a thing of all pages, the result of a command, or the page's own."""
        return self.known.get(name, (self.page, name)) if Path(name).exists() else None


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return Results(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def things(blood, vocabulary, cell_text_folder, results, tmp_path_factory):
    """What pages name: cells, tables of genes and markers, a corpus, models, a classifier, an adapter."""
    from cellglot.modeling import ScCelloConfig, ScCelloForMaskedLM
    from cellglot.tokenization import RankValueTokenizer

    folder = tmp_path_factory.mktemp("things")
    cells = blood[:80].copy()
    types = blood.obs["cell_type"].astype(str)[:80]
    cells.obs = pd.DataFrame(
        {"cell_type": types, "batch": np.where(np.arange(80) % 2, "a", "b"), "age": np.arange(80) % 50},
        index=cells.obs_names,
    )
    cells.write_h5ad(folder / "cells.h5ad")
    genes = [vocabulary.symbol(g) for g in vocabulary.genes]
    rows = [f"{g},{'ribosomal' if g.startswith('RP') else 'other'}" for g in genes[:300]]
    (folder / "genes.csv").write_text("gene,class\n" + "\n".join(rows))
    (folder / "markers.tsv").write_text("cell_type\tgene\nB cell\tCD79A,MS4A1\nNK cell\tGNLY,NKG7\n")
    tokenizer = RankValueTokenizer.from_vocabulary(vocabulary, add_cls_token=True, model_max_length=32)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    torch.manual_seed(0)
    config = ScCelloConfig(vocab_size=tokenizer.vocab_size, max_position_embeddings=32, **sizes)
    ScCelloForMaskedLM(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    shutil.copytree(cell_text_folder, folder / "langcell")
    for part, length in (("", 64), ("text_tokenizer", 48)):  # texts are spelt letter by letter there
        settings = folder / "langcell" / part / "tokenizer_config.json"
        settings.write_text(json.dumps(json.loads(settings.read_text()) | {"model_max_length": length}))
    for shipped in (ROOT / "training" / "configs").glob("*.yaml"):
        content = yaml.safe_load(shipped.read_text())
        content["model"] = small(content.get("model", {}))
        content["trainer"] = content.get("trainer", {}) | FEW_STEPS
        (folder / shipped.name).write_text(yaml.safe_dump(content))
    patch = pytest.MonkeyPatch()
    patch.chdir(folder)
    results.begin("things", {path.name: path.name for path in folder.iterdir()})
    for words in (
        "tokenize cells.h5ad -o tokens",
        "finetune model --cells cells.h5ad --labels cell_type -o classifier",
        "finetune model --cells cells.h5ad --labels cell_type -o adapter --method lora",
    ):
        results.run(words.split())
    patch.undo()
    results.of_things = results.known
    return folder


@pytest.fixture(scope="module")
def collection(things, tmp_path_factory):
    """The models that ship; a tiny classifier as long as none of them annotates blood."""
    from cellglot.modeling import collection

    if any(model.default for model in collection.read_collection()):
        return collection.collection_folder()
    folder = tmp_path_factory.mktemp("collection")
    shutil.copytree(things / "classifier", folder / "blood-exceiver")
    facts = {"family": "sccello", "purpose": "cell classification", "default": True}
    (folder / "blood-exceiver" / collection.FACTS_FILE).write_text(json.dumps(facts))
    return folder


@pytest.fixture
def folder(request, things, results, collection, tmp_path, monkeypatch):
    """A page's own copy of the things, less what the page makes itself."""
    page = request.getfixturevalue("page")
    made = set()
    for block in blocks(page):
        if block.runs:
            made |= set(re.findall(r"(?:-o|--output)\s+([\w.]+)", block.text))
            made |= set(re.findall(r"""output=["']([\w.]+)["']""", block.text))
    for thing in things.iterdir():
        if thing.name not in made:
            (shutil.copytree if thing.is_dir() else shutil.copy)(thing, tmp_path / thing.name)
    results.begin(page, {path.name: results.of_things[path.name] for path in tmp_path.iterdir()})
    monkeypatch.setattr("cellglot.modeling.collection.collection_folder", lambda: collection)
    monkeypatch.setattr("cellglot.evaluation.benchmark.evaluate.Settings", partial(Settings, draws=20))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    return tmp_path


@pytest.mark.parametrize("page", PAGES)
def test_page_runs(page, folder, results, no_process):
    names = {"__name__": "page"}
    for block in blocks(page):
        if block.language == "python" and block.runs:
            exec(compile(block.text, block.place, "exec"), names)
        elif block.language == "python":
            look_at_python(block)
        elif block.language in ("bash", "sh", "console"):
            for words in block.commands():
                words = without_launcher(words)
                look_at_command(words, block)
                if words[0] == "cellglot" and block.runs and words[1][0] != "-":
                    results.run(words[1:])
        elif block.language == "yaml":
            assert isinstance(yaml.safe_load(block.text), dict), block.place


def look_at_python(block):
    """Parse Python that does not run here; what it imports of cellglot has to exist."""
    for node in ast.walk(ast.parse(block.text, block.place)):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "cellglot":
            module = importlib.import_module(node.module)
            for name in node.names:
                assert hasattr(module, name.name), f"{block.place}: {node.module}.{name.name}"


def look_at_command(words, block):
    """A command's verb and options, or a target of make, have to exist; others only where nothing is run."""
    if words[0] == "make":
        targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        assert {w for w in words[1:] if "=" not in w} <= targets, block.place
    elif words[0] == "cellglot" and words[1][0] != "-":
        known = command_line().commands
        assert words[1] in known, f"{block.place}: cellglot {words[1]}"
        known[words[1]].make_context(words[1], words[2:])
    elif words[0] == "python":
        assert (ROOT / words[1]).exists() or not block.runs, block.place
    elif words[0] == ".ci/run":
        assert (ROOT / words[0]).exists()
    else:
        assert words[:2] == ["pip", "install"] or not block.runs, f"{block.place}: {words[0]} is not run"


def test_every_block_has_a_language():
    for page in PAGES:
        fences = re.findall(r"^```([^\n]*)$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
        assert "" not in fences[::2] and not any(fences[1::2]), page


def test_blocks_of_the_readme_do_not_scroll():
    for block in blocks("README.md"):
        for number, line in enumerate(block.text.splitlines(), 1):
            assert len(line) <= 88, f"{block.place}, line {number} of the block: {line}"


def test_links_and_places_at_the_root_exist():
    for page in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            assert (ROOT / link).exists(), f"{page}: {link}"
    top = "|".join(p.name for p in ROOT.iterdir() if p.is_dir() and p.name[0] not in "._")
    for place in re.findall(rf"`((?:{top})(?:/[\w.*/]*)?)`", text.split("## How to add")[0]):
        assert list(ROOT.glob(place)), f"CONTRIBUTING.md: {place}"


def test_reference_has_every_public_name():
    import cellglot

    pages = (ROOT / "docs" / "reference").glob("*.md")
    listed = {name for p in pages for name in re.findall(r"^   (\w+)$", p.read_text(encoding="utf-8"), re.MULTILINE)}
    assert {n for n in cellglot.__all__ if n[0] != "_"} - listed - {"register_auto_classes"} == set()


def test_publishing_page_names_every_field_of_a_card():
    from cellglot.model_cards import CardDetails

    fields = {f.name for f in dataclasses.fields(CardDetails)}
    page = (ROOT / "docs" / "guides" / "publishing.md").read_text(encoding="utf-8")
    (example,) = [b.text for b in blocks("docs/guides/publishing.md") if b.language == "yaml"]
    assert set(yaml.safe_load(example)) <= fields
    assert all(f"`{name}`" in page or name in example or f"--{name.replace('_', '-')}" in page for name in fields)
