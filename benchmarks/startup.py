"""Starts: ``import cellglot``, ``cellglot --help`` and commands until their work begins, beside the bare imports.

python benchmarks/startup.py

Every side is a new process. `embed` and `annotate` end at an empty file of cells, after everything that they import is
imported; they are compared with ``import torch, transformers``, which both need; a classifier that ships is computed
by its graph, without both. A name that is not a model ends a
command before these imports. Targets: ``import cellglot`` below 0.3 s, help and wrong names below 0.6 s, and commands
that take at most twice as long as the bare imports.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from measure import alternate, median, parser, ratio, report


BARE = "import torch, transformers"
SIDES = {
    "python": "pass",
    "import torch, transformers": BARE,
    "import cellglot": "import cellglot",
    "cellglot --help": "--help",
    "cellglot annotate --help": "annotate --help",
    "cellglot embed, no such model": "embed nowhere cells.h5ad -o new.npy",
    "cellglot embed": "embed model cells.h5ad -o new.npy",
    "cellglot annotate": "annotate model cells.h5ad -o new.h5ad",
    "cellglot annotate, a model that ships": "annotate cells.h5ad -o new.h5ad",
}
ERRORS = ("nowhere is not a folder", "cells.h5ad is empty")


def starter(text: str, folder: Path):
    """Return a function that runs a line of Python, or a command, which ends with an error of its input."""
    if text.startswith(("import", "pass")):
        words = [sys.executable, "-c", text]
    else:
        words = [sys.executable, "-m", "cellglot", *text.split()]

    def start() -> None:
        done = subprocess.run(words, capture_output=True, text=True, cwd=folder, check=False)
        assert done.returncode == 0 or any(error in done.stderr for error in ERRORS), done.stderr

    return start


def main() -> None:
    given = parser(__doc__, repeats=7).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "cells.h5ad").touch()
        Path(folder, "model").mkdir()
        Path(folder, "model", "config.json").write_text(
            '{"model_type": "exceiver", "architectures": ["ExceiverForSequenceClassification"]}'
        )
        sides = {name: starter(text, Path(folder)) for name, text in SIDES.items()}
        times = alternate(sides, 2 if given.quick else given.repeats)
    bare = "import torch, transformers"
    rows = [
        {"start": name, "seconds": median(t), "of bare imports": ratio(t, times[bare])} for name, t in times.items()
    ]
    empty = median(times["python"])
    targets = []
    limits = {"import cellglot": 0.3, "cellglot --help": 0.6, "cellglot embed, no such model": 0.6}
    for name, most in limits.items():
        seconds = median(times[name]) - empty
        targets.append((f"seconds of {name}, beyond those of Python", most, seconds, seconds < most))
    for name in ("cellglot embed", "cellglot annotate", "cellglot annotate, a model that ships"):
        times_as_long = ratio(times[name], times[bare])
        targets.append((f"{name} over the bare imports", 2.0, times_as_long, times_as_long <= 2))
    report(given, rows, targets)


if __name__ == "__main__":
    main()
