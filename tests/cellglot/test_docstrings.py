"""Every public name says what it is; exported ones also what they take and which errors they raise."""

import ast
import dataclasses
import importlib
import inspect
import re
import tomllib
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
FOLDERS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]
SECTIONS = ("Parameters", "Attributes", "Returns", "Yields", "Raises", "Examples", "Notes", "References", "See Also")
HEADING = re.compile(r"^([A-Z]\w+(?: \w+)?)\n(-+)$", re.MULTILINE)
# What is passed on, what users do not set, and names that say all there is to say.
NOT_ASKED_FOR = {"kwargs", "auto_map", "batch_size", "device", "progress", "title"}


def modules():
    """Names of all modules: path -> dotted name."""
    return {
        path: ".".join((package, *path.relative_to(ROOT / folder).with_suffix("").parts)).removesuffix(".__init__")
        for package, folder in sorted(FOLDERS.items())
        for path in sorted((ROOT / folder).rglob("*.py"))
        if not path.with_name("collection.json").exists()  # the code that a model carries is a copy
    }


def exported(owner):
    """Names of a module that the packages users import export: of these, every parameter is explained."""
    inner = ("cellglot.inputs", "cellglot.outputs", "cellglot.demo")
    packages = [importlib.import_module(name) for name in FOLDERS if name.count(".") < 2 and name not in inner]
    found = [(package, name) for package in packages for name in package.__all__]
    return {name for package, name in found if getattr(getattr(package, name), "__module__", None) == owner.__name__}


def sections(text):
    """Headings of a numpydoc docstring -> their content."""
    pieces = HEADING.split(inspect.cleandoc(text or ""))
    return dict(zip(pieces[1::3], pieces[3::3], strict=True))


def entries(content):
    """Names that a section explains: lines that are not indented, ``a, b : type``."""
    lines = [line for line in content.splitlines() if line and not line.startswith(" ")]
    return [name.strip().lstrip("*") for line in lines for name in line.split(":")[0].split(",")]


def public(tree, prefix=""):
    """Yield (qualified name, node) of public classes and functions, and of public methods of public classes."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            if any(ast.unparse(d).endswith(".setter") for d in node.decorator_list):
                continue  # the property says it
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public(node, f"{prefix}{node.name}.")


def arguments(node):
    """Names of a function's arguments in their order."""
    a = node.args
    listed = [*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg]
    return [x.arg for x in listed if x is not None and x.arg not in ("self", "cls")]


def raised(node):
    """Names of exceptions that stand in the function's own raise statements."""
    given = [n.exc for n in ast.walk(node) if isinstance(n, ast.Raise) and isinstance(n.exc, ast.Call | ast.Name)]
    names = [ast.unparse(e.func if isinstance(e, ast.Call) else e).split(".")[-1] for e in given]
    return {name for name in names if name[0].isupper()}


def is_command(node):
    """Whether the docstring is the help text of a command."""
    return any(ast.unparse(d).startswith("app.") for d in node.decorator_list)


def problems_of_function(node, public_name):
    found = sections(ast.get_docstring(node))
    if "Parameters" in found:
        explained, taken = entries(found["Parameters"]), arguments(node)
        yield from (f"explains {n!r}, which it does not take" for n in explained if n not in taken)
        missing = set(taken) - set(explained) - NOT_ASKED_FOR if public_name else set()
        yield from (f"does not explain {n!r}" for n in sorted(missing))
    if "Returns" in found and node.returns is not None and ast.unparse(node.returns) == "None":
        yield "explains what it returns and returns nothing"
    missing = raised(node) - set(entries(found.get("Raises", "")))
    if missing and public_name and not is_command(node):
        yield f"raises {', '.join(sorted(missing))} and does not say when"


def problems_of_class(node, kind, public_name):
    own = [f for f in inspect.get_annotations(kind) if not f.startswith("_")] if dataclasses.is_dataclass(kind) else []
    if own:
        known = {f.name for f in dataclasses.fields(kind)}
        needed = {f.name for f in dataclasses.fields(kind) if f.name in own and f.init}
    elif "__init__" in vars(kind) and not getattr(kind, "_is_protocol", False):
        needed = set(inspect.signature(vars(kind)["__init__"]).parameters) - {"self"}
        constructors = [
            vars(base)["__init__"] for base in kind.__mro__ if inspect.isfunction(vars(base).get("__init__"))
        ]
        known = {name for constructor in constructors for name in inspect.signature(constructor).parameters}
    else:
        return
    explained = entries(sections(ast.get_docstring(node)).get("Parameters", ""))
    yield from (f"explains {n!r}, which it does not take" for n in explained if n not in known)
    missing = needed - set(explained) - NOT_ASKED_FOR if public_name else set()
    yield from (f"does not explain {n!r}" for n in sorted(missing))


def problems(node, owner, name, public_names):
    public_name = name.split(".")[0] in public_names
    text = ast.get_docstring(node)
    if not text:
        yield "has no docstring"
        return
    for heading, line in HEADING.findall(inspect.cleandoc(text)):
        if heading not in SECTIONS or len(line) != len(heading):
            yield f"has a section {heading!r} that numpydoc does not know or that is underlined too short or long"
    if isinstance(node, ast.ClassDef):
        kind = owner
        for part in name.split("."):
            kind = getattr(kind, part)
        yield from problems_of_class(node, kind, public_name)
    else:
        yield from problems_of_function(node, public_name)


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_docstrings(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), f"{path.relative_to(ROOT)} does not say what it is"
    owner = importlib.import_module(modules()[path])
    names = exported(owner)
    said = [f"{name} {what}" for name, node in public(tree) for what in problems(node, owner, name, names)]
    assert not said, "\n".join(said)


WRONG = '''
class NoText:
    pass
def f(a, b):
    """Do.

    Parameters
    ----------
    a, c
        Numbers.
    """
    raise KeyError(a)
def inner(a, b):
    """Do.

    Parameters
    ----------
    a
        Numbers.
    """
'''


def test_the_lint_finds_what_is_wrong():
    nodes = public(ast.parse(WRONG))
    said = [f"{name} {what}" for name, node in nodes for what in problems(node, None, name, {"f", "NoText"})]
    assert said == [
        "NoText has no docstring",
        "f explains 'c', which it does not take",
        "f does not explain 'b'",
        "f raises KeyError and does not say when",
    ]
