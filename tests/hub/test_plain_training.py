"""Every model and head trains, evaluates and is offloaded by plain transformers and accelerate, without cellglot."""

import json
import re
from pathlib import Path

import plain_models
import pytest


HERE = Path(__file__).parent
CHECKS = re.findall(
    r"^@check\(.*\)\ndef (\w+)", (HERE / "plain_training.py").read_text(encoding="utf-8"), re.MULTILINE
)


@pytest.fixture(scope="module")
def failed(stranger, tmp_path_factory):
    """Run all checks in one process without cellglot; gives {check: {model: error}}."""
    folder = tmp_path_factory.mktemp("plain")
    plain_models.save_models(folder)
    printed = stranger(HERE / "plain_training.py", str(folder), folder=folder, GLOO_SOCKET_IFNAME="lo")
    return json.loads(printed.splitlines()[-1])


@pytest.mark.parametrize("name", CHECKS)
def test_plain_scripts(failed, name):
    assert not failed[name], "\n".join(f"{model}: {error}" for model, error in failed[name].items())


def test_every_check_was_run(failed):
    assert set(failed) == set(CHECKS) and len(CHECKS) > 5
