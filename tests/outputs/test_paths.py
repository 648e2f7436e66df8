"""What may not be written to: inputs in every spelling, homes, roots, repositories, files that exist."""

import os

import pytest

from cellglot.outputs import OutputError, check_file, check_files, check_folder


@pytest.fixture
def project(tmp_path):
    """A folder with cells at some depth."""
    (tmp_path / "project" / "data").mkdir(parents=True)
    (tmp_path / "project" / "data" / "cells.h5ad").write_text("counts")
    return tmp_path / "project"


def _spellings(project):
    """Ways to name the project folder, or one that cells are linked into."""
    (project.parent / "alias").symlink_to(project)
    (project.parent / "linked").mkdir()
    (project.parent / "linked" / "cells.h5ad").symlink_to(project / "data" / "cells.h5ad")
    cells = project / "data" / "cells.h5ad"
    return [
        (project, cells),
        (project / "data", cells),
        (project / "data" / ".." / "data", cells),
        (project.parent / "alias", cells),
        (project, project.parent / "alias" / "data" / "cells.h5ad"),
        (project.parent / "linked", project.parent / "linked" / "cells.h5ad"),
        (project, project.parent / "linked" / "cells.h5ad"),
        (project.parent, cells),
        (project / "data", project / "data"),
    ]


@pytest.mark.parametrize("number", range(9))
def test_a_folder_that_is_or_holds_an_input_is_refused(project, number):
    output, given = _spellings(project)[number]
    with pytest.raises(OutputError, match="input"):
        check_folder(output, [None, "owner/name", given])


def test_relative_paths_are_seen_through(project, monkeypatch):
    monkeypatch.chdir(project)
    with pytest.raises(OutputError, match="input"):
        check_folder(".", ["data/cells.h5ad"])
    check_folder("tokens", ["data/cells.h5ad"])
    check_folder("data/tokens", ["data/cells.h5ad"])


def test_homes_roots_repositories_and_files_are_refused(project, monkeypatch):
    monkeypatch.setenv("HOME", str(project))
    for path in (project, project.parent):
        with pytest.raises(OutputError, match="home"):
            check_folder(path)
    check_folder(project / "inside")
    with pytest.raises(OutputError, match="root"):
        check_folder("/")
    (project / "clone" / ".git").mkdir(parents=True)
    with pytest.raises(OutputError, match="repository"):
        check_folder(project / "clone")
    check_folder(project / "clone" / "out")
    with pytest.raises(OutputError, match="is a file"):
        check_folder(project / "data" / "cells.h5ad")
    (project / "nowhere").symlink_to(project / "missing")
    with pytest.raises(OutputError, match="link"):
        check_folder(project / "nowhere")
    (project / "cells.zarr").mkdir()
    with pytest.raises(OutputError, match="inside"):
        check_folder(project / "cells.zarr" / "out", [project / "cells.zarr"])


def test_a_file_that_is_an_input_is_never_replaced(project):
    cells = project / "data" / "cells.h5ad"
    (project / "symbolic.h5ad").symlink_to(cells)
    os.link(cells, project / "hard.h5ad")
    (project / "model").mkdir()
    (project / "model" / "config.json").write_text("{}")
    inputs = [cells, project / "model", None, "owner/name"]
    for name in ("data/cells.h5ad", "symbolic.h5ad", "hard.h5ad", "data/../data/cells.h5ad", "model/config.json"):
        with pytest.raises(OutputError, match="input"):
            check_file(project / name, inputs, overwrite=True)
    check_file(project / "new.h5ad", inputs)


def test_existing_files_are_replaced_only_when_asked(project):
    (project / "mine.csv").write_text("notes")
    with pytest.raises(OutputError, match="--overwrite"):
        check_file(project / "mine.csv")
    check_file(project / "mine.csv", overwrite=True)
    with pytest.raises(OutputError, match="is a folder"):
        check_file(project / "data", overwrite=True)
    with pytest.raises(OutputError, match="no folder"):
        check_file(project / "missing" / "a.csv")
    with pytest.raises(OutputError, match="two results"):
        check_files([project / "a.csv", None, project / "data" / ".." / "a.csv"])


def test_a_folder_below_a_file_is_refused_by_name(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"result is below .*notes\.txt, which is not a folder: choose a folder"):
        check_folder(tmp_path / "notes.txt" / "result")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_file_in_a_folder_that_cannot_be_written_to_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # whoever runs the tests may write everywhere
    with pytest.raises(OutputError, match="cannot be written to: write cells.npy to another folder"):
        check_file(tmp_path / "cells.npy")
