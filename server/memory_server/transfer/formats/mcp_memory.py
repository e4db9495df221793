"""The reference memory server of the Model Context Protocol: `memory.jsonl`, a graph of entities and relations.

Each observation of an entity becomes a memory, each relation one, and an entity without observations one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import Any, cast

from memory_server.transfer.foreign import Bad, Foreign, Format, Found, Source, gather, label, labels, text

_KINDS = ("entity", "relation")
_TAG = "knowledge-graph"


def _matches(source: Source) -> bool:
    return any(one.get("type") in _KINDS and ("name" in one or "relationType" in one) for one in source.head)


def _read(source: Source) -> Iterator[Found]:
    for number, line in source.lines():
        where = f"line {number}"
        try:
            said: Any = json.loads(line)
        except (ValueError, RecursionError):
            yield Bad(where, "it is not JSON")
            continue
        kind = said.get("type") if isinstance(said, dict) else None
        if kind == "relation":
            yield from gather(where, said, partial(_relation, where=where))
        elif kind == "entity":
            yield from _entity(where, said)
        else:
            yield Bad(where, "it is neither an entity nor a relation")


def _entity(where: str, said: dict[str, Any]) -> Iterator[Found]:
    observations: Any = said.get("observations")
    if not isinstance(observations, list):
        yield Bad(where, "observations is no list")
        return
    for observation in cast(list[Any], observations) or [None]:
        yield from gather(where, said, partial(_observation, where=where, seen=observation))


def _observation(said: dict[str, Any], where: str, seen: Any) -> Foreign:
    name, kind = text(said["name"], "name"), text(said["entityType"], "entityType")
    content = f"{name} is a {kind}." if seen is None else f"{name}: {text(seen, 'an observation')}"
    return Foreign(
        where=where,
        source_id=json.dumps(["entity", name, seen]),
        content=content,
        tags=labels([_TAG, kind]),
        context=label(name),
        metadata={"entity": name, "entity_type": kind},
    )


def _relation(said: dict[str, Any], where: str) -> Foreign:
    parts = [text(said[name], name) for name in ("from", "relationType", "to")]
    return Foreign(
        where=where,
        source_id=json.dumps(["relation", *parts]),
        content=f"{parts[0]} {parts[1].replace('_', ' ')} {parts[2]}.",
        tags=labels([_TAG, "relation"]),
        context=label(parts[0]),
        metadata=dict(zip(("from", "relation", "to"), parts, strict=True)),
    )


FORMAT = Format("mcp-memory", _matches, _read)
