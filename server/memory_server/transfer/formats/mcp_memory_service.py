"""mcp-memory-service: the JSON file that its `export` writes, `{export_metadata, memories}`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any, cast

from memory_core.records.memory import MemoryType
from memory_server.transfer import foreign
from memory_server.transfer.foreign import Foreign, Format, Found
from memory_server.transfer.source import Source

_KEY = "memories"
_TYPES = {
    "code": MemoryType.CODE,
    "document": MemoryType.DOCUMENT,
    "reference": MemoryType.DOCUMENT,
    "conversation": MemoryType.CONVERSATION,
    "task": MemoryType.TASK,
}


def _matches(source: Source) -> bool:
    return any(
        isinstance(one.value, dict) and "export_metadata" in one.value and _KEY in one.value for one in source.documents
    )


def _read(source: Source) -> Iterator[Found]:
    return foreign.gather_records(source, [_KEY], _memory)


def _memory(memory: dict[str, Any], where: str) -> Foreign:
    content, store = foreign.text(memory["content"], "content"), str(memory.get("store") or "default")
    content_hash = memory.get("content_hash") or hashlib.sha256(content.encode()).hexdigest()
    kind, metadata = memory.get("memory_type"), memory.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise ValueError("metadata is not an object")
    return Foreign(
        where=where,
        source_id=json.dumps([store, content_hash]),
        content=content,
        memory_type=_TYPES.get(str(kind), MemoryType.CONTEXT),
        tags=foreign.labels(memory.get("tags")),
        context=None if store == "default" else foreign.label(store),
        source=foreign.label(memory.get("export_source")),
        occurred_at=foreign.moment(memory.get("created_at"), "created_at"),
        metadata=foreign.without_empty({**cast(dict[str, Any], metadata), "memory_type": kind}),
    )


FORMAT = Format("mcp-memory-service", _matches, _read)
