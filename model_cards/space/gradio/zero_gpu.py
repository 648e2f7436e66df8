"""ZeroGPU of the Hub: a GPU that is lent to a function while it runs."""

from collections.abc import Callable
from typing import Any


SECONDS = 120


def gpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that runs on a GPU of ZeroGPU where the Space has one, else the function itself.

    What the function takes and returns is sent between processes.
    """
    try:
        import spaces
    except ImportError:
        return function
    return spaces.GPU(duration=SECONDS)(function)


__all__ = ["gpu"]
