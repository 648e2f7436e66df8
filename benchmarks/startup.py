"""Starts: ``import cellglot``, ``cellglot --help`` and commands until their work begins, beside the bare imports.

python benchmarks/startup.py

Every side is a new process. What a command loads before its work (`annotate` and `embed`: until the file of cells and
the model are asked for) is compared with ``import torch, transformers`` alone, which it cannot do without. Asked for:
``import cellglot`` below 0.3 s, help below 0.6 s, and commands that take at most twice as long as the bare imports.
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
    "cellglot embed": "embed nowhere cells.h5ad -o new.npy",
    "cellglot annotate": "annotate nowhere cells.h5ad -o new.h5ad",
}


def starter(text: str, folder: Path):
    """Return the function that runs a line of Python, or a command, which ends where it finds no model."""
    if text.startswith(("import", "pass")):
        words = [sys.executable, "-c", text]
    else:
        words = [sys.executable, "-m", "cellglot", *text.split()]

    def start() -> None:
        done = subprocess.run(words, capture_output=True, text=True, cwd=folder, check=False)
        assert done.returncode == 0 or "nowhere is not a folder" in done.stderr, done.stderr

    return start


def main() -> None:
    given = parser(__doc__, repeats=7).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "cells.h5ad").touch()
        sides = {name: starter(text, Path(folder)) for name, text in SIDES.items()}
        times = alternate(sides, 2 if given.quick else given.repeats)
    bare = "import torch, transformers"
    rows = [
        {"start": name, "seconds": median(t), "of bare imports": ratio(t, times[bare])} for name, t in times.items()
    ]
    empty = median(times["python"])
    of_import, of_help = (median(times[name]) - empty for name in ("import cellglot", "cellglot --help"))
    targets = [
        ("seconds of import cellglot, beyond those of Python", 0.3, of_import, of_import < 0.3),
        ("seconds of cellglot --help, beyond those of Python", 0.6, of_help, of_help < 0.6),
    ]
    for name in ("cellglot embed", "cellglot annotate"):
        times_as_long = ratio(times[name], times[bare])
        targets.append((f"{name} over the bare imports", 2.0, times_as_long, times_as_long <= 2))
    report(given, rows, targets)


if __name__ == "__main__":
    main()
