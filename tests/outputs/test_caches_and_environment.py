"""Caches where nothing can be written; failures of the machine, told from those of a file."""

import errno
import logging
import os
import stat

import pytest

from cellglot.outputs import EnvironmentFailureError, check_environment
from cellglot.outputs import caches as caching
from cellglot.outputs.environment import check_room, is_environment_failure, reserve, size_text


VARIABLES = ("HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_MODULES_CACHE", "HF_EVALUATE_CACHE",
             "HF_METRICS_CACHE", "MPLCONFIGDIR", "NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")  # fmt: skip


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home of its own, no variables set, and a temporary folder."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").mkdir()
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(caching.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    monkeypatch.setattr(caching, "_said", set())
    return tmp_path / "home"


def read_only(monkeypatch, *folders):
    """Let folders and all below them be such that nothing can be written (root may write everywhere)."""
    can, inside = os.access, tuple(str(folder) for folder in folders)
    monkeypatch.setattr(caching.os, "access", lambda path, mode: not str(path).startswith(inside) and can(path, mode))


def test_where_home_can_be_written_to_nothing_changes(home):
    assert caching.use_writable_caches() == {}
    assert not any(name in os.environ for name in VARIABLES)


def test_caches_of_a_read_only_home_go_to_a_folder_of_the_user(home, monkeypatch, caplog):
    read_only(monkeypatch, home)
    monkeypatch.setattr(caching, "_installation_is_writable", lambda: False)
    monkeypatch.setenv("MPLCONFIGDIR", str(home.parent / "mine"))
    (home / ".cache" / "huggingface" / "hub").mkdir(parents=True)  # models that can be read
    with caplog.at_level(logging.WARNING):
        moved = caching.use_writable_caches()
        assert caching.use_writable_caches() == {}
    assert {"NUMBA_CACHE_DIR", "HF_DATASETS_CACHE", "HF_MODULES_CACHE"} <= set(moved)
    assert "MPLCONFIGDIR" not in moved and "HF_HUB_CACHE" not in moved
    for name, folder in moved.items():
        assert os.environ[name] == folder and os.path.isdir(folder)
        assert stat.S_IMODE(os.stat(os.path.dirname(folder)).st_mode) == 0o700
        monkeypatch.delenv(name)
    assert len(caplog.records) == 1 and all(n in caplog.text for n in ("NUMBA_CACHE_DIR", "HF_HOME"))


def test_a_folder_of_caches_that_is_not_ones_own_is_not_used(home, monkeypatch):
    usual = home.parent / "tmp" / f"cellglot-caches-{os.getuid()}"
    usual.mkdir(mode=0o777)
    usual.chmod(0o777)  # anybody may put compiled code there
    assert caching._own_temporary_folder() != usual
    usual.rmdir()
    usual.symlink_to(home)
    assert caching._own_temporary_folder() != usual


def wrapped(error):
    try:
        try:
            raise error
        except type(error) as cause:
            raise ValueError("cells.h5ad cannot be read") from cause
    except ValueError as outer:
        return outer


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EDQUOT, "quota"), MemoryError(),
     OSError("Can't write data (file write failed: errno = 28, error message = 'No space left on device')")],
)  # fmt: skip
def test_failures_of_the_machine_are_raised_also_from_inside_others(error):
    for given in (error, wrapped(error)):
        assert is_environment_failure(given)
        with pytest.raises(EnvironmentFailureError):
            check_environment(given)


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOENT, "no such file"), OSError("truncated file: eof = 96, stored 99"), KeyError("X")]
)  # fmt: skip
def test_faults_of_a_file_are_not(error):
    assert not is_environment_failure(error) and not is_environment_failure(wrapped(error))
    check_environment(error)


def test_sizes_and_room(tmp_path):
    assert [size_text(n) for n in (0, 999, 1500, 2_500_000, 3 * 10**9)] == [
        "0 bytes", "999 bytes", "1.5 kB", "2.5 MB", "3.0 GB",
    ]  # fmt: skip
    check_room(tmp_path, 1, "this", "that")
    with pytest.raises(EnvironmentFailureError, match=r"converting needs 1,000,000.0 TB in .* are free: buy a disk"):
        check_room(tmp_path, 10**18, "converting", "buy a disk")
    (tmp_path / "a").write_bytes(b"12")
    reserve(tmp_path / "a", 1 << 16)
    assert (tmp_path / "a").stat().st_size == 1 << 16 and (tmp_path / "a").read_bytes()[:2] == b"12"
