"""Reading of texts and tables, plain or compressed, in bounded time and memory."""

import bz2
import csv
import gzip
import io
import lzma
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from cellglot.inputs.errors import InputError, reading


if TYPE_CHECKING:
    import pandas as pd


MOST_BYTES = 128 << 20  # of the text: tables of genes and labels have a few millions
LONGEST_LINE = 4 << 20

_OPENERS: dict[str, Callable[..., IO[bytes]]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}  # type: ignore[dict-item]


def read_text(path: str | os.PathLike, *, most_bytes: int = MOST_BYTES) -> str:
    """Read a text in UTF-8, plain or compressed by gzip, bzip2 or xz.

    Parameters
    ----------
    most_bytes
        Largest size of the text.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a file")
    opener: Any = _OPENERS.get(path.suffix, open)
    with reading(path, "write it again as a text in UTF-8"):
        with opener(path, "rb") as file:
            content = file.read(most_bytes + 1)
        if len(content) > most_bytes:
            raise InputError(f"{path} contains more than {most_bytes:,} bytes of text, more than such a file can have")
        text = content.decode("utf-8-sig")
    longest = max(map(len, text.split("\n")))
    if longest > LONGEST_LINE:
        raise InputError(f"{path} has a line of {longest:,} letters: it is not such a text or table")
    return text


def read_table(path: str | os.PathLike, **options: Any) -> "pd.DataFrame":
    """Read a table of texts.

    Parameters
    ----------
    path
        The file; see `read_text`.
    **options
        Of `pandas.read_csv`.

    Raises
    ------
    InputError
        As `read_text`, or if it is not a table; names the file.
    FileNotFoundError
        If there is no such file.
    """
    import pandas as pd  # which errors of other documents do not need

    text = read_text(path)
    with reading(path, "write it again as a table"):
        earlier = csv.field_size_limit(LONGEST_LINE)
        try:
            return pd.read_csv(io.StringIO(text), **options)
        finally:
            csv.field_size_limit(earlier)


__all__ = ["read_table", "read_text"]
