"""One border for errors: what a library raises while it reads a file becomes a sentence that names the file."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager


# The system's, not the file's: said as they are.
OF_THE_SYSTEM = {
    errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EROFS,
}  # fmt: skip

# What libraries raise for what they read, beside ValueError and OSError.
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

    Put it around calls of libraries alone: it also takes errors that a mistake in our own code would raise. Errors
    that name the file already pass, if they are of a kind that the command line prints.

    Parameters
    ----------
    path
        The file, folder or repository that is read.
    then
        What to do about it, as the end of a sentence.

    Raises
    ------
    OSError
        If the system is at its limits (disk, memory, open files).
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
    """Return the message of an error that lies in what was given, None for one that is a mistake in the program."""
    if isinstance(error, KeyError):
        return str(error.args[0]) if error.args else "a key is missing"
    if isinstance(error, ValueError | OSError):
        return str(error)
    if isinstance(error, OF_WHAT_IS_READ) or type(error).__module__.partition(".")[0] in LIBRARIES:
        return cause_of(error)
    return None


def cause_of(error: BaseException) -> str:
    """Return an error's message in one line, with its kind where the message alone says little."""
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
