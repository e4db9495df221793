"""The reference memory server of the Model Context Protocol: `memory.jsonl`, or the answer of its `read_graph`.

Each observation, each relation and each entity without observations becomes a memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import Any, cast

from memory_server.transfer import foreign
from memory_server.transfer.foreign import Bad, Foreign, Format, Found
from memory_server.transfer.source import Source

_LISTS = {"entities": "entity", "relations": "relation"}
_TAG = "knowledge-graph"


def _matches(source: Source) -> bool:
    return any(_kind("", one) for one in foreign.objects(source, *_LISTS)) or any(
        isinstance(one.value, dict) and _LISTS.keys() <= one.value.keys() for one in source.documents
    )


def _kind(key: str, record: dict[str, Any]) -> str | None:
    """Whether a record is an entity or a relation, by the list that it is in or by its fields."""
    if "relationType" in record or key == "relations":
        return "relation"
    return "entity" if "entityType" in record or key == "entities" or record.get("type") == "entity" else None


def _read(source: Source) -> Iterator[Found]:
    for document in foreign.contents(source):
        if isinstance(document, Bad):
            yield document
            continue
        for key, where, member in foreign.records(document, *_LISTS):
            kind = _kind(key, cast(dict[str, Any], member)) if isinstance(member, dict) else None
            if kind == "relation":
                yield from foreign.gather(where, member, _relation)
            elif kind == "entity":
                yield from _entity(where, member)
            else:
                yield Bad(where, "it is neither an entity nor a relation")


def _entity(where: str, entity: dict[str, Any]) -> Iterator[Found]:
    observations: Any = entity.get("observations")
    if not isinstance(observations, list):
        yield Bad(where, "observations is not a list")
        return
    for observation in cast(list[Any], observations) or [None]:
        yield from foreign.gather(where, entity, partial(_observation, observation=observation))


def _observation(entity: dict[str, Any], where: str, observation: Any) -> Foreign:
    name, kind = foreign.text(entity["name"], "name"), foreign.text(entity["entityType"], "entityType")
    content = f"{name} is a {kind}."
    if observation is not None:
        observation = observation if isinstance(observation, str) else foreign.block_text(observation)
        content = f"{name}: {foreign.text(observation, 'an observation')}"
    return Foreign(
        where=where,
        source_id=json.dumps(["entity", name, observation]),
        content=content,
        tags=foreign.labels([_TAG, kind]),
        context=foreign.label(name),
        metadata={"entity": name, "entity_type": kind},
    )


def _relation(relation: dict[str, Any], where: str) -> Foreign:
    parts = [foreign.text(relation[name], name) for name in ("from", "relationType", "to")]
    return Foreign(
        where=where,
        source_id=json.dumps(["relation", *parts]),
        content=f"{parts[0]} {parts[1].replace('_', ' ')} {parts[2]}.",
        tags=foreign.labels([_TAG, "relation"]),
        context=foreign.label(parts[0]),
        metadata=dict(zip(("from", "relation", "to"), parts, strict=True)),
    )


FORMAT = Format("mcp-memory", _matches, _read)
