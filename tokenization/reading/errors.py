"""Turn the errors that libraries raise for a damaged file into one error that names the file."""

import functools
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from cellglot.outputs.environment import is_environment_failure
from cellglot.tokenization.count_audit import NotCountsError
from cellglot.tokenization.reading.refusals import why_not_opened


# Errors that HDF5, the codecs of zarr, gzip and pandas raise for a damaged file.
READ_ERRORS = (ValueError, OSError, EOFError, RuntimeError, KeyError, zlib.error)

_OURS = (AssertionError, NameError, ImportError)  # errors in the program, not in a file
_LONGEST_CAUSE = 300

Method = TypeVar("Method", bound=Callable[..., Any])


class CellFileError(ValueError):
    """A file of cells is missing, damaged, cut short or in an unknown format."""


@contextmanager
def reading(source: str | os.PathLike, where: str = "") -> Iterator[None]:
    """Turn errors of libraries that read a file of cells into `CellFileError`; messages begin with the file.

    Failures of the machine (a full disk, too many open files) and errors in the program pass unchanged.

    Parameters
    ----------
    source
        The file or folder; empty if it is not known.
    where
        The place in it, for the message, e.g. ``"after 100 entries"``.

    Raises
    ------
    NotCountsError
        If values are not counts; begins with the file.
    """
    name = str(source)
    try:
        yield
    except (CellFileError, NotCountsError) as error:
        if str(error).startswith(name) or (isinstance(error, NotCountsError) and name in str(error)):
            raise
        raise type(error)(f"{name}: {error}") from error
    except _OURS:
        raise
    except Exception as error:
        if isinstance(error, BlockingIOError | PermissionError) and name:
            raise CellFileError(why_not_opened(Path(name), error)) from error
        if isinstance(error, OSError) and is_environment_failure(error):
            raise
        if type(error) is ValueError and name and name in str(error):
            raise
        what = f"{name or 'the file'} cannot be read{where and ' '}{where}"
        raise CellFileError(f"{what}, it may be damaged or cut short: {cause_of(error)}") from error


def cause_of(error: BaseException) -> str:
    """Describe an error in one line, with its type if its text alone says little."""
    if isinstance(error, MemoryError):
        return "it needs more memory than is available"
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error).strip()
    line = " ".join(text.split())
    if len(line) > _LONGEST_CAUSE:
        line = f"{line[:_LONGEST_CAUSE]}..."
    telling = type(error) is OSError or type(error) is ValueError
    return line if telling and line else f"{type(error).__name__}: {line}".removesuffix(": ")


def names_the_file(method: Method) -> Method:
    """Make the errors of a method name the file: the attribute `source` of its object."""

    @functools.wraps(method)
    def guarded(self: Any, *args: Any, **kwargs: Any) -> Any:
        with reading(self.source):
            return method(self, *args, **kwargs)

    return guarded  # type: ignore[return-value]


__all__ = ["READ_ERRORS", "CellFileError", "cause_of", "names_the_file", "reading"]
