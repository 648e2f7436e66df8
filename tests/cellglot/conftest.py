import sys
from dataclasses import dataclass

import pytest


@dataclass
class Finished:
    """What a command left: exit status, and what it printed."""

    status: int
    out: str
    err: str


@pytest.fixture
def cellglot_command(monkeypatch, capfd):
    """Run the command line in this process, as the installed command does; gives what it left."""

    def run(*arguments):
        from cellglot.cli import main

        monkeypatch.setattr(sys, "argv", ["cellglot", *map(str, arguments)])
        for name, value in {"COLUMNS": "400", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1"}.items():
            monkeypatch.setenv(name, value)
        capfd.readouterr()
        status = 0
        try:
            main()
        except SystemExit as stop:
            status = stop.code or 0
        return Finished(status, *capfd.readouterr())

    return run
