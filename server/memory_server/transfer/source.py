"""The file, archive or folder that an import reads, and the JSON documents in it."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from memory_core.errors import InvalidArgument
from memory_core.records.bounded_files import check_kind, unpacked_gzip
from memory_server.transfer import files
from memory_server.transfer.export_lines import read_json
from memory_server.transfer.json_values import JsonDamage, JsonValue, read_values
from memory_server.transfer.tool_answers import unwrapped

_PARTS = (
    "conversations*.json", "memories*.jsonl.gz", "memories*.jsonl", "memories*.json", "memories/*.json",
    "projects*.json", "projects/*.json",
)  # fmt: skip
"""The JSON files that exports of chat services and memory servers have, in the order in which they are read."""
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Those that Python can unpack in steps of a bounded size."""
_STEP = 1 << 20
_GZIP = b"\x1f\x8b"
_ZIP = b"PK\x03\x04"
_MAX_HEADER = 1 << 16
"""Bytes. The header of our own export is shorter."""


@dataclass(frozen=True, slots=True)
class Document:
    """A JSON value. `where` starts the place of each of its records; it is empty for the only value of a file."""

    where: str
    line: int
    value: Any


@dataclass(frozen=True, slots=True)
class DamagedDocument:
    """A JSON value that cannot be read, where it is, and why."""

    where: str
    reason: str


class Source:
    """A file or folder. Its parsed content is cached."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise InvalidArgument(f"{path} does not exist", hint="check the path")
        check_kind(path, path.stat().st_mode)
        self.path = path

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Yield the lines of a file with their numbers."""
        return files.read_lines(self.path)

    @cached_property
    def is_archive(self) -> bool:
        """Whether it is a ZIP archive."""
        return self.path.is_file() and zipfile.is_zipfile(self.path)

    @cached_property
    def first_line(self) -> Any:
        """The JSON value of the first line of a file, None if it is none or too long for a header."""
        if self.path.is_dir() or self.is_archive:
            return None
        try:
            return read_json(files.read_start(self.path, _MAX_HEADER).partition(b"\n")[0])
        except ValueError:
            return None

    @cached_property
    def contents(self) -> list[Document | DamagedDocument]:
        """The JSON values of a file, or of the known files in an archive or a folder.

        Raises:
            InvalidArgument: it cannot be read or unpacked.
        """
        return [found for name, data in self._texts() for found in _values(name, data)]

    @property
    def documents(self) -> list[Document]:
        """The JSON values that can be read."""
        return [one for one in self.contents if isinstance(one, Document)]

    def _texts(self) -> list[tuple[str, bytes]]:
        try:
            if self.path.is_dir():
                return self._folder()
            if self.is_archive:
                with zipfile.ZipFile(self.path) as archive:
                    return _members(archive, self.path)
            data = files.read_whole(self.path)
            if data.startswith(_ZIP):
                raise EOFError  # the list of its members is at its end
            return [("", data)]
        except (*files.DAMAGE, zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError) as error:
            raise files.unreadable(self.path, error) from None

    def _folder(self) -> list[tuple[str, bytes]]:
        found = [file for part in _PARTS for file in sorted(self.path.glob(part)) if not file.is_symlink()]
        found = list(dict.fromkeys(found))
        _check_size(sum(file.stat().st_size for file in found), self.path)
        read = [(file.relative_to(self.path).as_posix(), files.read_whole(file)) for file in found if file.is_file()]
        _check_size(sum(len(data) for _, data in read), self.path)
        return read


def _members(archive: zipfile.ZipFile, path: Path) -> list[tuple[str, bytes]]:
    """Return the known files of an archive. No more bytes are unpacked than its directory declares."""
    names = sorted(archive.namelist())
    known = dict.fromkeys(name for part in _PARTS for name in names if Path(name).match(part))
    entries = [archive.getinfo(name) for name in known]
    _check_size(sum(entry.file_size for entry in entries), path)
    if any(entry.compress_type not in _COMPRESSIONS for entry in entries):
        raise InvalidArgument(f"{path} has a compression other than deflate", hint="unpack it first")
    read = [(entry.filename, _unpacked(archive, entry)) for entry in entries]
    _check_size(sum(len(data) for _, data in read), path)
    return read


def _unpacked(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """Read an entry in steps: reading all of it at once unpacks everything before it looks at the declared size."""
    with archive.open(entry) as file:
        data = b"".join(iter(partial(file.read, _STEP), b""))
    return unpacked_gzip(data, Path(entry.filename)) if data.startswith(_GZIP) else data


def _check_size(size: int, path: Path) -> None:
    if size > files.MAX_DOCUMENT:
        raise files.too_long(f"the export in {path}", files.MAX_DOCUMENT)


def _values(name: str, data: bytes) -> Iterator[Document | DamagedDocument]:
    found = list(read_values(data))
    file = f"{name}: " if name else ""
    is_only = sum(isinstance(one, JsonValue) for one in found) == 1
    for one in found:
        if isinstance(one, JsonDamage):
            yield DamagedDocument(f"{file}line {one.line}", one.reason)
        else:
            yield from _documents(file, file if is_only else f"{file}line {one.line}: ", one)


def _documents(file: str, where: str, outer: JsonValue) -> Iterator[Document | DamagedDocument]:
    """Yield the value, or the values in it if it is a saved answer of a tool."""
    texts, value = unwrapped(outer.value)
    if not texts:
        yield Document(where, outer.line, value)
    for text in texts:
        for one in read_values(text.encode(errors="surrogatepass")):
            if isinstance(one, JsonDamage):
                yield DamagedDocument(f"{file}line {outer.line}", one.reason)
            else:
                yield Document(where, outer.line, one.value)
