"""The reference memory server of the Model Context Protocol: `memory.jsonl`, a graph of entities and relations.

Each observation, each relation and each entity without observations becomes a memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import Any, cast

from memory_server.transfer import foreign
from memory_server.transfer.export_lines import read_json
from memory_server.transfer.foreign import Bad, Foreign, Format, Found, Source

_KINDS = ("entity", "relation")
_TAG = "knowledge-graph"


def _matches(source: Source) -> bool:
    return any(one.get("type") in _KINDS and ("name" in one or "relationType" in one) for one in source.head)


def _read(source: Source) -> Iterator[Found]:
    for number, line in source.lines():
        where = f"line {number}"
        try:
            record = read_json(line)
        except ValueError as error:
            yield Bad(where, str(error))
            continue
        kind = record.get("type") if isinstance(record, dict) else None
        if kind == "relation":
            yield from foreign.gather(where, record, _relation)
        elif kind == "entity":
            yield from _entity(where, record)
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
