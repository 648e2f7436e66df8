"""What pyproject.toml lists, compared with what is on disk: a package left out is missing from the wheel alone."""

import tomllib
from pathlib import Path

import cellglot


ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PROJECT["tool"]["setuptools"]
NO_PACKAGES = {"tests", "benchmarks", "docs", "src", "build", "dist"}


def folder_of(package):
    """The folder that setuptools takes a package from: by the longest listed parent."""
    parts = package.split(".")
    for n in range(len(parts), 0, -1):
        listed = SETUPTOOLS["package-dir"].get(".".join(parts[:n]))
        if listed is not None:
            return ROOT.joinpath(listed, *parts[n:])
    return ROOT.joinpath(*parts)


def tops():
    """Folders at the root that hold Python packages."""
    tried = [p for p in ROOT.iterdir() if p.is_dir() and p.name not in NO_PACKAGES and p.name[0] not in "._"]
    return [p for p in tried if p.suffix != ".egg-info" and (p / "__init__.py").exists()]


def test_every_folder_with_code_is_a_listed_package():
    found = {"cellglot": ROOT / "src" / "cellglot"}
    for top in [*tops(), ROOT / "src" / "cellglot"]:
        for file in top.rglob("*.py"):
            if file.with_name("collection.json").exists():
                continue  # the code that a model of the collection carries
            parts = file.parent.relative_to(ROOT if top.parent == ROOT else ROOT / "src").parts
            found[".".join(parts if parts[0] == "cellglot" else ("cellglot", *parts))] = file.parent
    assert {name: folder_of(name) for name in SETUPTOOLS["packages"]} == found
    assert {"cellglot.modeling", "cellglot.tokenization", "cellglot.training", "cellglot.evaluation"} <= set(found)


def test_every_listed_folder_is_that_of_a_package():
    assert set(SETUPTOOLS["package-dir"]) <= set(SETUPTOOLS["packages"])
    for package in SETUPTOOLS["packages"]:
        parent, _, name = package.rpartition(".")  # a metric's folder holds the module of its name, as evaluate asks
        file = f"{name}.py" if parent == "cellglot.evaluation.metrics" else "__init__.py"
        assert (folder_of(package) / file).exists(), package


def test_every_other_file_goes_into_the_wheel():
    data = SETUPTOOLS["package-data"]
    packages = {folder_of(name): name for name in SETUPTOOLS["packages"]}
    for folder, package in packages.items():
        matched = {p for pattern in data.get(package, []) for p in folder.glob(pattern)}
        mine = {p for p in folder.rglob("*") if p.is_file() and p.parent.name != "__pycache__"}
        mine = {p for p in mine if p.suffix != ".py" or p.with_name("collection.json").exists()}
        mine = {p for p in mine if next(f for f in p.parents if f in packages) == folder}
        assert mine - matched == set(), f"{package}: these files are in no pattern of package-data"
        for pattern in data.get(package, []):
            assert list(folder.glob(pattern)), f"{package}: nothing matches {pattern}"
    assert "py.typed" in data["cellglot"]


def test_the_version_is_the_projects():
    assert cellglot.__version__ == PROJECT["project"]["version"]


def test_the_command_is_the_command_line():
    module, function = PROJECT["project"]["scripts"]["cellglot"].split(":")
    assert (module, function) == ("cellglot.cli", "main")
    assert (folder_of("cellglot") / "cli.py").exists()
