"""The page on publishing: its code runs as pasted, its commands and fields exist."""

import dataclasses
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import typer
import yaml

from cellglot.cli import app
from cellglot.model_cards.card.details import CardDetails


PAGE = (Path(__file__).parents[2] / "docs" / "guides" / "publishing.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\s*\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def test_python_blocks_run_in_order_as_pasted(tmp_path):
    code = blocks("python")
    runner = "".join(
        f"exec(compile({text!r}, 'publishing.md, Python block {i}', 'exec'), globals())\n"
        for i, text in enumerate(code, 1)
    )
    # The process that loads what is published has tests of its own: here that part runs in the page's process.
    patch = (
        "from cellglot.model_cards import publishing as p\nfrom cellglot.model_cards.checks import clean_process\n"
        "p.visit_as_stranger = clean_process.visit_here\n"
    )
    (tmp_path / "page.py").write_text(patch + runner, encoding="utf-8")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(
        [sys.executable, "page.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "published" / "blood-exceiver" / "README.md").exists()


def test_commands_and_their_options_exist():
    known = typer.main.get_command(app).commands
    lines = [line for block in blocks("bash") for line in block.replace("\\\n", " ").splitlines()]
    inline = re.findall(r"`(cellglot publish [^`]+)`", PAGE)
    for line in [*lines, *inline]:
        _, name, *arguments = shlex.split(line)
        known[name].make_context(name, arguments)


def test_fields_of_the_yaml_exist():
    fields = {f.name for f in dataclasses.fields(CardDetails)}
    (example,) = blocks("yaml")
    assert set(yaml.safe_load(example)) <= fields
    assert all(f"`{name}`" in PAGE or name in example or f"--{name.replace('_', '-')}" in PAGE for name in fields)
