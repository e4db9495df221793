"""The memories, sources and formats of other products, and helpers for their readers."""

from __future__ import annotations

import json
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from memory_core.errors import InvalidArgument, MemoryServiceError
from memory_core.records.bounded_files import check_kind
from memory_core.records.bounded_json import has_too_many_values
from memory_core.records.memory import MemoryType
from memory_core.records.names import LABEL_MAX_BYTES
from memory_core.records.times import parse_time
from memory_server.transfer import files
from memory_server.transfer.export_lines import read_json, reasons

_HEAD_LINES = 20
_MAX_TOKENS = 50_000_000
_CUT_BEFORE = 4 * LABEL_MAX_BYTES
"""Characters of a label before it is normalised, which takes quadratic time."""
CONVERSATIONS = "conversations*.json"
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Those that Python can unpack in steps of a bounded size."""
_STEP = 1 << 20


class Foreign(BaseModel):
    """A memory of another product. `source_id` is unique in its format and the same in every export."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    where: str
    source_id: str
    content: str
    memory_type: MemoryType = MemoryType.CONTEXT
    tags: tuple[str, ...] = ()
    context: str | None = None
    source: str | None = None
    occurred_at: float | None = None
    expires_at: float | None = None
    metadata: dict[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Bad:
    """A record that cannot be read, where it is, and why."""

    where: str
    reason: str


Found = Foreign | Bad


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
    def documents(self) -> list[Any]:
        """The JSON documents of a file, or of the conversations in an archive or a folder.

        Raises:
            InvalidArgument: it cannot be read as JSON.
        """
        return [_parsed(name, data) for name, data in self._texts()]

    @cached_property
    def head(self) -> list[dict[str, Any]]:
        """The JSON objects among its first lines."""
        if self.path.is_dir() or zipfile.is_zipfile(self.path):
            return []
        found: list[dict[str, Any]] = []
        for number, line in self.lines():
            if number > _HEAD_LINES:
                break
            try:
                record = read_json(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                found.append(cast(dict[str, Any], record))
        return found

    def _texts(self) -> list[tuple[str, bytes]]:
        try:
            if self.path.is_dir():
                found = [file for file in sorted(self.path.glob(CONVERSATIONS)) if not file.is_symlink()]
                _check_size(sum(file.stat().st_size for file in found), self.path)
                return [(str(file), files.read_whole(file)) for file in found]
            if zipfile.is_zipfile(self.path):
                with zipfile.ZipFile(self.path) as archive:
                    return _conversations(archive, self.path)
            return [(str(self.path), files.read_whole(self.path))]
        except (OSError, zipfile.BadZipFile, zlib.error, ValueError, NotImplementedError, RuntimeError) as error:
            raise files.unreadable(self.path, error) from None


def _conversations(archive: zipfile.ZipFile, path: Path) -> list[tuple[str, bytes]]:
    """Return the conversations in an archive. No more bytes are unpacked than its directory declares."""
    entries = [archive.getinfo(name) for name in sorted(archive.namelist()) if Path(name).match(CONVERSATIONS)]
    _check_size(sum(entry.file_size for entry in entries), path)
    if any(entry.compress_type not in _COMPRESSIONS for entry in entries):
        raise InvalidArgument(f"{path} has a compression other than deflate", hint="unpack it first")
    return [(entry.filename, _unpacked(archive, entry)) for entry in entries]


def _unpacked(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """Read an entry in steps: reading all of it at once unpacks everything before it looks at the declared size."""
    with archive.open(entry) as file:
        return b"".join(iter(partial(file.read, _STEP), b""))


def _check_size(size: int, path: Path) -> None:
    if size > files.MAX_DOCUMENT:
        raise files.too_long(f"the conversations in {path}", files.MAX_DOCUMENT)


def _parsed(name: str, data: bytes) -> Any:
    if has_too_many_values(data, _MAX_TOKENS):
        raise InvalidArgument(f"{name} has too many JSON values", hint="split it")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        line = f" in line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise InvalidArgument(f"{name} is not JSON{line}", hint="is the file complete?") from None


@dataclass(frozen=True, slots=True)
class Format:
    """A foreign format: how to recognize it, and how to read it."""

    name: str
    matches: Callable[[Source], bool]
    read: Callable[[Source], Iterator[Found]]


def records(documents: Sequence[Any], key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the members of the lists that documents are, or have under a key, and where each is."""
    for number, document in enumerate(documents):
        prefix = f"document {number + 1}: " if len(documents) > 1 else ""
        holder: Any = document.get(key) if key and isinstance(document, dict) else document
        if not isinstance(holder, list):
            yield f"{prefix}{key or 'it'}", None
            continue
        for position, member in enumerate(cast(list[Any], holder)):
            yield f"{prefix}{key}[{position}]", member


def first(documents: Sequence[Any], key: str = "") -> Mapping[str, Any]:
    """Return the first object that `records` yields, or an empty one."""
    for _, member in records(documents, key):
        if isinstance(member, dict):
            return cast(dict[str, Any], member)
    return {}


def gather(where: str, member: Any, make: Callable[[dict[str, Any], str], Foreign | None]) -> Iterator[Found]:
    """Yield the memory that `make` makes of an object, if any, or why that failed."""
    try:
        if not isinstance(member, dict):
            raise ValueError("it is not an object")
        made = make(cast(dict[str, Any], member), where)
    except KeyError as error:
        yield Bad(where, f"{error.args[0]} is missing")
    except MemoryServiceError as error:
        yield Bad(where, error.message)
    except (ValueError, TypeError, AttributeError) as error:
        yield Bad(where, _reason(error))
    else:
        if made is not None:
            yield made


def gather_records(
    documents: Sequence[Any], key: str, make: Callable[[dict[str, Any], str], Foreign]
) -> Iterator[Found]:
    """Make a memory of each record of documents; `make` takes the record and where it is."""
    for where, member in records(documents, key):
        yield from gather(where, member, make)


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return reasons(error)
    return str(error) if type(error) is ValueError else "a value is of the wrong type"


def text(value: Any, name: str) -> str:
    """Return a text; raises ValueError if it is blank or not a text."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} is not a text")
    return value


def label(value: Any) -> str | None:
    """Make a label of a value: on one line, trimmed, cut to the maximum length."""
    if value is None or isinstance(value, dict | list):
        return None
    raw = value[:_CUT_BEFORE] if isinstance(value, str) else str(value)
    plain = "".join(" " if unicodedata.category(char)[0] in "CZ" else char for char in raw)
    short = unicodedata.normalize("NFC", " ".join(plain.split())).encode(errors="ignore")[:LABEL_MAX_BYTES]
    return short.decode(errors="ignore").strip() or None


def conversation_context(title: Any, conversation_id: str) -> str | None:
    """Make the context of a conversation's memories: its title, and the start of its id if there is one."""
    return label(f"{(label(title) or 'untitled')[:60]} ({conversation_id[:8]})" if conversation_id else title)


def labels(values: Any) -> tuple[str, ...]:
    """Make tags of a list, or of a text with commas."""
    parts: list[Any] = values.split(",") if isinstance(values, str) else list(values or ())
    return tuple(dict.fromkeys(made for made in map(label, parts) if made))


def moment(value: Any, name: str) -> float | None:
    """Parse a time in epoch seconds or ISO 8601; raises ValueError or InvalidArgument if it is not one."""
    if value is None or value == "":
        return None
    if not isinstance(value, str | int | float):
        raise ValueError(f"{name} is not a time")
    return parse_time(value, name)


def without_empty(values: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out empty values."""
    return {name: value for name, value in values.items() if value not in (None, "", [], {})}
