"""Tasks of an evaluation, by name."""

from collections.abc import Iterable
from typing import Any


TASKS = ("clustering", "integration", "annotation", "novel", "markers")


def check_tasks(tasks: Iterable[str], markers: Any) -> list[str]:
    """Return the named tasks in the order of `TASKS`.

    Parameters
    ----------
    markers
        The table of marker genes, None if there is none.

    Raises
    ------
    ValueError
        If a task does not exist, none is named, or ``"markers"`` is named without a table.
    """
    given = [task.strip() for task in tasks if task.strip()]
    unknown = [task for task in given if task not in TASKS]
    if unknown or not given:
        raise ValueError(f"unknown task {', '.join(map(repr, unknown)) or 'none'}: tasks are {', '.join(TASKS)}")
    if "markers" in given and markers is None:
        raise ValueError("the task 'markers' needs a table of marker genes: pass markers=...")
    return [task for task in TASKS if task in given]


__all__ = ["TASKS", "check_tasks"]
