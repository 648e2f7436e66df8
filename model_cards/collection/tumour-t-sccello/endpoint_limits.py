"""Limits of a request to an endpoint: set by the server's environment, and lower in a request that asks for it."""

import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any


ENVIRONMENT = "CELLGLOT_"  # CELLGLOT_MAX_CELLS and so on
BYTES_OF_A_COUNT = 12  # a gene with its count, as text in a request or as numbers in a file


class RequestError(ValueError):
    """A request that cannot be answered; the message says why, and what to do."""


@dataclass(frozen=True)
class Limits:
    """Limits of one request.

    Parameters
    ----------
    max_bytes
        Bytes of an h5ad file, and about the bytes of cells as text.
    max_decompressed_bytes
        Bytes of all arrays that are read from an h5ad file.
    max_cells
        Cells of a request.
    max_seconds
        Seconds from the arrival of a request to its answer.
    """

    max_bytes: int = 64 << 20
    max_decompressed_bytes: int = 512 << 20
    max_cells: int = 10_000
    max_seconds: float = 60.0

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> "Limits":
        """Read ``CELLGLOT_MAX_BYTES``, ``..._DECOMPRESSED_BYTES``, ``..._CELLS`` and ``..._SECONDS``."""
        found = {}
        for limit in fields(cls):
            name = f"{ENVIRONMENT}{limit.name.upper()}"
            if (text := environment.get(name)) is None:
                continue
            try:
                found[limit.name] = _positive(limit.name, float(text))
            except ValueError as error:
                raise ValueError(f"the environment variable {name} is {text!r}, not a number above 0") from error
        return cls(**found)

    def lowered(self, parameters: Mapping[str, Any]) -> "Limits":
        """Return the limits of a request, which can be lower than the server's, and not higher."""
        found = {}
        for limit in fields(self):
            given, own = parameters.get(limit.name), getattr(self, limit.name)
            if given is None:
                continue
            try:
                found[limit.name] = _positive(limit.name, given)
            except ValueError as error:
                raise RequestError(f"parameters: {limit.name} is {given!r:.60}, not a number above 0") from error
            if found[limit.name] > own:
                raise RequestError(
                    f"parameters: {limit.name} is {given:,}, but {own:,} is the limit of this endpoint; its owner can "
                    f"raise it by the environment variable {ENVIRONMENT}{limit.name.upper()}"
                )
        return replace(self, **found)

    @property
    def max_counts(self) -> int:
        """Most counts of cells as text."""
        return self.max_bytes // BYTES_OF_A_COUNT


def _positive(name: str, value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{name} is {value!r:.60}")
    return float(value) if name == "max_seconds" else max(int(value), 1)


class Clock:
    """The time that a request has left."""

    def __init__(self, seconds: float):
        self.seconds, self.end = seconds, time.monotonic() + seconds

    def left(self) -> float:
        """Return the seconds that are left; refuse to continue if there are none."""
        left = self.end - time.monotonic()
        if left <= 0:
            raise RequestError(
                f"the request took more than {self.seconds:g} seconds, the limit: send fewer cells in one request, or "
                f"raise {ENVIRONMENT}MAX_SECONDS"
            )
        return left


__all__ = ["ENVIRONMENT", "Clock", "Limits", "RequestError"]
