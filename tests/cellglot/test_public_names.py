import ast
import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import transformers

import cellglot


ROOT = Path(__file__).parents[2]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
FOLDERS = [ROOT / folder for folder in SETUPTOOLS["package-dir"].values()]
CODE = [p for f in FOLDERS for p in sorted(f.rglob("*.py")) if not p.with_name("collection.json").exists()]
MODULES = [p for p in CODE if p.name != "__init__.py"]


@pytest.mark.parametrize("package", SETUPTOOLS["packages"])
def test_public_names_of_packages_are_there(package):
    module = importlib.import_module(package)
    names = getattr(module, "__all__", [])
    assert len(set(names)) == len(names)
    for name in names:
        found = getattr(module, name)
        assert isinstance(found, str) or found.__name__ == name
        assert name in dir(module)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = module.no_such_name


def test_the_face_gives_the_names_of_the_packages():
    assert {"read_cells", "ExceiverModel", "ExceiverTokenizer", "RankValueTokenizer"} <= set(cellglot.__all__)
    for package in ("modeling", "tokenization"):
        module = importlib.import_module(f"cellglot.{package}")
        for name in set(cellglot.__all__) & set(module.__all__):
            assert getattr(cellglot, name) is getattr(module, name)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_public_names_of_modules_are_defined(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    defined, listed = set(), None
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            defined |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)]
            defined |= set(names)
            if names == ["__all__"]:
                listed = ast.literal_eval(node.value)
    assert listed is None or set(listed) <= defined
    assert listed is None or all(not name.startswith("_") for name in listed)


def imported_by(statement):
    """Modules of a fresh process after a statement."""
    script = f"import sys\n{statement}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.splitlines()[-1].split()}


def test_importing_brings_nothing_that_takes_time():
    heavy = {"torch", "transformers", "numpy", "anndata", "datasets", "h5py", "pyarrow", "zarr", "pandas", "typer"}
    assert not imported_by("import cellglot") & heavy


def test_models_bring_no_files_or_plots():
    brought = imported_by("import cellglot; cellglot.ExceiverModel; cellglot.ExceiverTokenizer")
    assert {"torch", "transformers", "numpy"} <= brought
    files_and_plots = {"anndata", "datasets", "h5py", "pyarrow", "zarr", "pandas", "typer"}
    files_and_plots |= {"matplotlib", "scanpy", "umap", "sklearn", "numba"}
    assert not brought & files_and_plots


def test_importing_registers_the_auto_classes(exceiver_config):
    config = exceiver_config()
    assert isinstance(transformers.AutoConfig.for_model("exceiver"), type(config))
    for kind in [k for k in config.auto_map if k.startswith("AutoModel")]:
        made = getattr(transformers, kind).from_config(config)
        assert f"{type(made).__module__}.{type(made).__name__}" == f"cellglot.modeling.{config.auto_map[kind]}"
