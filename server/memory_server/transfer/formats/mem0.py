"""mem0: a saved answer of `get_all`, as `{results: [...]}`, `{memories: [...]}`, a list or lines; OpenMemory's export.

Each memory and each relation of its graph becomes a memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from memory_server.transfer import foreign
from memory_server.transfer.foreign import Bad, Foreign, Format, Found, PassedOver
from memory_server.transfer.source import Document, Source

_KEYS = ("results", "memories", "relations")
_METADATA = ("user_id", "agent_id", "app_id", "run_id", "actor_id", "role", "hash", "updated_at", "app", "state")
_OPENMEMORY = {"state", "app", "app_id", "categories", "user_id", "agent_id", "run_id"}


def _matches(source: Source) -> bool:
    if any(isinstance(one.value, dict) and _is_empty_answer(one.value) for one in source.documents):
        return True
    return any(
        "id" in one and ("memory" in one or ("content" in one and one.keys() & _OPENMEMORY))
        for one in foreign.objects(source, *_KEYS)
    )


def _is_empty_answer(value: dict[str, Any]) -> bool:
    return value.get("results") == [] or (value.get("memories") == [] and "export_meta" in value)


def _read(source: Source) -> Iterator[Found]:
    seen = set[str]()
    for document in foreign.contents(source):
        if isinstance(document, Bad):
            yield document
        else:
            yield from _records(document, seen)


def _records(document: Document, seen: set[str]) -> Iterator[Found]:
    for key, where, member in foreign.records(document, *_KEYS):
        for found in foreign.gather(where, member, _relation if key == "relations" else _memory):
            known = isinstance(found, Foreign) and found.source_id in seen
            if not known:  # OpenMemory writes each memory into two files
                yield found
            if isinstance(found, Foreign):
                seen.add(found.source_id)


def _memory(memory: dict[str, Any], where: str) -> Foreign | PassedOver:
    if memory.get("state") == "deleted" or memory.get("deleted_at"):
        return PassedOver("deleted memory", is_lost=False)
    own, name = memory.get("metadata") or {}, "memory" if "memory" in memory or "content" not in memory else "content"
    return Foreign(
        where=where,
        source_id=foreign.text(memory["id"], "id"),
        content=foreign.text(memory[name], name),
        tags=foreign.labels(memory.get("categories")),
        context=foreign.label(memory.get("run_id")),
        source=foreign.label(memory.get("actor_id") or memory.get("role")),
        occurred_at=foreign.moment(memory.get("created_at"), "created_at"),
        expires_at=foreign.moment(memory.get("expiration_date"), "expiration_date"),
        metadata=foreign.without_empty({**own, **{name: memory.get(name) for name in _METADATA}}),
    )


def _relation(relation: dict[str, Any], where: str) -> Foreign:
    end = "target" if "target" in relation else "destination"
    parts = [foreign.text(relation[name], name) for name in ("source", "relationship", end)]
    return Foreign(
        where=where,
        source_id=json.dumps(["relation", *parts]),
        content=f"{parts[0]} {parts[1].replace('_', ' ')} {parts[2]}.",
        tags=("relation",),
        metadata=dict(zip(("from", "relation", "to"), parts, strict=True)),
    )


FORMAT = Format("mem0", _matches, _read)
