"""Bytes of a file, packed or not, in blocks and lines; what is damaged is named with its place.

Packed files may hold several streams one after the other (gzip members, zstd frames, the multistream dumps of
Wikipedia). A stream of bz2 starts at a byte that :func:`bz2_streams` finds, so that workers can share one file.
"""

import bz2
import lzma
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import zstandard

from bert_pretrain.errors import ConfigError

LONGEST_LINE = 1 << 25  # bytes; more is no line of text, and would have to stand in memory whole
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_BLOCK = 1 << 20
_STREAM = re.compile(rb"BZh[1-9]1AY&SY")  # header of a stream and of its first block: 80 bits
_DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError)

_OPENERS: dict[str, Callable[[], Any]] = {
    ".gz": lambda: zlib.decompressobj(wbits=31),
    ".bz2": bz2.BZ2Decompressor,
    ".xz": lzma.LZMADecompressor,
    ".zst": lambda: zstandard.ZstdDecompressor().decompressobj(),
}


def is_packed(path: Path) -> bool:
    """Whether the name says that the file is compressed."""
    return path.suffix.lower() in _OPENERS


def blocks(path: Path, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """The content of a file from byte ``start`` on, up to byte ``stop`` of the file, unpacked where it is packed.

    In a packed file both must lie between streams. Raises ``ConfigError`` where it is damaged or cut off.
    """
    opener = _OPENERS.get(path.suffix.lower())
    position = start
    try:
        with open(path, "rb") as file:
            file.seek(start)
            decompressor = opener() if opener else None
            fresh = True  # nothing of the current stream has been read
            while stop is None or position < stop:
                block = file.read(_BLOCK if stop is None else min(_BLOCK, stop - position))
                if not block:
                    break
                if decompressor is None:
                    yield block
                while decompressor is not None and block:
                    assert opener is not None
                    unpacked = decompressor.decompress(block)
                    fresh = False
                    block = b""
                    if decompressor.eof:
                        block = decompressor.unused_data.lstrip(b"\0")  # tools pad with zeros
                        decompressor, fresh = opener(), True
                    if unpacked:
                        yield unpacked
                position = file.tell()
    except _DAMAGE as error:
        raise ConfigError(
            f"corpus file {path} is damaged or cannot be read near byte {position} ({error}); get it anew, or take it "
            "out of corpus.path"
        ) from None
    if not fresh:
        raise ConfigError(
            f"corpus file {path} ends at byte {position} within its compressed data: it was cut off; get it anew"
        )


def lines(parts: Iterable[bytes], first: int = 0) -> Iterator[tuple[int, bytes | None]]:
    """(byte position, line without its line feed) of unpacked blocks that start at byte ``first``.

    A line of more than ``LONGEST_LINE`` bytes comes as None, and never stands in memory.
    """
    position = first
    kept: list[bytes] = []
    length = 0  # of the line so far, kept or not
    for block in parts:
        pieces = block.split(b"\n")
        for piece in pieces[:-1]:
            length += len(piece)
            yield position, (b"".join([*kept, piece]) if kept else piece) if length <= LONGEST_LINE else None
            position += length + 1
            kept, length = [], 0
        length += len(pieces[-1])
        if length > LONGEST_LINE:
            kept = []
        elif pieces[-1]:
            kept.append(pieces[-1])
    if length:
        yield position, b"".join(kept) if length <= LONGEST_LINE else None


def decode(raw: bytes, path: Path, position: int) -> str:
    """UTF-8 text of the bytes that stand at ``position`` of the unpacked file; ``ConfigError`` names what is none."""
    start = len(BYTE_ORDER_MARK) if position == 0 and raw.startswith(BYTE_ORDER_MARK) else 0
    if b"\0" in raw:
        raise ConfigError(
            f"corpus file {path} holds a NUL byte at byte {position + raw.index(0)}: it is no UTF-8 text "
            "(UTF-16, or a binary file); convert it to UTF-8 or take it out of corpus.path"
        )
    try:
        return raw[start:].decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"corpus file {path} is not UTF-8 at byte {position + start + error.start} "
            f"(0x{error.object[error.start]:02x}, {error.reason}); convert it to UTF-8, for example with iconv"
        ) from None


def bz2_streams(path: Path) -> list[int]:
    """Where the streams of a bz2 file start; one scan over the packed file."""
    starts = []
    tail = b""
    position = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 24):
            window = tail + block
            starts += [position - len(tail) + match.start() for match in _STREAM.finditer(window)]
            tail = window[-9:]  # one byte less than what is looked for
            position += len(block)
    return starts
