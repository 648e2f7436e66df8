"""The request to an endpoint: what may be in it, checked before any work."""

import base64
import binascii
import math
from collections.abc import Callable, Mapping
from typing import Any

from .endpoint_limits import Limits, RequestError


LABELS, EMBEDDINGS = "labels", "embeddings"
MOST_CANDIDATES = 1000
LONGEST_TEXT = 10_000
LIMITS = ("max_bytes", "max_decompressed_bytes", "max_cells", "max_seconds")
OF_LABELS = ("top_k", "set_coverage", "candidate_labels", "template", "alpha", "shortlist")
OF_READING = ("layer", "gene_column", "min_coverage")
FORMS = (
    "inputs are one cell {gene: count}, a list of such cells, or {\"h5ad\": the file in base64}"
)  # fmt: skip


def is_text(value: Any) -> bool:
    """Whether a value is a text that UTF-8 can express, of bounded length."""
    return isinstance(value, str) and 0 < len(value) <= LONGEST_TEXT and clean(value) == value


def clean(text: str) -> str:
    """Return a text that UTF-8 can express: JSON can contain half characters."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _number(least: float, most: float = math.inf, whole: bool = False) -> Callable[[Any], bool]:
    def right(value: Any) -> bool:
        kinds = int if whole else int | float
        return isinstance(value, kinds) and not isinstance(value, bool) and least <= value <= most

    return right


def _candidates(given: Any) -> bool:
    if isinstance(given, str):
        return is_text(given)
    if isinstance(given, Mapping):
        texts = [[value] if isinstance(value, str) else value for value in given.values()]
        flat = [text for part in texts if isinstance(part, list) for text in part]
        return all(isinstance(p, list) and p for p in texts) and _candidates(list(given)) and _candidates(flat)
    return isinstance(given, list) and 0 < len(given) <= MOST_CANDIDATES and all(map(is_text, given))


def _outputs(given: Any) -> bool:
    return isinstance(given, list) and bool(given) and all(value in (LABELS, EMBEDDINGS) for value in given)


# Name of a parameter -> what is right, and how it is said.
PARAMETERS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "outputs": (_outputs, f"a list of {LABELS!r} and {EMBEDDINGS!r}"),
    "top_k": (_number(1, 100_000, whole=True), "a whole number from 1"),
    "set_coverage": (_number(0, 1), "a share from 0 to 1"),
    "candidate_labels": (
        _candidates, f"names of cell types, or name -> text or texts, at most {MOST_CANDIDATES:,} texts"
    ),
    "template": (is_text, "a text with the field {name}"),
    "alpha": (_number(0, 1), "a share from 0 to 1"),
    "shortlist": (_number(1, 100_000, whole=True), "a whole number from 1"),
    "layer": (is_text, "the name of a layer"),
    "gene_column": (is_text, "the name of a column of genes"),
    "min_coverage": (_number(0, 1), "a share from 0 to 1"),
    **{name: (_number(0), "a number above 0") for name in LIMITS},
}  # fmt: skip


def checked_parameters(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a request without those that are null.

    Raises
    ------
    RequestError
        If a parameter is unknown or has a wrong value.
    """
    given = data.get("parameters")
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise RequestError(f"parameters is of the type {type(given).__name__}, not an object of names and values")
    if unknown := [str(name) for name in given if name not in PARAMETERS]:
        raise RequestError(f"parameters: {unknown[0]!r:.80} is unknown; there are {', '.join(PARAMETERS)}")
    for name, value in given.items():
        right, said = PARAMETERS[name]
        if value is not None and not right(value):
            raise RequestError(f"parameters: {name} is {value!r:.80}, not {said}")
    return {name: value for name, value in given.items() if value is not None}


def cells_of(inputs: Any, limits: Limits) -> list[Mapping[str, float]] | bytes:
    """Return the cells of a request, or the bytes of its h5ad file.

    Raises
    ------
    RequestError
        If they have another form, a value that is not a count, or exceed a limit.
    """
    if isinstance(inputs, bytes | bytearray):
        return _within(bytes(inputs), limits)
    if isinstance(inputs, Mapping) and set(inputs) == {"h5ad"} and isinstance(inputs["h5ad"], str):
        return _file(inputs["h5ad"], limits)
    cells = [inputs] if isinstance(inputs, Mapping) else inputs
    if not isinstance(cells, list):
        raise RequestError(f"inputs are of the type {type(inputs).__name__}; {FORMS}")
    if not cells:
        raise RequestError(f"inputs are an empty list; {FORMS}")
    if len(cells) > limits.max_cells:
        raise RequestError(
            f"the request has {len(cells):,} cells, but {limits.max_cells:,} is the limit: send them in parts"
        )
    total = 0
    for number, cell in enumerate(cells):
        if not isinstance(cell, Mapping):
            raise RequestError(f"cell {number} is of the type {type(cell).__name__}; {FORMS}")
        total += len(cell)
        if not cell or total > limits.max_counts:
            raise RequestError(
                f"cell {number} has no genes" if not cell
                else f"the request has more than {limits.max_counts:,} counts: send fewer cells, or an h5ad"
            )  # fmt: skip
        _check_counts(number, cell)
    return cells


def _check_counts(number: int, cell: Mapping[str, Any]) -> None:
    for gene, count in cell.items():
        # Whether the values are counts, and not normalised, is for the tokenizer to say.
        if type(count) not in (int, float) or not -1e15 < count < 1e15:
            said = "NaN" if count != count else f"{count!r:.60}"
            raise RequestError(f"cell {number} has {said} for the gene {gene!r:.80}, which is not a count")


def _within(file: bytes, limits: Limits) -> bytes:
    if len(file) > limits.max_bytes:
        raise RequestError(
            f"the file has {len(file):,} bytes, but {limits.max_bytes:,} is the limit: send fewer cells"
        )
    return file


def _file(text: str, limits: Limits) -> bytes:
    if len(text) > limits.max_bytes * 4 // 3 + 4:
        raise RequestError(
            f"the file has about {len(text) * 3 // 4:,} bytes, but {limits.max_bytes:,} is the limit: send fewer cells"
        )
    try:
        return _within(base64.b64decode(text, validate=True), limits)
    except (binascii.Error, ValueError) as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(f"inputs: h5ad is not base64 ({error}): encode the bytes of the file") from None


__all__ = [
    "EMBEDDINGS", "LABELS", "OF_LABELS", "OF_READING", "PARAMETERS", "cells_of", "checked_parameters", "clean",
]  # fmt: skip
