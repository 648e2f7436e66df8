"""Comparison of the results of a folder here and of its published copy in a process without cellglot."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import logging

from cellglot.model_cards.checks import stranger


TOLERANCE = 1e-5
SHOWN = 5
NOT_PASSED_ON = ("PYTHONPATH", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


class NotLoadableError(ValueError):
    """The published copy does not load, or does not run, in a process without cellglot."""


class DifferentNumbersError(ValueError):
    """The published copy returns other numbers than the source folder."""


@dataclass
class Outcome:
    """Results of a `stranger.Visit`, with its attributes."""

    arrays: Mapping[str, np.ndarray]
    texts: Mapping[str, Any]
    loaded: Mapping[str, str]
    new_weights: Mapping[str, list[str]]


def visit_here(job: Mapping[str, Any]) -> Outcome:
    """Run the job of a `stranger.Visit` in this process, with the installed classes."""
    visit = stranger.Visit(job, trust=False)
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # new weights are reported on the card
    logging.disable_progress_bar()
    try:
        visit.run()
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
    texts = json.loads(json.dumps(visit.texts))
    return Outcome(visit.arrays, texts, visit.loaded, visit.new_weights)


def visit_as_stranger(job: Mapping[str, Any]) -> Outcome:
    """Run the job of a `stranger.Visit` in a clean process: offline, isolated, without cellglot."""
    with tempfile.TemporaryDirectory() as scratch:
        given = Path(scratch, "job.json")
        given.write_text(json.dumps(job), encoding="utf-8")
        environment = {name: value for name, value in os.environ.items() if name not in NOT_PASSED_ON} | {
            "HF_HUB_OFFLINE": "1",
            "HF_MODULES_CACHE": str(Path(scratch, "modules")),
            "HF_DATASETS_CACHE": str(Path(scratch, "datasets")),
            "TRANSFORMERS_VERBOSITY": "error",
        }
        done = subprocess.run(
            [sys.executable, "-I", "-B", stranger.__file__, str(given), scratch],
            capture_output=True,
            text=True,
            cwd=scratch,
            env=environment,
            check=False,
        )
        if done.returncode:
            last = "\n".join(done.stderr.strip().splitlines()[-12:])
            raise NotLoadableError(
                f"{job['folder']} does not load in a process without cellglot, nothing was published. Error:\n{last}"
            )
        with np.load(Path(scratch, "arrays.npz"), allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        rest = json.loads(Path(scratch, "rest.json").read_text(encoding="utf-8"))
    return Outcome(arrays, rest["texts"], rest["loaded"], rest["new_weights"])


def compare(before: Outcome, after: Outcome, tolerance: float = TOLERANCE) -> int:
    """Compare the results before publishing with those of a clean process; return the number of compared values.

    `tolerance` is both absolute and relative.
    """
    problems = []
    if before.arrays.keys() != after.arrays.keys() or before.texts.keys() != after.texts.keys():
        ours, theirs = ({*one.arrays, *one.texts} for one in (before, after))
        problems += [f"{name} is missing" for name in sorted(ours - theirs)]
        problems += [f"{name} is new" for name in sorted(theirs - ours)]
    for name in sorted(before.arrays.keys() & after.arrays.keys()):
        problems += _difference(name, np.asarray(before.arrays[name]), after.arrays[name], tolerance)
    for name in sorted(before.texts.keys() & after.texts.keys()):
        if before.texts[name] != after.texts[name]:
            problems.append(f"{name} is {after.texts[name]!r} instead of {before.texts[name]!r}")
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise DifferentNumbersError(
            f"a process without cellglot returns other numbers than this one: {'; '.join(problems[:SHOWN])}{more}. "
            "Nothing was published"
        )
    return sum(np.asarray(values).size for values in before.arrays.values())


def _difference(name: str, before: np.ndarray, after: np.ndarray, tolerance: float) -> list[str]:
    if before.shape != after.shape:
        return [f"{name} has the shape {after.shape} instead of {before.shape}"]
    if before.dtype.kind not in "fc":
        return [] if np.array_equal(before, after) else [f"{name} differs in {int((before != after).sum()):,} places"]
    if np.allclose(after, before, rtol=tolerance, atol=tolerance, equal_nan=True):
        return []
    gap = np.abs(after.astype(np.float64) - before.astype(np.float64))
    return [f"{name} differs by {np.nanmax(gap):.3g} (values up to {np.nanmax(np.abs(before)):.3g})"]


__all__ = [
    "NotLoadableError", "DifferentNumbersError", "Outcome", "TOLERANCE", "compare", "visit_as_stranger", "visit_here",
]  # fmt: skip
