"""Reads and writes files of lines, plain or compressed with zstandard. An interrupted writer can resume.

A compressed file has frames of FRAME lines each. A writer that resumes first cuts off an incomplete line or frame, so
the file is byte for byte the same as without the interruption.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO

import zstandard

from memory_core.crypto.secret_files import private_file
from memory_core.errors import InvalidArgument
from memory_core.records.bounded_files import opened

FRAME = 1000
LEVEL = 10
_CHUNK = 1 << 20
MAX_LINE = 64 << 20
MAX_DOCUMENT = 512 << 20
"""Bytes of a document that is read whole."""

DAMAGE = (OSError, EOFError, zlib.error, zstandard.ZstdError)
"""What reading a damaged file raises, compressed or not."""


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a file with their numbers, from 1 on, without blank lines.

    Raises:
        InvalidArgument: it cannot be read or decompressed.
    """
    try:
        with opened(path) as file:
            for number, line in enumerate(iter(partial(file.readline, MAX_LINE + 1), b""), 1):
                if len(line) > MAX_LINE:
                    raise too_long(f"line {number} of {path}", MAX_LINE)
                if line.strip():
                    yield number, line
    except DAMAGE as error:
        raise unreadable(path, error) from None


def read_whole(path: Path, most: int = MAX_DOCUMENT, folder: int | None = None) -> bytes:
    """Read a file, decompressed; `folder` as in `opened`.

    Raises:
        InvalidArgument: its kind, or too long. OSError, ZstdError.
    """
    with opened(path, folder) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise too_long(str(path), most)
    return data


def read_start(path: Path, size: int) -> bytes:
    """Read the first bytes of a file, decompressed. Raises InvalidArgument if that fails."""
    try:
        with opened(path) as file:
            return file.read(size)
    except DAMAGE as error:
        raise unreadable(path, error) from None


def too_long(what: str, most: int) -> InvalidArgument:
    return InvalidArgument(f"{what} has more than {most >> 20} MiB", hint="split it")


def unreadable(path: Path, error: Exception) -> InvalidArgument:
    if isinstance(error, EOFError):
        hint = "copy or download it again"
        return InvalidArgument(f"{path} ends before its data does, so nothing was imported", hint=hint)
    why = error.strerror if isinstance(error, OSError) else None
    why = why or "it is damaged, or not a zstandard, gzip or ZIP file"
    return InvalidArgument(f"cannot read {path}: {why}", hint="choose another file")


class Writer:
    """Appends lines to a file, after `complete_lines` has cut off what is incomplete."""

    def __init__(self, path: Path, *, packed: bool) -> None:
        self._packed = packed
        self._buffer: list[bytes] = []
        self._file: IO[bytes] = private_file(path)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def complete_lines(self) -> Iterator[bytes]:
        """Yield the complete lines, and cut off the rest. Read it to its end before `write`."""
        self._file.seek(0)
        keep = 0
        for size, lines in self._frames() if self._packed else self._rows():
            yield from lines
            keep += size
        self._file.seek(keep)
        self._file.truncate()

    def write(self, line: bytes) -> None:
        """Add a line."""
        if not self._packed:
            self._file.write(line)
            return
        self._buffer.append(line)
        if len(self._buffer) >= FRAME:
            self._pack()

    def finish(self) -> None:
        """Write buffered lines and sync the file to disk."""
        if self._buffer:
            self._pack()
        self._file.flush()
        os.fsync(self._file.fileno())

    def _pack(self) -> None:
        self._file.write(zstandard.ZstdCompressor(level=LEVEL, write_checksum=True).compress(b"".join(self._buffer)))
        self._file.flush()
        self._buffer.clear()

    def _rows(self) -> Iterator[tuple[int, list[bytes]]]:
        for line in self._file:
            if not line.endswith(b"\n"):
                return
            yield len(line), [line]

    def _frames(self) -> Iterator[tuple[int, list[bytes]]]:
        """Yield each full frame: its size in the file and its lines. The last frame of a finished file may be short."""
        rest = b""
        while True:
            frame, plain, size = zstandard.ZstdDecompressor().decompressobj(), b"", 0
            try:
                while not frame.eof:
                    chunk = rest or self._file.read(_CHUNK)
                    rest = b""
                    if not chunk:
                        return
                    plain += frame.decompress(chunk)
                    size += len(chunk)
            except zstandard.ZstdError:
                return
            rest = frame.unused_data
            lines = plain.split(b"\n")
            if len(lines) - 1 != FRAME:
                return
            yield size - len(rest), [line + b"\n" for line in lines[:-1]]
