"""The command that writes the tables of docs/evaluation."""

import argparse
import importlib
import subprocess
import sys

import evaluation_tables
import pytest


class Parsed(Exception):
    """The arguments of a script were accepted."""


@pytest.fixture
def commands(monkeypatch):
    """Record the commands of the studies in place of running them; those whose script is in `failing` fail."""
    given, failing = [], set()

    def run(command, **options):
        given.append([*command[1:], options["env"]["CELLGLOT_REFERENCE_DATA"]])
        return subprocess.CompletedProcess(command, int(command[1].rpartition("/")[2] in failing))

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(evaluation_tables, "put_on_cards", lambda: print("cards"))
    return given, failing


def test_every_study_has_a_script_and_a_page():
    for study in evaluation_tables.STUDIES.values():
        assert (evaluation_tables.HERE / study.script).is_file()
        page = evaluation_tables.ROOT / "docs" / "evaluation" / study.page
        assert f"benchmarks/{study.script}" in page.read_text(encoding="utf-8")


def test_every_page_with_tables_of_a_study_is_written(commands, tmp_path, capsys):
    given, _ = commands
    assert evaluation_tables.main(["--data", str(tmp_path), "--output", str(tmp_path / "out")]) == 0
    assert [words[0].rpartition("/")[2] for words in given] == [s.script for s in evaluation_tables.STUDIES.values()]
    assert all(words[-1] == str(tmp_path) for words in given)
    printed = capsys.readouterr().out
    assert all(f"docs/evaluation/{study.page}" in printed for study in evaluation_tables.STUDIES.values())
    assert printed.endswith("cards\n")


def test_a_try_writes_copies_of_the_pages(commands, tmp_path, capsys):
    given, _ = commands
    output = tmp_path / "out"
    assert evaluation_tables.main(["--data", str(tmp_path), "--output", str(output), "--quick"]) == 0
    assert all("--quick" in words and str(output / "records") in words for words in given)
    for study, words in zip(evaluation_tables.STUDIES.values(), given, strict=True):
        page = output / "pages" / study.page
        assert str(page) in words and "<!-- " in page.read_text(encoding="utf-8")
        assert study.kept is None or str(output / study.kept[1]) in words
    assert "docs/evaluation" not in (printed := capsys.readouterr().out) and "cards" not in printed


def test_a_failed_study_does_not_stop_the_others_and_is_named(commands, tmp_path, capsys):
    given, failing = commands
    failing.add("gene_embeddings.py")
    assert evaluation_tables.main(["--data", str(tmp_path), "--studies", "genes", "judges"]) == 1
    assert len(given) == 2
    printed = capsys.readouterr()
    assert "docs/evaluation/judges.md" in printed.out and "docs/evaluation/genes.md" not in printed.out
    assert "--studies genes" in printed.err


def test_a_missing_folder_of_data_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        evaluation_tables.main(["--data", str(tmp_path / "missing")])
    assert "missing is not a folder" in capsys.readouterr().err


@pytest.mark.parametrize("study", evaluation_tables.STUDIES.values(), ids=list(evaluation_tables.STUDIES))
def test_the_script_knows_the_arguments(study, tmp_path, monkeypatch):
    script = importlib.import_module(study.script.removesuffix(".py"))
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser, *given):
        parse(parser, *given)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    arguments = [study.script, *study.arguments(tmp_path, tmp_path)]
    for more in ([], study.quick(tmp_path)):
        monkeypatch.setattr(sys, "argv", [*arguments, *more])
        with pytest.raises(Parsed):
            script.main()
