"""mem0: what its `get_all` gives and people save, `{results: [...]}`, `{memories: [...]}` or the list alone."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from memory_server.transfer.foreign import (
    Foreign,
    Format,
    Found,
    Source,
    first,
    gather,
    label,
    labels,
    moment,
    records,
    text,
    without_nothing,
)

_KEYS = ("results", "memories")
_KEPT = ("user_id", "agent_id", "app_id", "run_id", "actor_id", "role", "hash", "updated_at")


def _key(source: Source) -> str:
    found = (key for one in source.documents if isinstance(one, dict) for key in _KEYS if key in one)
    return next(found, "")


def _matches(source: Source) -> bool:
    member = first(source.documents, _key(source))
    return "memory" in member and "id" in member


def _read(source: Source) -> Iterator[Found]:
    for where, member in records(source.documents, _key(source)):
        yield from gather(where, member, partial(_memory, where=where))


def _memory(said: dict[str, Any], where: str) -> Foreign:
    own = said.get("metadata") or {}
    return Foreign(
        where=where,
        source_id=text(said["id"], "id"),
        content=text(said["memory"], "memory"),
        tags=labels(said.get("categories")),
        context=label(said.get("run_id")),
        source=label(said.get("actor_id") or said.get("role")),
        occurred_at=moment(said.get("created_at"), "created_at"),
        expires_at=moment(said.get("expiration_date"), "expiration_date"),
        metadata=without_nothing({**own, **{name: said.get(name) for name in _KEPT}}),
    )


FORMAT = Format("mem0", _matches, _read)
