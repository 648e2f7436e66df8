"""One run an output: the second is refused, the lock of a dead one is taken over."""

import json
import os
import subprocess
import sys
import threading

import pytest

from cellglot.outputs import LOCK_FILE, LockedError, lock
from cellglot.outputs.lock import holder
from cellglot.outputs.processes import host


HOLD = """
import sys
sys.argv[0] = "cellglot"
from cellglot.outputs import lock
with lock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path):
    first = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(LockedError) as refused, lock(tmp_path):
            pass
        record = json.loads((tmp_path / LOCK_FILE).read_text())
        assert f"process {first.pid} on {host()}" in str(refused.value)
        assert record["started"] in str(refused.value)
        assert str(first.pid) in holder(tmp_path)
    finally:
        first.kill()
        first.communicate()
    assert (tmp_path / LOCK_FILE).exists()
    with lock(tmp_path):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()
    assert not (tmp_path / LOCK_FILE).exists()
    assert holder(tmp_path) is None


def test_threads_of_one_process_are_two_runs_and_calls_inside_a_run_are_one(tmp_path):
    refused = []

    def other():
        try:
            with lock(tmp_path):
                pass
        except LockedError as error:
            refused.append(str(error))

    with lock(tmp_path), lock(tmp_path / "." / ""):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(refused) == 1 and str(os.getpid()) in refused[0]
    with lock(tmp_path):
        pass


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}', '{"pid":1,"host":"a","started":"b","mark":"x"}'])
def test_a_lock_file_that_nobody_holds_is_taken_whatever_it_says(tmp_path, content):
    (tmp_path / LOCK_FILE).write_text(content)
    with lock(tmp_path):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()
