"""Which room may import which: from the files themselves, whether an import is at the top or inside a function."""

import ast
import functools
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
PACKAGES = {
    "cellglot": "src/cellglot",
    **{f"cellglot.{top}": top for top in ("modeling", "tokenization", "training", "evaluation", "model_cards")},
}

# A floor a line, the lowest first. A name stands for a module, or for all of a folder that no longer name stands for.
# Modules import from lower floors and from their own room: not from a room beside it, and never from above.
FLOORS = """
cellglot.contents cellglot.lists cellglot.outputs cellglot.progress
cellglot.inputs cellglot.packed_tables
cellglot.families
cellglot.modeling.families cellglot.tokenization.families
cellglot.auto_classes
cellglot
cellglot.modeling cellglot.tokenization
cellglot.tokenization.genes.tables
cellglot.tokenization.genes.species
cellglot.modeling.convert cellglot.tokenization.reading cellglot.tokenization.kernels
cellglot.modeling.convert_exceiver cellglot.modeling.convert_sccello cellglot.modeling.convert_langcell
cellglot.tokenization.ontology cellglot.tokenization.genes
cellglot.tokenization.corpus
cellglot.evaluation.metrics
cellglot.evaluation.scores
cellglot.evaluation
cellglot.evaluation.search
cellglot.evaluation.mapping
cellglot.evaluation.perturbation
cellglot.evaluation.genes
cellglot.evaluation.annotation cellglot.evaluation.drug_response cellglot.evaluation.judges
cellglot.evaluation.benchmark
cellglot.training.config
cellglot.training.data cellglot.training.runs
cellglot.training
cellglot.training.families
cellglot.training.pretraining
cellglot.training.finetuning
cellglot.training.pretrain
cellglot.model_cards.checks cellglot.model_cards.endpoint
cellglot.model_cards
cellglot.model_cards.card
cellglot.model_cards.prepare
cellglot.model_cards.publishing
cellglot.model_cards.space
cellglot.model_cards.collection
cellglot.verbs
cellglot.demo
cellglot.cli
cellglot.__main__
"""
FLOOR = {name: number for number, line in enumerate(FLOORS.strip().splitlines()) for name in line.split()}


@functools.cache
def modules():
    """Module -> its file."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in (ROOT / folder).rglob("*.py"):
            if path.with_name("collection.json").exists():
                continue  # the code that a model of the collection carries
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join((package, *(part for part in parts if part != "__init__")))] = path
    return found


@functools.cache
def public(package):
    """Public name -> module that a package takes it from when it is asked for."""
    for node in ast.parse(modules()[package].read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "_PUBLIC":
            return {name: f"{package}.{module}" for name, module in ast.literal_eval(node.value).items()}
    return {}


def target(package, name):
    """Module that ``from package import name`` is about."""
    module = f"{package}.{name}"
    if module in modules():
        return module
    source = public(package).get(name) if package in modules() else None
    return package if source is None else target(source, name)


@functools.cache
def imports():
    """Module -> (line, module that it imports) of the package; imports inside of functions are among them."""
    found = {}
    for module, path in modules().items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        found[module] = []
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                source = node.module or ""
                if node.level:
                    source = f"{package}.{source}"
                names = [target(source, alias.name) for alias in node.names]
            else:
                continue
            found[module] += [(node.lineno, name) for name in names if name in modules()]
    return found


def room(module):
    """Return the longest name in the table that stands for a module; a package's face is of the room that it names."""
    parts = module.split(".")
    names = (".".join(parts[:length]) for length in range(len(parts), 1 if len(parts) > 1 else 0, -1))
    return next((name for name in names if name in FLOOR), None)


def test_every_module_has_a_floor():
    missing = [module for module in modules() if room(module) is None]
    assert not missing, f"give {', '.join(missing)} a floor in FLOORS"
    unused = set(FLOOR) - {room(module) for module in modules()}
    assert not unused, f"{', '.join(sorted(unused))} in FLOORS is not there"


def test_imports_lead_downwards():
    upwards = [
        f"{modules()[module].relative_to(ROOT)}:{line} imports {other}"
        for module, found in imports().items()
        for line, other in found
        if room(module) != room(other) and FLOOR.get(room(other), 0) >= FLOOR.get(room(module), 0)
    ]
    assert not upwards, "from a lower floor to a higher one:\n" + "\n".join(upwards)


def test_there_is_no_circle():
    graph = {module: {other for _, other in found if other != module} for module, found in imports().items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("modules import each other: " + " -> ".join(reversed(error.args[1])))


def test_names_are_traced_to_modules():
    assert target("cellglot.evaluation", "embed_cells").startswith("cellglot.evaluation.")
    assert room("cellglot.training.finetuning.tasks") == "cellglot.training.finetuning"
    assert room("cellglot.training.trainer") == "cellglot.training"
    assert room("cellglot.nowhere") is None
    everything = {name for found in imports().values() for _, name in found}
    assert {"cellglot.modeling.modeling_langcell_text", "cellglot.tokenization.kernels.encoding"} <= everything
