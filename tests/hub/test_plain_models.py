"""Processes without cellglot train, evaluate, offload, save and load every model: by transformers, PEFT, datasets.

The first process trains and saves, the second one loads what the first one saved.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from plain_models import GENES, save_models

from cellglot.tokenization import ExceiverTokenizer, GeneVocabulary, RankValueTokenizer


HERE = Path(__file__).parent
TRAINING, SHARING = (
    re.findall(r"^@check\(.*\)\ndef (\w+)", (HERE / script).read_text(encoding="utf-8"), re.MULTILINE)
    for script in ("plain_training.py", "plain_sharing.py")
)
TOKENIZERS = {"exceiver": ExceiverTokenizer, "sccello": RankValueTokenizer, "langcell": RankValueTokenizer}


@pytest.fixture(scope="module")
def failed(tmp_path_factory):
    """Run all checks in two processes without cellglot; gives {check: {model: error}} of both."""
    folder = tmp_path_factory.mktemp("plain")
    save_models(folder)
    ones = np.ones(GENES)
    genes = [f"ENSG{number:011d}" for number in range(GENES)]
    vocabulary = GeneVocabulary.from_statistics(genes, medians=ones, means=ones, stds=ones)
    for name, kind in TOKENIZERS.items():
        kind.from_vocabulary(vocabulary).save_pretrained(folder / name)
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "home"),
        "HF_MODULES_CACHE": str(folder / "modules"),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    given = []
    for seed, step in enumerate(("make", "load")):
        done = subprocess.run(
            [sys.executable, str(HERE / "plain_sharing.py"), str(folder), step], cwd=folder,
            env=environment | {"PYTHONHASHSEED": str(seed)}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        given.append(json.loads(done.stdout.splitlines()[-1]))
    made, loaded = given
    return made | {name: made[name] | loaded[name] for name in loaded}


@pytest.mark.parametrize("name", [*TRAINING, *SHARING])
def test_plain_scripts(failed, name):
    assert not failed[name], "\n".join(f"{model}: {error}" for model, error in failed[name].items())


def test_every_check_was_run(failed):
    assert set(failed) == {*TRAINING, *SHARING} and len(TRAINING) > 5 and len(SHARING) == 3
