"""An export without records: a blank file, an empty list, or known lists that are all empty."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from memory_server.transfer.foreign import Format, Found
from memory_server.transfer.source import Document, Source

_LISTS = {"results", "memories", "entities", "relations"}


def _matches(source: Source) -> bool:
    if source.path.is_dir() or (source.is_archive and not source.contents):
        return False
    return all(isinstance(one, Document) and _is_empty(one.value) for one in source.contents)


def _is_empty(value: Any) -> bool:
    if not isinstance(value, dict):
        return value == []
    fields = cast(dict[str, Any], value)
    return all(not fields[key] for key in fields.keys() & _LISTS) and (not fields or bool(fields.keys() & _LISTS))


def _read(source: Source) -> Iterator[Found]:
    yield from ()


FORMAT = Format("empty", _matches, _read)
