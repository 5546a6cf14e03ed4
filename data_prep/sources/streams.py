"""Files as blocks of bytes and as lines, decompressed by suffix. Errors name the file and the byte.

A compressed file may hold several streams one after the other (gzip members, zstd frames, Wikipedia's multistream
dumps). :func:`bz2_streams` finds where those of a bz2 file start, so that several workers can read one file.
"""

import bz2
import lzma
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import Any

import zstandard

from bert_pretrain.errors import ConfigError
from bert_pretrain.files.addresses import BLOCK, Address, open_binary
from bert_pretrain.files.retry import DamagedError, read_patiently

LONGEST_LINE = 1 << 25  # bytes; a longer line is not text, and is not kept in memory
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_BLOCK = 1 << 20
_STREAM = re.compile(rb"BZh[1-9]1AY&SY")  # header of a stream and of its first block: 80 bits
_DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError)
_RESTORE = "download or copy it again"

_DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    ".gz": lambda: zlib.decompressobj(wbits=31),
    ".bz2": bz2.BZ2Decompressor,
    ".xz": lzma.LZMADecompressor,
    ".zst": lambda: zstandard.ZstdDecompressor().decompressobj(),
}


def is_compressed(path: Path | Address) -> bool:
    """Whether the suffix is one of a compressed file."""
    return path.suffix.lower() in _DECOMPRESSORS


def blocks(path: Path | Address, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """The content of a file from byte ``start`` up to byte ``stop`` (both of the file as it is stored), decompressed.

    In a compressed file both must lie between streams. Raises ``ConfigError`` if it is damaged or truncated.
    """
    create = _DECOMPRESSORS.get(path.suffix.lower())
    position = start
    at_stream_start = True
    decompressor: Any = create() if create else None
    try:
        for position, raw in raw_blocks(path, start, stop):
            block = raw
            if decompressor is None:
                yield block
            while create is not None and block:
                content = decompressor.decompress(block)
                block, at_stream_start = b"", False
                if decompressor.eof:
                    block = decompressor.unused_data.lstrip(b"\0")  # some tools pad with zeros
                    decompressor, at_stream_start = create(), True
                if content:
                    yield content
            position += len(raw)
    except _DAMAGE as error:
        raise DamagedError(
            f"corpus file {path} is damaged or cannot be read near byte {position} ({error}); {_RESTORE}, "
            + ("or correct its suffix if it is no such file" if not position else "or give corpus.path without it")
        ) from None
    if not at_stream_start:
        raise DamagedError(
            f"corpus file {path} ends at byte {position} in the middle of its compressed data: it is truncated; "
            f"{_RESTORE}"
        )


def raw_blocks(
    path: Path | Address, start: int = 0, stop: int | None = None, size: int | None = None
) -> Iterator[tuple[int, bytes]]:
    """(byte where the block starts, block) of a file as it is stored, from ``start`` up to ``stop``.

    Outages are waited out. Raises ``ConfigError`` if it cannot be read.
    """
    position, file = start, None

    def read() -> bytes:
        nonlocal file
        try:
            if file is None:
                file = open_binary(path)
                file.seek(position)
            most = size or (BLOCK if isinstance(path, Address) else _BLOCK)
            return file.read(most if stop is None else min(most, stop - position))
        except OSError:
            close()
            raise

    def close() -> None:
        nonlocal file
        with suppress(OSError):
            if file is not None:
                file.close()
        file = None

    try:
        while block := read_patiently(read, f"corpus file {path}", _RESTORE):
            yield position, block
            position += len(block)
    finally:
        close()


def line_batches(
    content: Iterable[bytes], first: int = 0, longest: int | None = None
) -> Iterator[tuple[int, list[bytes] | None]]:
    """(byte position, consecutive lines without their line feeds) of blocks, the first of which starts at ``first``.

    A line of more than ``longest`` bytes (None: ``LONGEST_LINE``) is yielded alone, as None, and not kept in memory.
    """
    longest = LONGEST_LINE if longest is None else longest
    position = first
    kept: list[bytes] = []
    length = 0  # of the line so far, kept or not
    for block in content:
        pieces = block.split(b"\n")
        last = pieces.pop()
        if pieces:
            length += len(pieces[0])
            if length <= longest:
                pieces[0] = b"".join([*kept, pieces[0]]) if kept else pieces[0]
            else:
                del pieces[0]
                yield position, None
                position += length + 1
            if pieces:
                yield position, pieces
                position += sum(map(len, pieces)) + len(pieces)
            kept, length = [], 0
        length += len(last)
        if length > longest:
            kept = []
        elif last:
            kept.append(last)
    if length:
        yield position, [b"".join(kept)] if length <= longest else None


def decode_lines(lines: list[bytes], path: Path | Address, position: int) -> Iterable[str]:
    """Decode consecutive lines of UTF-8, at byte ``position`` of the decompressed file, without carriage returns.

    Raises ``ConfigError`` with the place of an invalid byte when its line is reached.
    """
    raw = b"\n".join(lines)
    with suppress(UnicodeDecodeError):
        if b"\0" not in raw and not (position == 0 and raw.startswith(BYTE_ORDER_MARK)):
            text = raw.decode("utf-8")
            return text.split("\n") if "\r" not in text else [line.rstrip("\r") for line in text.split("\n")]
    positions = accumulate(lines, lambda place, line: place + len(line) + 1, initial=position)
    return (decode(line, path, place).rstrip("\r") for line, place in zip(lines, positions, strict=False))


def decode(raw: bytes, path: Path | Address, position: int) -> str:
    """Decode the UTF-8 text at byte ``position`` of the decompressed file. ``ConfigError`` names an invalid byte."""
    start = len(BYTE_ORDER_MARK) if position == 0 and raw.startswith(BYTE_ORDER_MARK) else 0
    if b"\0" in raw:
        raise ConfigError(
            f"corpus file {path} has a NUL byte at byte {position + raw.index(0)}: it is not UTF-8 text but UTF-16 or "
            "binary; convert it to UTF-8, or give a corpus.path without it"
        )
    try:
        return raw[start:].decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"corpus file {path} is not UTF-8 at byte {position + start + error.start} "
            f"(0x{error.object[error.start]:02x}, {error.reason}); convert it to UTF-8, for example with iconv"
        ) from None


def bz2_streams(path: Path | Address) -> list[int]:
    """The byte offsets at which the streams of a bz2 file start, by one scan of the file."""
    starts = []
    tail = b""
    for position, block in raw_blocks(path, size=1 << 24):
        window = tail + block
        starts += [position - len(tail) + match.start() for match in _STREAM.finditer(window)]
        tail = window[-9:]  # one byte less than the pattern
    return starts
