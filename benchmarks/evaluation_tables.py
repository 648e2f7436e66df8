"""All tables of docs/evaluation, with the models of the collection: ``python benchmarks/evaluation_tables.py``.

It runs the studies one after another, each in its own process, and prints which pages they wrote. The same command
resumes a run that was stopped: finished results are in ``--output``, of some studies in docs/evaluation.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


HERE = Path(__file__).parent
ROOT = HERE.parent
DATA = Path(os.environ.get("CELLGLOT_REFERENCE_DATA", ROOT.parent / "shared" / "data"))


@dataclass(frozen=True)
class Study:
    """A script whose tables are on a page of docs/evaluation.

    Parameters
    ----------
    script
        Name of the file in benchmarks.
    page
        Name of the page.
    arguments
        Function of the folder of the data sets and the folder of the evaluations; returns the script's arguments.
    """

    script: str
    page: str
    arguments: Callable[[Path, Path], list[str]]


STUDIES = {
    "drug-response": Study(
        "drug_response_study.py",
        "drug_response.md",
        lambda data, output: ["--data", str(data), "--output", str(output / "drug_response")],
    ),
    "genes": Study(
        "gene_embeddings.py",
        "genes.md",
        lambda data, output: [
            "--cells",
            str(data / "cells" / "pbmc_facs.h5ad"),
            "--gene-sets",
            str(data / "markers" / "reactome.gmt"),
        ],  # fmt: skip
    ),
    "perturbation": Study("perturbation_study.py", "perturbation.md", lambda data, output: []),
    "judges": Study(
        "judges_study.py",
        "judges.md",
        lambda data, output: ["--data", str(data), "--output", str(output / "judges")],
    ),
}


def main(arguments: list[str] | None = None) -> int:
    """Run the studies; return 1 if one failed, after the others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the data sets (default %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("evaluation_tables"), help="folder of the evaluations")
    parser.add_argument("--studies", nargs="+", default=list(STUDIES), choices=list(STUDIES), help="all by default")
    given = parser.parse_args(arguments)
    data, output = given.data.resolve(), given.output.resolve()
    if not data.is_dir():
        parser.error(f"{data} is not a folder: pass the folder of the data sets as --data")
    failed = []
    for name in given.studies:
        study, start = STUDIES[name], time.perf_counter()
        command = [sys.executable, str(HERE / study.script), *study.arguments(data, output)]
        environment = os.environ | {"CELLGLOT_REFERENCE_DATA": str(data)}
        status = subprocess.run(command, env=environment, check=False).returncode
        if status:
            failed.append(name)
            print(f"{name}: {study.script} ended with exit status {status}; its page is unchanged", file=sys.stderr)
        else:
            print(f"{name}: docs/evaluation/{study.page}, {time.perf_counter() - start:,.0f} s")
    if failed:
        again = f"python benchmarks/evaluation_tables.py --studies {' '.join(failed)}"
        print(f"{len(failed)} of {len(given.studies)} studies failed; to run them again: {again}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
