"""The progress bar of all verbs: number, rate and remaining time."""

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
    """Cells per second of the last half minute; the field ``cells`` of a task is the number of cells in a step."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed * task.fields.get('cells', 1):,.0f} cells/s")


class _Note(ProgressColumn):
    """The field ``note`` of a task."""

    def render(self, task: Task) -> Text:
        return Text(task.fields.get("note", ""))


def progress_bars(unit: str = "cells", *, shown: bool = True, console: Console | None = None) -> Progress:
    """Return bars to add tasks to, on standard error. In a distributed run only the main process draws them.

    Parameters
    ----------
    unit
        ``"cells"``, ``"steps"`` or ``"bytes"``; bytes are shown as MB and GB, without a rate.
    """
    counted = [DownloadColumn()] if unit == "bytes" else [MofNCompleteColumn(), TextColumn(unit), _Rate(), _Note()]
    columns = TextColumn("{task.description:<10}"), BarColumn(), *counted, TimeRemainingColumn()
    disable = not shown or int(os.environ.get("RANK") or 0) > 0
    return Progress(*columns, console=console or Console(stderr=True), disable=disable, transient=unit == "bytes")


__all__ = ["progress_bars"]
