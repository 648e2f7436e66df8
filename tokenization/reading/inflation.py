"""Find out how large a compressed chunk becomes before it is decoded: from its head, or by inflating it in steps."""

import bz2
import lzma
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa


STEP = 1 << 20
_STRONGEST = 1 << 15  # factor by which these codecs inflate at most, except bzip2, which has no bound
_BLOSC_HEAD, _BLOSC_VERSIONS = 16, (1, 2)
_BZIP2 = b"BZh"
_ZSTD = b"\x28\xb5\x2f\xfd"
_INFLATERS: dict[bytes, Callable[[], Any]] = {
    b"\x1f\x8b": lambda: zlib.decompressobj(wbits=31),
    b"\x78": zlib.decompressobj,
    _BZIP2: bz2.BZ2Decompressor,
    b"\xfd7zXZ\0": lzma.LZMADecompressor,
}


def inflates_beyond(chunk: np.ndarray, most: int) -> bool:
    """Whether a chunk (uint8) of blosc, zstd, gzip, zlib, bzip2 or xz inflates to more than `most` bytes."""
    head = chunk[:_BLOSC_HEAD].tobytes()
    if len(head) == _BLOSC_HEAD and head[0] in _BLOSC_VERSIONS and _number(head, 12, 4) == len(chunk):
        return _number(head, 4, 4) > most
    if len(chunk) * _STRONGEST <= most and not head.startswith(_BZIP2):
        return False
    if head.startswith(_ZSTD):
        size = _zstd_size(head)
        return _zstd_inflates_beyond(chunk, most) if size is None else size > most
    inflater = next((make for magic, make in _INFLATERS.items() if head.startswith(magic)), None)
    return inflater is not None and _steps_beyond(inflater(), chunk.tobytes(), most)


def _number(head: bytes, start: int, n: int) -> int:
    return int.from_bytes(head[start : start + n], "little")


def _zstd_size(head: bytes) -> int | None:
    """Read the size of the content from the head of a frame; None if it is not stored (RFC 8878, 3.1.1.1)."""
    flags = head[4] if len(head) > 4 else 0
    single = bool(flags & 0x20)
    start = 5 + (not single) + (0, 1, 2, 4)[flags & 3]
    kind = flags >> 6
    if kind == 0:
        return _number(head, start, 1) if single else None
    return _number(head, start, 1 << kind) + (256 if kind == 1 else 0)


def _zstd_inflates_beyond(chunk: np.ndarray, most: int) -> bool:
    seen = 0
    try:
        with pa.CompressedInputStream(pa.BufferReader(pa.py_buffer(chunk)), "zstd") as stream:
            while seen <= most and (part := stream.read(STEP)):
                seen += len(part)
    except OSError:  # damaged: reported when it is decoded
        return False
    return seen > most


def _steps_beyond(inflater: Any, content: bytes, most: int) -> bool:
    seen = 0
    try:
        while not inflater.eof and seen <= most:
            part = inflater.decompress(content, STEP)
            content = getattr(inflater, "unconsumed_tail", b"")
            seen += len(part)
            if not part and not content:
                break
    except (zlib.error, OSError, EOFError, lzma.LZMAError):  # damaged, or of another codec
        return False
    return seen > most


__all__ = ["inflates_beyond"]
