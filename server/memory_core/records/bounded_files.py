"""Opens files that others may have made: only regular ones, and compressed ones up to a multiple of their size."""

from __future__ import annotations

import gzip
import io
import os
import stat
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import zstandard

from memory_core.errors import InvalidArgument

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

PACKED = ".zst"
_GZIP = ".gz"
FREE_BYTES, MAX_RATIO = 64 << 20, 250
"""A compressed file may unpack to FREE_BYTES and MAX_RATIO times its own bytes. An export unpacks to about 10 times."""
_MAX_WINDOW = 128 << 20


@contextmanager
def opened(path: Path, folder: int | None = None) -> Generator[BinaryIO]:
    """Open a regular file to read its bytes, and decompress it if its name ends in .zst or .gz.

    With the descriptor of its folder, the file is opened there, and a link is not followed.

    Raises:
        InvalidArgument: it is another kind of file, or it unpacks to far more bytes than it has.
    """
    with open(path, "rb", opener=partial(_open_regular, folder=folder)) as raw:
        if path.suffix == PACKED:
            reader = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW).stream_reader(raw, read_across_frames=True)
        elif path.suffix == _GZIP:
            reader = gzip.GzipFile(fileobj=raw, mode="rb")
        else:
            yield raw
            return
        with _bounded(reader, path, os.fstat(raw.fileno()).st_size) as file:
            yield file


def unpacked_gzip(data: bytes, path: Path) -> bytes:
    """Decompress the bytes of a gzip file.

    Raises:
        InvalidArgument: it unpacks to far more bytes than it has. OSError, EOFError, zlib.error: it is damaged.
    """
    with _bounded(gzip.GzipFile(fileobj=io.BytesIO(data), mode="rb"), path, len(data)) as file:
        return file.read()


def _bounded(reader: object, path: Path, size: int) -> io.BufferedReader:
    return io.BufferedReader(_Unpacked(cast(io.RawIOBase, reader), path, FREE_BYTES + MAX_RATIO * size))


def check_kind(path: Path, mode: int) -> None:
    """Refuse what never ends or blocks its reader, such as a pipe or a device. Raises InvalidArgument."""
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise InvalidArgument(f"{path} is neither a file nor a folder", hint="choose a regular file")


def _open_regular(path: str, flags: int, folder: int | None) -> int:
    """Open without waiting for the writer of a pipe, and refuse what is not a regular file."""
    flags |= os.O_NONBLOCK | os.O_CLOEXEC
    if folder is None:
        descriptor = os.open(path, flags)
    else:
        descriptor = os.open(os.path.basename(path), flags | os.O_NOFOLLOW, dir_fd=folder)
    try:
        check_kind(Path(path), os.fstat(descriptor).st_mode)
    except InvalidArgument:
        os.close(descriptor)
        raise
    return descriptor


class _Unpacked(io.RawIOBase):
    """The bytes of a compressed file, up to a number."""

    def __init__(self, reader: io.RawIOBase, path: Path, most: int) -> None:
        self._reader, self._path, self._left = reader, path, most

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        size = self._reader.readinto(buffer) or 0
        self._left -= size
        if self._left < 0:
            raise InvalidArgument(f"{self._path} unpacks to far more bytes than it has", hint="unpack it first")
        return size
