"""The memories and formats of other products, and helpers for their readers."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from memory_core.errors import MemoryServiceError
from memory_core.records.memory import MemoryType
from memory_core.records.names import LABEL_MAX_BYTES
from memory_core.records.times import parse_time
from memory_server.transfer.export_lines import reasons
from memory_server.transfer.source import Document, Source

_CUT_BEFORE = 4 * LABEL_MAX_BYTES
"""Characters of a label before it is normalised, which takes quadratic time."""


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


@dataclass(frozen=True, slots=True)
class PassedOver:
    """Content that makes no memory, by kind. `is_lost` is false for what its source does not show any more."""

    kind: str
    is_lost: bool = True


Found = Foreign | Bad | PassedOver


@dataclass(frozen=True, slots=True)
class Format:
    """A foreign format: how to recognize it, and how to read it."""

    name: str
    matches: Callable[[Source], bool]
    read: Callable[[Source], Iterator[Found]]


def contents(source: Source) -> Iterator[Document | Bad]:
    """Yield the JSON values of a source, and the places that cannot be read."""
    for one in source.contents:
        yield one if isinstance(one, Document) else Bad(one.where, one.reason)


def records(document: Document, *keys: str) -> Iterator[tuple[str, str, Any]]:
    """Yield the records of a document: key, place and value of each.

    They are the members of the list that it is, or that it has under one of the keys. Any other value is a record.
    """
    value = document.value
    holders = [key for key in keys if key in value] if isinstance(value, dict) else []
    for key, holder in [(key, value[key]) for key in holders] or [("", value)]:
        if isinstance(holder, list):
            for position, member in enumerate(cast(list[Any], holder)):
                yield key, f"{document.where}{key}[{position}]", member
        else:
            yield key, f"{document.where}{key}".removesuffix(": ") or f"line {document.line}", None if key else holder


def objects(source: Source, *keys: str) -> Iterator[dict[str, Any]]:
    """Yield the records of a source that are objects."""
    for document in source.documents:
        for _, _, member in records(document, *keys):
            if isinstance(member, dict):
                yield cast(dict[str, Any], member)


def gather(
    where: str, member: Any, make: Callable[[dict[str, Any], str], Foreign | PassedOver | None]
) -> Iterator[Found]:
    """Yield what `make` makes of an object, if anything, or why that failed."""
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
    source: Source, keys: Sequence[str], make: Callable[[dict[str, Any], str], Foreign | PassedOver]
) -> Iterator[Found]:
    """Make a memory of each record of a source; `make` takes the record and where it is."""
    for document in contents(source):
        if isinstance(document, Bad):
            yield document
            continue
        for _, where, member in records(document, *keys):
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


_TEXTS = ("text", "transcript", "content")


def block_text(block: Any) -> str | None:
    """Return the text of a block, whatever its type: itself, or one of its usual fields. None if it has none."""
    if isinstance(block, dict):
        fields = cast(dict[str, Any], block)
        return next((found for name in _TEXTS if (found := _text_of(fields.get(name)))), None)
    return _text_of(block)


def _text_of(value: Any) -> str | None:
    return value.strip() or None if isinstance(value, str) else None


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
