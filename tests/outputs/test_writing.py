"""Files are whole under their names, readable as the umask says, and nothing stays behind."""

import json
import os
import subprocess
import sys

import pytest

from cellglot.outputs import atomic, remove_leftovers, sha256, write_json, write_text
from cellglot.outputs.writing import temporary_name, umask


@pytest.fixture
def mask():
    """Sets the umask for a test."""
    before = os.umask(0)
    os.umask(before)
    yield os.umask
    os.umask(before)


def test_the_old_content_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "result.csv"
    path.write_text("old")
    with atomic(path) as temporary:
        assert temporary.parent == tmp_path and temporary.suffix == ".csv" and temporary != path
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["result.csv"]


def test_after_an_error_the_old_content_stays_and_no_temporary_file(tmp_path):
    path = tmp_path / "result.npy"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["result.npy"]


def test_two_writers_of_one_file_do_not_share_a_temporary_name(tmp_path):
    path = tmp_path / "a.json"
    with atomic(path) as one:
        one.write_text("1")
        with atomic(path) as two:
            assert one != two
            two.write_text("2")
        assert path.read_text() == "2"
    assert path.read_text() == "1"


@pytest.mark.parametrize(("mask_", "wanted"), [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664)])
def test_permissions_are_those_that_the_umask_says(tmp_path, mask, mask_, wanted):
    mask(mask_)
    assert umask() == mask_
    with atomic(tmp_path / "weights.safetensors") as temporary:
        os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))
    assert (tmp_path / "weights.safetensors").stat().st_mode & 0o777 == wanted


def test_text_and_json_are_written_as_they_are(tmp_path):
    write_text(tmp_path / "new" / "a.txt", "line\r\nß\n")
    assert (tmp_path / "new" / "a.txt").read_bytes() == "line\r\nß\n".encode()
    write_json(tmp_path / "a.json", {"a": [1, None]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1, None]}
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1, None]}
    assert sha256(tmp_path / "a.json") != sha256(tmp_path / "new" / "a.txt")


def test_temporary_files_of_killed_runs_go_and_those_of_living_ones_stay(tmp_path):
    path = tmp_path / "cells.h5ad"
    code = "import sys; from cellglot.outputs.writing import temporary_name as t; t(sys.argv[1]).write_text('half')"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    code = "import sys; sys.argv[0] = 'cellglot'; " + code  # the command line's own imports: no PyTorch
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, env=environment)
    assert len(list(tmp_path.iterdir())) == 1
    mine, other = temporary_name(path), tmp_path / ".cells.draft.part.h5ad"
    mine.write_text("at work")
    other.write_text("somebody's")
    remove_leftovers(path)
    assert sorted(tmp_path.iterdir()) == sorted([mine, other])
