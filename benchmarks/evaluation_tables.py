"""All tables of docs/evaluation, with the models of the collection: ``python benchmarks/evaluation_tables.py``.

It runs the studies one after another, each in its own process, and prints which pages they wrote. The same command
resumes a run that was stopped: finished results are in ``--output``, of some studies in docs/evaluation. At the end it
puts the results on the cards of the models. ``--quick`` tries it out in minutes: few cells and models, and copies of
the pages in ``--output``; neither docs nor cards change.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from evaluation_records import RECORDS

from cellglot.model_cards.collection.evaluations import lines, put_evaluations, read_records
from cellglot.modeling.collection import shipped_models


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
    kept
        Option and file, in docs/evaluation, of the results that the study resumes from, if they are not in the folder
        of the evaluations.
    """

    script: str
    page: str
    arguments: Callable[[Path, Path], list[str]]
    kept: tuple[str, str] | None = None

    def quick(self, output: Path) -> list[str]:
        """Return the arguments of a try: nothing in docs is written, a copy of the page is."""
        page = output / "pages" / self.page
        page.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / "docs" / "evaluation" / self.page, page)
        kept = [] if self.kept is None else [self.kept[0], str(output / self.kept[1])]
        return ["--quick", "--page", str(page), "--records", str(output / "records"), *kept]


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
        ("--results", "gene_sets.json"),
    ),
    "perturbation": Study(
        "perturbation_study.py", "perturbation.md", lambda data, output: ["--add"], ("--output", "perturbation.json")
    ),
    "retrieval": Study(
        "retrieval_study.py",
        "papers.md",
        lambda data, output: ["--data", str(data), "--output", str(output / "retrieval")],
    ),
    "judges": Study(
        "judges_study.py",
        "judges.md",
        lambda data, output: ["--data", str(data), "--output", str(output / "judges")],
    ),
}


def put_on_cards() -> None:
    """Put the records of the studies on the cards of the models that ship."""
    records = read_records(RECORDS)
    for name in shipped_models():
        print(lines(name, put_evaluations(ROOT / "model_cards" / "collection" / name, records)))


def main(arguments: list[str] | None = None) -> int:
    """Run the studies; return 1 if one failed, after the others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the data sets (default %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("evaluation_tables"), help="folder of the evaluations")
    parser.add_argument("--studies", nargs="+", default=list(STUDIES), choices=list(STUDIES), help="all by default")
    parser.add_argument("--quick", action="store_true", help="few cells and models, into --output alone")
    given = parser.parse_args(arguments)
    data, output = given.data.resolve(), given.output.resolve()
    if not data.is_dir():
        parser.error(f"{data} is not a folder: pass the folder of the data sets as --data")
    failed = []
    for name in given.studies:
        study, start = STUDIES[name], time.perf_counter()
        command = [sys.executable, str(HERE / study.script), *study.arguments(data, output)]
        command += study.quick(output) if given.quick else []
        environment = os.environ | {"CELLGLOT_REFERENCE_DATA": str(data)}
        status = subprocess.run(command, env=environment, check=False).returncode
        if status:
            failed.append(name)
            print(f"{name}: {study.script} ended with exit status {status}; its page is unchanged", file=sys.stderr)
        else:
            page = output / "pages" / study.page if given.quick else f"docs/evaluation/{study.page}"
            print(f"{name}: {page}, {time.perf_counter() - start:,.0f} s", flush=True)
    if not given.quick:
        put_on_cards()
    if failed:
        again = f"python benchmarks/evaluation_tables.py{' --quick' * given.quick} --studies {' '.join(failed)}"
        print(f"{len(failed)} of {len(given.studies)} studies failed; to run them again: {again}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
