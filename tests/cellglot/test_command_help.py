import subprocess
import sys

import pytest
import typer

import cellglot
from cellglot.cli import app


COMMANDS = typer.main.get_command(app).commands


def test_the_commands_are_listed(cellglot_command):
    done = cellglot_command("--help")
    assert done.status == 0
    assert {"tokenize", "pretrain", "finetune", "embed", "convert", "demo"} <= set(COMMANDS)
    assert all(f" {name} " in done.out for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_and_explains_every_option(cellglot_command, name):
    done = cellglot_command(name, "--help")
    assert (done.status, done.err) == (0, "")
    words = done.out.replace(",", " ").split()
    for parameter in COMMANDS[name].params:
        shown = parameter.opts if parameter.param_type_name == "option" else []
        assert set(shown) <= set(words), shown
        if parameter.name != "help":
            assert parameter.help, f"{name}: {parameter.name} is not explained"
            assert " ".join(parameter.help.split()[:3]) in done.out


def test_without_arguments_the_help_is_shown(cellglot_command):
    assert "Usage: cellglot [OPTIONS] COMMAND" in cellglot_command().out


def test_version(cellglot_command):
    done = cellglot_command("--version")
    assert (done.status, done.out, done.err) == (0, f"{cellglot.__version__}\n", "")


def test_help_and_version_do_not_wait_for_pytorch():
    script = """
        import sys
        sys.argv = ["cellglot", {argument!r}]
        from cellglot.cli import main
        try:
            main()
        except SystemExit:
            pass
        print([m for m in ("torch", "transformers", "numpy", "anndata", "scanpy", "matplotlib") if m in sys.modules])
    """.replace("\n        ", "\n")
    for argument in ("--version", "--help"):
        done = subprocess.run(
            [sys.executable, "-c", script.format(argument=argument)], capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines()[-1] == "[]"
