"""Functions compiled by Numba, where loops over single counts are faster than passes in NumPy."""

from collections.abc import Callable
from typing import Any

import numba


def compiled(function: Callable) -> Any:
    """Compile a function where it first runs on a machine, in some seconds, and keep the result.

    It is kept beside the function's file or in the user's cache; where neither can be written, in memory alone.
    """
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:
        return numba.njit(nogil=True)(function)


__all__ = ["compiled"]
