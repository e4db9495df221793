"""Reads and writes files of lines, plain or packed with zstandard, so that a writer that was killed can go on.

A packed file is a row of frames of FRAME lines each, and a line or frame that is not whole is cut off before going on:
what comes of it is the same file, byte for byte, as without the interruption.
"""

from __future__ import annotations

import io
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO

import zstandard

from memory_core.errors import InvalidArgument

FRAME = 1000
LEVEL = 10
PACKED = ".zst"
_CHUNK = 1 << 20


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Give the lines of a file with their numbers, from 1 on; blank ones are passed over.

    Raises:
        InvalidArgument: it cannot be read or unpacked.
    """
    try:
        with opened(path) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line
    except (OSError, zstandard.ZstdError) as error:
        raise unreadable(path, error) from None


@contextmanager
def opened(path: Path) -> Generator[BinaryIO]:
    """Open a file to read its bytes, unpacking it if its name says that it is packed."""
    with path.open("rb") as raw:
        if path.suffix != PACKED:
            yield raw
            return
        reader = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
        with io.BufferedReader(reader) as file:  # pyright: ignore[reportArgumentType]
            yield file


def unreadable(path: Path, error: Exception) -> InvalidArgument:
    """Say that a file cannot be read."""
    why = error.strerror if isinstance(error, OSError) else "it is damaged, or no zstandard file"
    return InvalidArgument(f"cannot read {path}: {why}", hint="choose another file")


class Writer:
    """Appends lines to a file that it first cuts back to what is whole; `lines` are those already there."""

    def __init__(self, path: Path, *, packed: bool) -> None:
        self._packed = packed
        self._waiting: list[bytes] = []
        self._file: IO[bytes] = path.open("r+b" if path.exists() else "w+b")

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def kept(self) -> Iterator[bytes]:
        """Give the whole lines that are there, and cut off the rest; to be read to its end before `write`."""
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
        self._waiting.append(line)
        if len(self._waiting) >= FRAME:
            self._pack()

    def finish(self) -> None:
        """Write what waits, and have all of it on the disk."""
        if self._waiting:
            self._pack()
        self._file.flush()
        os.fsync(self._file.fileno())

    def _pack(self) -> None:
        self._file.write(zstandard.ZstdCompressor(level=LEVEL, write_checksum=True).compress(b"".join(self._waiting)))
        self._file.flush()
        self._waiting.clear()

    def _rows(self) -> Iterator[tuple[int, list[bytes]]]:
        for line in self._file:
            if not line.endswith(b"\n"):
                return
            yield len(line), [line]

    def _frames(self) -> Iterator[tuple[int, list[bytes]]]:
        """Give each whole frame: its size in the file and its lines. The last of a finished file may be short."""
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
