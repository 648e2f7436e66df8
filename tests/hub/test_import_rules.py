"""What Hub files may import, read from the files, so that new files are covered on their own."""

import ast
import functools
import sys
from collections import Counter
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_relative_import_files

from cellglot.model_cards.endpoint.staging import HANDLER_FILES


ROOT = Path(__file__).parents[2]
HUB_NAMES = (
    "configuration_*", "modeling_*", "cell_losses", "tokenization_*", "processing_*", "gene_vocabulary", "pipeline_*",
)  # fmt: skip
HUB_MAY_IMPORT = {"numpy", "torch", "transformers", "huggingface_hub", "safetensors"} | sys.stdlib_module_names
PACKAGES = ("modeling", "tokenization", "evaluation", "training", "model_cards")


@functools.cache
def nodes(path):
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]


def absolute_imports(path):
    """Dotted names; ``from a.b import c`` gives ``a.b`` and ``a.b.c``, as c may be a module."""
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif node.level == 0:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def relative_imports(path):
    return [n for n in nodes(path) if isinstance(n, ast.ImportFrom) and n.level]


def needed(path):
    """A Hub file's siblings, and theirs."""
    found, waiting = set(), [path]
    while waiting:
        for node in relative_imports(waiting.pop()):
            sibling = path.with_name(f"{node.module}.py")
            if sibling not in found and sibling.exists():
                found.add(sibling)
                waiting.append(sibling)
    return found


def all_files():
    files = [p for top in PACKAGES for p in sorted((ROOT / top).rglob("*.py"))]
    return [p for p in files if not p.with_name("collection.json").exists()]  # the code that a model carries is a copy


def hub_files():
    named = {p for top in ("modeling", "tokenization") for n in HUB_NAMES for p in (ROOT / top).glob(f"{n}.py")}
    named |= {ROOT / "model_cards" / "endpoint" / name for name in HANDLER_FILES}
    return sorted(named.union(*(needed(p) for p in named)))


def name_of(path):
    return str(path.relative_to(ROOT))


HUB_FILES = hub_files()
OTHER_FILES = [p for p in all_files() if p not in HUB_FILES]


def test_the_files_are_found():
    assert {"modeling_exceiver.py", "gene_vocabulary.py", "gene_encoding.py"} <= {p.name for p in HUB_FILES}
    assert {"exceiver.py", "corpus.py", "embed_file.py", "trainer.py"} <= {p.name for p in OTHER_FILES}


@pytest.mark.parametrize("path", HUB_FILES, ids=name_of)
def test_hub_files_import_what_a_stranger_has(path):
    beyond = {name for name in absolute_imports(path) if name.split(".")[0] not in HUB_MAY_IMPORT}
    assert not beyond, (
        f"{name_of(path)} is copied to model repositories, where there is no {', '.join(sorted(beyond))}"
    )


@pytest.mark.parametrize("path", HUB_FILES, ids=name_of)
def test_hub_files_import_siblings_by_name(path):
    for node in relative_imports(path):
        written = f"{name_of(path)}, line {node.lineno}: from {'.' * node.level}{node.module or ''} import"
        assert node.level == 1, f"{written} ... reaches into a parent folder, which is not copied"
        assert node.module, f"{written} {node.names[0].name}: not copied; write from .sibling import X"
        assert "." not in node.module, f"{written} ... is nested: Hub files lie flat"
        assert path.with_name(f"{node.module}.py").exists(), f"{written} ...: there is no such file beside it"


@pytest.mark.parametrize("path", HUB_FILES, ids=name_of)
def test_transformers_copies_what_hub_files_need(path):
    assert {Path(p) for p in get_relative_import_files(path)} == needed(path)


def test_names_of_hub_files_are_unique_over_folders():
    used = Counter(p.name for p in all_files())
    assert not {p.name for p in HUB_FILES if used[p.name] > 1}


@pytest.mark.parametrize("path", OTHER_FILES, ids=name_of)
def test_other_files_import_absolutely(path):
    assert not [f"line {node.lineno}" for node in relative_imports(path)], f"{name_of(path)}: from cellglot... import"
