"""Errors of libraries that read a file, as one sentence that names the file."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager


# Errors of the system, not of the file: they are raised unchanged.
OF_THE_SYSTEM = {
    errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EROFS,
}  # fmt: skip

# Errors that libraries raise for their input, besides ValueError and OSError.
OF_WHAT_IS_READ = (EOFError, ImportError, MemoryError, OverflowError, RecursionError)
LIBRARIES = {
    "_pickle", "datasets", "gzip", "huggingface_hub", "peft", "pickle", "pronto", "pyarrow", "safetensors",
    "safetensors_rust", "struct", "tokenizers", "torch", "transformers", "yaml", "zipfile", "zlib",
}  # fmt: skip

_LONGEST_CAUSE = 400


class InputError(ValueError):
    """A file or folder that was given cannot be used; the message says which, why, and what to do."""


@contextmanager
def reading(path: str | os.PathLike, then: str = "") -> Iterator[None]:
    """Turn every error of a library that reads a file into an `InputError` that names it.

    Use it only around calls of libraries: it hides mistakes in our own code. Errors that already name the file, of
    kinds that the command line prints, are raised unchanged.

    Parameters
    ----------
    path
        The file, folder or repository that is read.
    then
        What the user can do: the end of the message.

    Raises
    ------
    OSError
        If the system has no space, memory or open files left.
    """
    try:
        yield
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(f"{path}: reading it takes more memory than there is") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno in OF_THE_SYSTEM:
            raise
        if isinstance(error, ValueError | OSError) and str(path) in str(error):
            raise
        raise InputError(f"{path}: {cause_of(error)}{f'; {then}' if then else ''}") from error


def message_of(error: BaseException) -> str | None:
    """Return the message of an error of the input, None for a mistake in the program."""
    if isinstance(error, KeyError):
        return str(error.args[0]) if error.args else "a key is missing"
    if isinstance(error, ValueError | OSError):
        return str(error)
    if isinstance(error, OF_WHAT_IS_READ) or type(error).__module__.partition(".")[0] in LIBRARIES:
        return cause_of(error)
    return None


def cause_of(error: BaseException) -> str:
    """Return an error's message in one line, with its class if the message is short."""
    if isinstance(error, MemoryError):
        return "this takes more memory than there is"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, KeyError):
        return f"there is no {error.args[0]!r} in it" if error.args else "a key is missing"
    said = " ".join(str(error).split())
    if len(said) > _LONGEST_CAUSE:
        said = f"{said[:_LONGEST_CAUSE]} ..."
    return said if len(said.split()) > 2 else f"{type(error).__name__}: {said}" if said else type(error).__name__


__all__ = ["InputError", "cause_of", "message_of", "reading"]
