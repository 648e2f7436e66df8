"""Read text files, plain or gzipped, and refuse a line that is too long before it fills memory."""

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
    """Bytes of a text file, unpacked if its name ends in ``.gz``.

    Refuses all lines of at least twice `LONGEST_LINE`, and most that are longer than `LONGEST_LINE`.
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
        """Find a line of twice the bound between two line ends, by a search in each `LONGEST_LINE` bytes."""
        for start in range(0, len(content) - LONGEST_LINE, LONGEST_LINE):
            if content.find(b"\n", start, start + LONGEST_LINE) < 0:
                return LONGEST_LINE + 1
        return 0

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


def open_bounded(path: Path) -> io.BufferedReader:
    """Open a text file, plain or gzipped, as a `BoundedText`."""
    return io.BufferedReader(BoundedText(path), _BLOCK)


def bounded_lines(path: Path, encoding: str = "utf-8") -> Generator[str, None, None]:
    """Yield the lines of a `BoundedText` without their ends."""
    with io.TextIOWrapper(open_bounded(path), encoding) as text:
        for line in text:
            yield line.rstrip("\r\n")


def read_names(path: Path, most: int) -> list[str]:
    """Read the lines of a list of cells or genes without blank ones; `most` is the larger side of the matrix."""
    names = []
    for number, line in enumerate(bounded_lines(path)):
        if number > most + _FEW_LINES:
            raise CellFileError(
                f"{path} has more than {number:,} lines, but the matrix has at most {most:,} cells or genes: "
                "the files do not belong together"
            )
        if line.strip():
            names.append(line)
    return names


__all__ = ["LONGEST_LINE", "BoundedText", "bounded_lines", "open_bounded", "read_names"]
