"""The progress bar of all verbs: how many of how many, the rate, the remaining time."""

import os

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class _Rate(ProgressColumn):
    """Cells per second of the last half minute; a task's field ``cells`` says how many one step has."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed * task.fields.get('cells', 1):,.0f} cells/s")


class _Note(ProgressColumn):
    """What a task's field ``note`` says."""

    def render(self, task: Task) -> Text:
        return Text(task.fields.get("note", ""))


def progress_bars(unit: str = "cells", *, shown: bool = True, console: Console | None = None) -> Progress:
    """Return bars to add tasks to; they are not drawn in processes other than the main one of a distributed run.

    Parameters
    ----------
    unit
        What is counted: ``"cells"``, ``"steps"``, or ``"bytes"``, which are shown as MB and GB and without a rate.
    """
    counted = [DownloadColumn()] if unit == "bytes" else [MofNCompleteColumn(), TextColumn(unit), _Rate(), _Note()]
    columns = TextColumn("{task.description:<10}"), BarColumn(), *counted, TimeRemainingColumn()
    disable = not shown or int(os.environ.get("RANK") or 0) > 0
    return Progress(*columns, console=console, disable=disable, transient=unit == "bytes")


__all__ = ["progress_bars"]
