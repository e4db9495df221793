"""mcp-memory-service: the JSON file that its `export` writes, `{export_metadata, memories}`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import partial
from typing import Any, cast

from memory_core.records.memory import MemoryType
from memory_server.transfer.foreign import (
    Foreign,
    Format,
    Found,
    Source,
    gather,
    label,
    labels,
    moment,
    records,
    text,
    without_nothing,
)

_KEY = "memories"
_TYPES = {
    "code": MemoryType.CODE,
    "document": MemoryType.DOCUMENT,
    "reference": MemoryType.DOCUMENT,
    "conversation": MemoryType.CONVERSATION,
    "task": MemoryType.TASK,
}


def _matches(source: Source) -> bool:
    return any(isinstance(one, dict) and "export_metadata" in one and _KEY in one for one in source.documents)


def _read(source: Source) -> Iterator[Found]:
    for where, member in records(source.documents, _KEY):
        yield from gather(where, member, partial(_memory, where=where))


def _memory(said: dict[str, Any], where: str) -> Foreign:
    content, store = text(said["content"], "content"), str(said.get("store") or "default")
    known = said.get("content_hash") or hashlib.sha256(content.encode()).hexdigest()
    kind = said.get("memory_type")
    metadata = said.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise ValueError("metadata is no object")
    told = cast(dict[str, Any], metadata)
    return Foreign(
        where=where,
        source_id=json.dumps([store, known]),
        content=content,
        memory_type=_TYPES.get(str(kind), MemoryType.CONTEXT),
        tags=labels(said.get("tags")),
        context=None if store == "default" else label(store),
        source=label(said.get("export_source")),
        occurred_at=moment(said.get("created_at"), "created_at"),
        metadata=without_nothing({**told, "memory_type": kind}),
    )


FORMAT = Format("mcp-memory-service", _matches, _read)
