"""Open an input file and read it as text. Its first bytes tell its kind: names may lie, and copies be cut off."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from ensemble_assets.collection.readers.input_files import InputFile, ReadLimits, cannot_read
from ensemble_assets.common.errors import InputError

try:
    import zstandard as _zstandard
except ImportError:
    _zstandard = None  # type: ignore[assignment]

zstandard: Any = _zstandard

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_UTF16 = ("is UTF-16, not UTF-8", "Save the file as UTF-8")
_UNPACK = "Unpack it, and bring the files in it"
_OTHERS = (
    (b"\xff\xfe", *_UTF16),
    (b"\xfe\xff", *_UTF16),
    (b"PK\x03\x04", "is a zip archive, or a file of an office program", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "is a 7z archive", _UNPACK),
    (b"BZh", "is compressed with bzip2", "Decompress it, or use gzip or zstd"),
    (b"\xfd7zXZ\0", "is compressed with xz", "Decompress it, or use gzip or zstd"),
    (b"PAR1", "is a Parquet file", "Let its name end with .parquet"),
    (b"%PDF-", "is a PDF file", "Save it as text; see docs/inputs.md for documents"),
    (b"SQLite format 3\0", "is an SQLite database", "Write its rows as JSONL"),
)
"""First bytes of files that are no text, with the problem that they show and its remedy."""

_HEAD_BYTES = 16
_LEAST_HEAD = 4
_ZSTD_BLOCK = 4096
"""Bytes that are decompressed at once. Four bytes may become 128 kB, so these become 128 MB at most."""


class _ZstdStream(io.RawIOBase):
    """Reads every frame of a stream; ``EOFError`` if the last one is not whole, which the library lets pass."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._frame: Any = None
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready and (block := self._raw.read(_ZSTD_BLOCK)):
            self._ready = memoryview(b"".join(self._pieces(block)))
        if not self._ready and self._frame is not None:
            raise EOFError
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size

    def _pieces(self, block: bytes) -> Iterator[bytes]:
        while block:
            self._frame = self._frame or zstandard.ZstdDecompressor().decompressobj()
            yield self._frame.decompress(block)
            block = b""
            if self._frame.eof:
                block, self._frame = self._frame.unused_data, None

    def close(self) -> None:
        self._raw.close()
        super().close()


def open_input(file: InputFile) -> BinaryIO:
    """Open a text file for reading bytes, decompressed whatever its name; ``InputError`` if it is something else."""
    try:
        stream = file.path.open("rb")
    except OSError as error:
        raise cannot_read(file.source, error) from None
    try:
        head, packed = _head(stream), unpacked(cast("BinaryIO", stream))
        if packed is not None:
            stream, head = cast("io.BufferedReader", packed), b""
        elif head.startswith(_ZSTD):
            remedy = "Install it (pip install 'ensemble-assets[zstd]'), or decompress the file"
            raise InputError(file.source, "is compressed with zstd, and the package zstandard is missing", remedy)
        elif file.path.suffix.lower() in _ENDINGS and head:
            problem = f"is not compressed with {_ENDINGS[file.path.suffix.lower()]}, as its name says"
            raise InputError(file.source, problem, "Rename it if it is plain, or copy it again")
        _require_text(head or _head(stream), file.source)
    except UNREADABLE as error:
        stream.close()
        raise cannot_read(file.source, error) from None
    except InputError:
        stream.close()
        raise
    return cast("BinaryIO", stream)


def unpacked(stream: BinaryIO) -> BinaryIO | None:
    """Give a reader of the bytes that gzip or zstd packed into a stream, whose closing closes both.

    None if nothing is packed, or the package zstandard is missing. Reading raises one of ``UNREADABLE`` where the bytes
    are damaged.
    """
    head = _head(stream)
    if head.startswith(_GZIP):
        file: Any = gzip.GzipFile(fileobj=stream)
        file.myfileobj = stream  # so that closing one closes the other
        return cast("BinaryIO", io.BufferedReader(file))
    if head.startswith(_ZSTD) and zstandard is not None:
        return cast("BinaryIO", io.BufferedReader(_ZstdStream(stream)))
    return None


_ENDINGS = {".gz": "gzip", ".zst": "zstd"}


def _head(stream: Any) -> bytes:
    return bytes(stream.peek(_HEAD_BYTES)[:_HEAD_BYTES])


def _require_text(head: bytes, source: str) -> None:
    if head.startswith((_GZIP, _ZSTD)):
        raise InputError(source, "is compressed twice", "Decompress it once")
    for magic, problem, remedy in _OTHERS:
        if head.startswith(magic):
            raise InputError(f"{source}, byte 0", problem, remedy)
    if len(head) >= _LEAST_HEAD and any(head[:_LEAST_HEAD]) and not (any(head[:4:2]) and any(head[1:4:2])):
        raise InputError(f"{source}, byte 0", *_UTF16)


def read_text(file: InputFile, limits: ReadLimits) -> str:
    """Read a whole file as text: UTF-8, with or without a byte order mark.

    Raises:
        InputError: if it cannot be read, is larger than ``limits.file_bytes``, or is not UTF-8 (with the byte offset).
    """
    with open_input(file) as stream:
        try:
            data = stream.read(limits.file_bytes + 1)
            if len(data) > limits.file_bytes:
                raise InputError(
                    file.source,
                    f"has more than {limits.file_bytes} bytes; a JSON file is read whole and may not have more",
                    "Split it, or write the chunks as JSONL, which is read line by line",
                )
        except UNREADABLE as error:
            raise cannot_read(file.source, error) from None
    return decode(data, file.source)


def read_lines(file: InputFile, limits: ReadLimits) -> Iterator[tuple[int, str]]:
    """Yield the lines that are not blank as (0-based line number, text), without byte order marks.

    One line at a time is in memory. Where a file has no line feed, carriage returns end its lines. A line longer than
    ``limits.record_bytes``, or not in UTF-8 (with the byte offset), is an ``InputError``.
    """
    with open_input(file) as stream:
        number, offset = 0, 0
        while True:
            try:
                data = stream.readline(limits.record_bytes + 1)
            except UNREADABLE as error:
                raise cannot_read(file.source, error) from None
            if not data:
                return
            if len(data) > limits.record_bytes:
                raise too_large(f"{file.source}, line {number + 1}", limits)
            only_returns = not number and not data.endswith(b"\n")
            for part in data.splitlines(keepends=True) if only_returns else (data,):
                line = decode(part, file.source, offset)
                offset += len(part)
                if line.strip():
                    yield number, line
                number += 1


def too_large(where: str, limits: ReadLimits) -> InputError:
    """Make the error for a record above the limit."""
    return InputError(where, f"is a record of more than {limits.record_bytes} bytes", limits.remedy)


def decode(data: bytes, source: str, offset: int = 0) -> str:
    """Decode UTF-8 and drop a byte order mark: at the beginning, or where files were put one behind the other.

    ``offset`` is the position of ``data`` in the file, in bytes. An ``InputError`` names the first byte that is not
    UTF-8.
    """
    mark = 3 if data.startswith(b"\xef\xbb\xbf") else 0
    try:
        return data[mark:].decode()
    except UnicodeDecodeError as error:
        position = offset + mark + error.start
    raise InputError(f"{source}, byte {position}", "is not UTF-8", "Save the file as UTF-8")


UNREADABLE = (OSError, EOFError, zlib.error, *((zstandard.ZstdError,) if zstandard else ()))
"""Exceptions of reading a file. All but the first come from a compressed file that is cut off or damaged."""
