"""Every model and head is saved by one process without cellglot and loaded by another: plain, by PEFT, by datasets."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


HERE = Path(__file__).parent
CHECKS = re.findall(r"^@check\(.*\)\ndef (\w+)", (HERE / "plain_sharing.py").read_text(encoding="utf-8"), re.MULTILINE)
SAVE = f"""
import sys
sys.path.insert(0, {str(HERE)!r})
import numpy as np
import plain_models
from cellglot.tokenization import ExceiverTokenizer, GeneVocabulary, RankValueTokenizer

root, genes = sys.argv[1], [f"ENSG{{number:011d}}" for number in range(plain_models.GENES)]
plain_models.save_models(root)
ones = np.ones(len(genes))
vocabulary = GeneVocabulary.from_statistics(genes, medians=ones, means=ones, stds=ones)
for name, kind in (("exceiver", ExceiverTokenizer), ("sccello", RankValueTokenizer), ("langcell", RankValueTokenizer)):
    kind.from_vocabulary(vocabulary).save_pretrained(f"{{root}}/{{name}}")
"""


@pytest.fixture(scope="module")
def failed(tmp_path_factory):
    """Save all models, run all checks in two processes without cellglot; gives {check: {model: error}} of both."""
    folder = tmp_path_factory.mktemp("shared")
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "home"),
        "HF_MODULES_CACHE": str(folder / "modules"),
        "OMP_NUM_THREADS": "1",
    }
    given = []
    script = str(HERE / "plain_sharing.py")
    for seed, command in enumerate(
        (["-c", SAVE, str(folder)], *([script, str(folder), step] for step in ("make", "load")))
    ):
        done = subprocess.run(
            [sys.executable, *command], env=environment | {"PYTHONHASHSEED": str(seed)}, cwd=folder,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        given.append(done.stdout)
    made, loaded = (json.loads(out.splitlines()[-1]) for out in given[1:])
    return {name: made[name] | loaded[name] for name in made}


@pytest.mark.parametrize("name", CHECKS)
def test_plain_scripts(failed, name):
    assert not failed[name], "\n".join(f"{model}: {error}" for model, error in failed[name].items())


def test_every_check_was_run(failed):
    assert set(failed) == set(CHECKS) and len(CHECKS) == 3
