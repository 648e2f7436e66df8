"""Text files, plain or gzipped, whose lines are bounded: a line without an end is refused before it fills memory."""

import gzip
import io
from collections.abc import Generator
from pathlib import Path
from typing import Any, BinaryIO

from cellglot.tokenization.reading.errors import CellFileError


LONGEST_LINE = 1 << 16  # bytes
_BLOCK = 1 << 18
_FEW_LINES = 1 << 16


class BoundedText(io.RawIOBase):
    """Bytes of a text file, read forward; lines of twice `LONGEST_LINE` and more are refused, most above it, too.

    Parameters
    ----------
    path
        The file; unpacked while it is read where its name ends in ``.gz``.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.path = path
        opener: Any = gzip.open if path.name.endswith(".gz") else open
        self._file: BinaryIO = opener(path, "rb")
        self._since_end = 0  # bytes since the last end of a line

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read bytes."""
        content = self._file.read(min(len(buffer), _BLOCK))
        buffer[: len(content)] = content
        last = content.rfind(b"\n")
        longest = max(self._since_end + content.find(b"\n"), self._longest_within(content)) if last >= 0 else 0
        self._since_end = len(content) - last - 1 if last >= 0 else self._since_end + len(content)
        if max(longest, self._since_end) > LONGEST_LINE:
            raise CellFileError(f"{self.path} has a line of more than {LONGEST_LINE:,} bytes: it is damaged")
        return len(content)

    @staticmethod
    def _longest_within(content: bytes) -> int:
        """Find a line of twice the bound between two ends of lines; looks for an end in every `LONGEST_LINE` bytes."""
        for start in range(0, len(content) - LONGEST_LINE, LONGEST_LINE):
            if content.find(b"\n", start, start + LONGEST_LINE) < 0:
                return LONGEST_LINE + 1
        return 0

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


def open_bounded(path: Path) -> io.BufferedReader:
    """Open a text file, plain or gzipped, as bytes in lines of at most `LONGEST_LINE`."""
    return io.BufferedReader(BoundedText(path), _BLOCK)


def bounded_lines(path: Path, encoding: str = "utf-8") -> Generator[str, None, None]:
    """Yield the lines of a text file without their ends, each no longer than `LONGEST_LINE`.

    Parameters
    ----------
    path
        The file, plain or gzipped.

    Raises
    ------
    CellFileError
        If a line is too long.
    """
    with io.TextIOWrapper(open_bounded(path), encoding) as text:
        for line in text:
            yield line.rstrip("\r\n")


def read_names(path: Path, most: int) -> list[str]:
    """Read the lines of a list of cells or genes, blank ones left out.

    Parameters
    ----------
    path
        The file, plain or gzipped.
    most
        Cells or genes of the matrix, whichever are more.
    """
    names = []
    for number, line in enumerate(bounded_lines(path)):
        if number > most + _FEW_LINES:
            raise CellFileError(
                f"{path} has more than {number:,} lines, but the matrix has no more than {most:,} cells and genes: "
                "they do not belong together"
            )
        if line.strip():
            names.append(line)
    return names


__all__ = ["LONGEST_LINE", "BoundedText", "bounded_lines", "open_bounded", "read_names"]
