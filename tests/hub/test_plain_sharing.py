"""Every model and head is saved by one process without cellglot and loaded by another: plain, by PEFT, by datasets."""

import json
import re
from pathlib import Path

import numpy as np
import plain_models
import pytest

from cellglot.tokenization import ExceiverTokenizer, GeneVocabulary, RankValueTokenizer


HERE = Path(__file__).parent
STEPS = (("make", "1"), ("load", "2"))  # each in a process of its own
CHECKS = re.findall(r"^@check\(.*\)\ndef (\w+)", (HERE / "plain_sharing.py").read_text(encoding="utf-8"), re.MULTILINE)


def save(root):
    """Write all models with their tokenizers."""
    plain_models.save_models(root)
    genes = [f"ENSG{number:011d}" for number in range(plain_models.GENES)]
    ones = np.ones(len(genes))
    vocabulary = GeneVocabulary.from_statistics(genes, medians=ones, means=ones, stds=ones)
    for name in ("exceiver", "sccello", "langcell"):
        kind = ExceiverTokenizer if name == "exceiver" else RankValueTokenizer
        kind.from_vocabulary(vocabulary).save_pretrained(root / name)


@pytest.fixture(scope="module")
def failed(stranger, tmp_path_factory):
    """Save all models, run all checks in two processes without cellglot; gives {check: {model: error}} of both."""
    folder = tmp_path_factory.mktemp("shared")
    save(folder)
    script, settings = HERE / "plain_sharing.py", {"folder": folder, "HF_HOME": str(folder / "home")}
    steps = (stranger(script, str(folder), step, PYTHONHASHSEED=seed, **settings) for step, seed in STEPS)
    made, loaded = (json.loads(printed.splitlines()[-1]) for printed in steps)
    return {name: made[name] | loaded[name] for name in made}


@pytest.mark.parametrize("name", CHECKS)
def test_plain_scripts(failed, name):
    assert not failed[name], "\n".join(f"{model}: {error}" for model, error in failed[name].items())


def test_every_check_was_run(failed):
    assert set(failed) == set(CHECKS) and len(CHECKS) == 3
