"""Loads a folder as a stranger would: in a new process, by Auto classes, where cellglot cannot be imported."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np


# Runs in the clean process: nothing of this package is there.
_SCRIPT = """
import json, sys
sys.modules["cellglot"] = None  # any import of it fails
import numpy as np, torch, transformers
folder, auto_class, field, inputs, result = sys.argv[1:]
loaded = np.load(inputs, allow_pickle=False)
tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model = getattr(transformers, auto_class).from_pretrained(folder, trust_remote_code=True).eval()
batch = tokenizer(loaded["counts"], genes=loaded["genes"].tolist(), return_tensors="pt")
with torch.inference_mode():
    values = model(**batch)[field].float().numpy()
np.save(result, values)
print(json.dumps({"model": type(model).__name__, "module": type(model).__module__.split(".")[0],
                  "tokenizer": type(tokenizer).__name__, "transformers": transformers.__version__}))
"""


class CleanProcessError(RuntimeError):
    """The folder did not load, or did not run, in a clean process."""


def run_in_clean_process(
    folder: str | Path, auto_class: str, field: str, counts: np.ndarray, genes: list[str]
) -> tuple[np.ndarray, dict[str, Any]]:
    """Load a model folder in a process without cellglot and run it on some cells.

    Parameters
    ----------
    folder
        Weights, configuration, tokenizer and code.
    auto_class
        ``"AutoModel"``, ``"AutoModelForSequenceClassification"``, ...
    field
        Field of the output to give back.
    counts
        A few cells, dense, shape (cells, genes).
    genes
        Names of the columns.

    Returns
    -------
    values
        The field, shape (cells, ...).
    facts
        Classes that were loaded, and where from.

    Raises
    ------
    CleanProcessError
        With what the process said.
    """
    with tempfile.TemporaryDirectory() as scratch:
        inputs, result = Path(scratch, "inputs.npz"), Path(scratch, "result.npy")
        np.savez(inputs, counts=counts, genes=np.array(genes))
        environment = os.environ | {
            "HF_HUB_OFFLINE": "1",
            "HF_MODULES_CACHE": str(Path(scratch, "modules")),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        command = [
            sys.executable,
            "-c",
            _SCRIPT,
            str(Path(folder).resolve()),
            auto_class,
            field,
            str(inputs),
            str(result),
        ]
        done = subprocess.run(command, capture_output=True, text=True, cwd=scratch, env=environment, check=False)
        if done.returncode:
            raise CleanProcessError(f"{folder} does not load in a clean process:\n{done.stderr[-3000:]}")
        return np.load(result, allow_pickle=False), json.loads(done.stdout.strip().splitlines()[-1])


__all__ = ["CleanProcessError", "run_in_clean_process"]
