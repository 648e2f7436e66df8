"""Every model and head trains, evaluates and is offloaded by plain transformers and accelerate, without cellglot."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from plain_models import save_models


HERE = Path(__file__).parent
CHECKS = re.findall(
    r"^@check\(.*\)\ndef (\w+)", (HERE / "plain_training.py").read_text(encoding="utf-8"), re.MULTILINE
)


@pytest.fixture(scope="module")
def failed(tmp_path_factory):
    """Run all checks in one process without cellglot; gives {check: {model: error}}."""
    folder = tmp_path_factory.mktemp("plain")
    save_models(folder)
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(folder / "modules"),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    command = [sys.executable, str(HERE / "plain_training.py"), str(folder)]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", CHECKS)
def test_plain_scripts(failed, name):
    assert not failed[name], "\n".join(f"{model}: {error}" for model, error in failed[name].items())


def test_every_check_was_run(failed):
    assert set(failed) == set(CHECKS) and len(CHECKS) > 5
