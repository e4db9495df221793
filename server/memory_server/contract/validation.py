"""Validates arguments before anything reaches Redis."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

from memory_core.errors import InvalidArgument, echo
from memory_core.records.memory import Visibility
from memory_core.records.names import check_label
from memory_core.settings.settings import Settings


def check_text(text: str, what: str, max_bytes: int) -> str:
    """Accept a non-blank text without NUL or lone surrogates, at most `max_bytes` in UTF-8. Raises InvalidArgument."""
    if not text.strip():
        raise InvalidArgument(f"{what} is empty", hint=f"send 1 to {max_bytes} bytes of text")
    if "\x00" in text:
        raise InvalidArgument(f"{what} holds a NUL character", hint="remove it")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InvalidArgument(f"{what} holds a lone surrogate, which is not Unicode text", hint="send UTF-8") from None
    if size > max_bytes:
        raise InvalidArgument(f"{what} has {size} bytes; at most {max_bytes} are allowed", hint="split it")
    return text


def check_tags(tags: Sequence[str], settings: Settings) -> tuple[str, ...]:
    """Return distinct labels. Raises InvalidArgument (too many, or one that is not a label)."""
    if len(tags) > settings.limits.tags:
        raise InvalidArgument(f"{len(tags)} tags; at most {settings.limits.tags} are allowed")
    return tuple(dict.fromkeys(check_label(tag, "tag") for tag in tags))


def check_metadata(metadata: dict[str, Any] | None, settings: Settings) -> str | None:
    """Return metadata as JSON. Raises InvalidArgument; see `check_json`."""
    return check_json(metadata or None, "metadata", settings.limits.metadata_bytes)


def check_json(document: Any, what: str, most_bytes: int) -> str | None:
    """Return a JSON value as text, None for None. Raises InvalidArgument (too large, too deep, NaN or infinite)."""
    if document is None:
        return None
    if _is_deep(document):
        raise InvalidArgument(f"{what} is nested too deeply", hint=f"nest at most {_MAX_DEPTH} levels")
    try:
        text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{what} is not JSON: {error}", hint="use finite numbers and little nesting") from None
    return check_text(text, what, most_bytes)


_MAX_DEPTH = 32


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(_MAX_DEPTH):
        inner = [node.values() if isinstance(node, dict) else node for node in level if isinstance(node, (dict, list))]
        level = list(chain.from_iterable(inner))
    return any(isinstance(node, (dict, list)) for node in level)


def check_ids(memory_ids: Iterable[str], settings: Settings) -> tuple[str, ...]:
    """Return distinct ids. Unknown ids match nothing later. Raises InvalidArgument (too many, or malformed)."""
    distinct = tuple(dict.fromkeys(memory_ids))
    if len(distinct) > settings.limits.ids:
        raise InvalidArgument(f"{len(distinct)} ids; at most {settings.limits.ids} are allowed", hint="send fewer")
    for memory_id in distinct:
        check_id(memory_id)
    return distinct


def check_secrecy(sensitive: bool, visibility: Visibility) -> None:
    """Raise InvalidArgument if a sensitive memory would be public."""
    if sensitive and visibility is Visibility.PUBLIC:
        raise InvalidArgument("a sensitive memory cannot be public", hint="store it private, and grant it by its id")


def check_limit(limit: int, settings: Settings) -> int:
    """Accept a number of results that the settings allow. Raises InvalidArgument."""
    if limit > settings.limits.results:
        raise InvalidArgument(f"limit is {limit}; at most {settings.limits.results} are allowed here")
    return limit


def check_id(some_id: str, what: str = "memory_id") -> str:
    """Accept a possible id: short printable ASCII. Raises InvalidArgument."""
    if not (0 < len(some_id) <= 64 and some_id.isascii() and some_id.isprintable()):
        raise InvalidArgument(f"{what} {echo(some_id)} is not an id", hint="use an id that a tool gave you")
    return some_id
