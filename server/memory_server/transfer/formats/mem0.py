"""mem0: a saved answer of `get_all`, `{results: [...]}`, `{memories: [...]}` or the list alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from memory_server.transfer import foreign
from memory_server.transfer.foreign import Foreign, Format, Found, Source

_KEYS = ("results", "memories")
_METADATA = ("user_id", "agent_id", "app_id", "run_id", "actor_id", "role", "hash", "updated_at")


def _key(source: Source) -> str:
    return next((key for one in source.documents if isinstance(one, dict) for key in _KEYS if key in one), "")


def _matches(source: Source) -> bool:
    member = foreign.first(source.documents, _key(source))
    return "memory" in member and "id" in member


def _read(source: Source) -> Iterator[Found]:
    return foreign.gather_records(source.documents, _key(source), _memory)


def _memory(memory: dict[str, Any], where: str) -> Foreign:
    own = memory.get("metadata") or {}
    return Foreign(
        where=where,
        source_id=foreign.text(memory["id"], "id"),
        content=foreign.text(memory["memory"], "memory"),
        tags=foreign.labels(memory.get("categories")),
        context=foreign.label(memory.get("run_id")),
        source=foreign.label(memory.get("actor_id") or memory.get("role")),
        occurred_at=foreign.moment(memory.get("created_at"), "created_at"),
        expires_at=foreign.moment(memory.get("expiration_date"), "expiration_date"),
        metadata=foreign.without_empty({**own, **{name: memory.get(name) for name in _METADATA}}),
    )


FORMAT = Format("mem0", _matches, _read)
