"""Tasks of an evaluation, by name."""

from collections.abc import Iterable
from typing import Any


GENE_SETS, PATHWAYS, DRUG_RESPONSE = "gene-sets", "pathways", "drug-response"
RETRIEVAL, PERTURBATION = "retrieval", "perturbation"
TASKS = (
    "clustering", "integration", "annotation", "novel", RETRIEVAL, "markers", GENE_SETS, PATHWAYS, PERTURBATION,
    DRUG_RESPONSE,
)  # fmt: skip


def check_tasks(
    tasks: Iterable[str],
    markers: Any,
    drug_response: Any = None,
    cells: Any = True,
    gene_sets: Any = None,
    perturbations: str | None = None,
) -> list[str]:
    """Return the named tasks in the order of `TASKS`.

    Parameters
    ----------
    markers
        The table of marker genes, None if there is none.
    drug_response
        The folder of drug response, None if there is none.
    cells
        The cells, None if there are none.
    gene_sets
        The gene sets, None if there are none.
    perturbations
        Column of obs with knocked-out genes, None if there is none.

    Raises
    ------
    ValueError
        If a task does not exist, none is named, or what a task needs is not given.
    """
    given = [task.strip() for task in tasks if task.strip()]
    unknown = [task for task in given if task not in TASKS]
    if unknown or not given:
        raise ValueError(f"unknown task {', '.join(map(repr, unknown)) or 'none'}: tasks are {', '.join(TASKS)}")
    if "markers" in given and markers is None:
        raise ValueError("the task 'markers' needs a table of marker genes: pass markers=...")
    of_sets = [task for task in given if task in (GENE_SETS, PATHWAYS)]
    if of_sets and gene_sets is None:
        raise ValueError(f"the task {of_sets[0]!r} needs gene sets: pass gene_sets=..., a .gmt or name -> genes")
    if PERTURBATION in given and perturbations is None:
        raise ValueError(
            f"the task {PERTURBATION!r} needs the column of obs with the knocked-out gene of each cell: pass "
            "perturbations=... (--perturbations)"
        )
    if DRUG_RESPONSE in given and drug_response is None:
        raise ValueError(f"the task {DRUG_RESPONSE!r} needs a folder of drug response: pass drug_response=...")
    of_cells = [task for task in given if task != DRUG_RESPONSE]
    if of_cells and cells is None:
        raise ValueError(f"the task {of_cells[0]!r} needs cells: pass a file of cells")
    return [task for task in TASKS if task in given]


__all__ = ["DRUG_RESPONSE", "GENE_SETS", "PATHWAYS", "PERTURBATION", "RETRIEVAL", "TASKS", "check_tasks"]
