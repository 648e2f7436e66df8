"""The README's code runs as pasted, and its commands exist."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import typer

from cellglot.cli import app


ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"


def blocks(language):
    """Content of the README's fenced blocks of a language."""
    return re.findall(rf"^```{language}\s*\n(.*?)^```", README.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands():
    """Command lines of the bash blocks: continued lines joined, prompts, comments and variables left out."""
    for block in [*blocks("bash"), *blocks("sh"), *blocks("console")]:
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            while words and re.fullmatch(r"\w+=.*", words[0]):
                words.pop(0)
            if words:
                yield words


def test_python_blocks_run_in_order_as_pasted(tmp_path):
    code = blocks("python")
    assert code, "the README shows no Python"
    # One namespace; each block is compiled alone, so that a trace names the block.
    runner = "".join(
        f"exec(compile({text!r}, 'README.md, Python block {i}', 'exec'), globals())\n"
        for i, text in enumerate(code, 1)
    )
    (tmp_path / "readme.py").write_text(runner, encoding="utf-8")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg"}
    done = subprocess.run(
        [sys.executable, "readme.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_commands_and_their_options_exist():
    known = typer.main.get_command(app).commands
    shown = [words for words in commands() if words[0] == "cellglot" and len(words) > 1 and words[1][0] != "-"]
    assert shown, "the README shows no command of cellglot"
    for _, name, *arguments in shown:
        assert name in known, f"cellglot {name}"
        known[name].make_context(name, arguments)  # an option that does not exist, or is missing, is an error


def test_targets_of_make_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    asked = {word for words in commands() if words[0] == "make" for word in words[1:] if "=" not in word}
    assert {"demo", "test"} <= asked <= targets
