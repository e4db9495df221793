"""How a sidecar handles bulk requests: refused, dropped, reclaimed, and valid by their schemas."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

import jsonschema
import numpy as np
import pytest
from support import embedder_fixtures
from support.bulk_helpers import PUBLIC, Stored, unit_vectors
from support.embedder_fixtures import FAST, RedisServer, Team, await_reply, running, wait_until

from memory_core.crypto.keyring import Secret
from memory_core.crypto.sealing import Transports
from memory_core.package_data import resource
from memory_core.records import keys
from memory_core.records.ids import new_id
from memory_core.records.vectors import to_bytes
from memory_core.redis_client import Client
from memory_core.store.bulk_messages import (
    BulkAsk,
    Clusters,
    Duplicates,
    Nearest,
    NearestFound,
    Request,
    Selection,
    read_body,
)
from memory_core.store.streams import CLEAR, BadMessage, entries
from memory_embedder.engines.fake import FakeEncoder

server, client, team = embedder_fixtures.server, embedder_fixtures.client, embedder_fixtures.team


async def request_bulk(
    client: Client, request: Request, transports: Transports = CLEAR, *, seconds: float = 10.0, **changes: Any
) -> str:
    """Send a request; return its id, which also names its reply stream."""
    ask_id = new_id()
    deadline = int((time.time() + seconds) * 1000)
    ask = BulkAsk(ask_id, keys.reply(ask_id), "team", "fake", deadline, request, transports.current)
    await client.xadd(keys.bulk(0, "fake"), ask.fields(transports) | changes)
    return ask_id


def nearest_to(vectors: Any, k: int = 3) -> Nearest:
    return Nearest(selection=PUBLIC, queries=to_bytes(vectors), k=k)


async def test_invalid_request_is_refused_with_a_reason(server: RedisServer, client: Client, team: Team) -> None:
    vectors = unit_vectors(2)
    bad = vectors.copy()
    bad[0, 0] = np.nan
    requests: list[tuple[Request, dict[str, Any], str]] = [
        (nearest_to(vectors), {"model": "other"}, "model_mismatch"),
        (nearest_to(vectors), {"seal": "k1"}, "not_supported"),
        (nearest_to(bad), {}, "invalid_argument"),
        (nearest_to(vectors[0][:10]), {}, "invalid_argument"),
        (nearest_to(vectors, k=1 << 18), {}, "invalid_argument"),
    ]
    rules = json.loads(resource("schemas/reply.json").read_text())
    async with running(server.url, FakeEncoder()):
        for request, changes, code in requests:
            reply = await await_reply(client, await request_bulk(client, request, **changes))
            assert reply.error.split(":")[0] == code
            jsonschema.validate({name: _text(value) for name, value in reply.fields().items()}, rules)
        await client.xadd(keys.bulk(1, "fake"), {"v": "1", "nonsense": "x"})
        await request_bulk(client, nearest_to(vectors), seconds=-1)
        assert not (await await_reply(client, await request_bulk(client, nearest_to(vectors)))).error

        async def settled() -> bool:
            return not any([await client.xlen(keys.bulk(lane, "fake")) for lane in range(keys.LANES)])

        await wait_until(settled)


async def test_namespace_over_the_memory_budget_is_refused(server: RedisServer, client: Client, team: Team) -> None:
    stored = Stored(team)
    for vector in unit_vectors(3):
        await stored.store(vector)
    options = replace(FAST, bulk_bytes=100)
    async with running(server.url, FakeEncoder(), options):
        reply = await await_reply(client, await request_bulk(client, nearest_to(unit_vectors(1))))
        assert reply.error.startswith("too_large: ")


async def test_sidecar_without_bulk_memory_offers_no_engine(server: RedisServer, client: Client, team: Team) -> None:
    options = replace(FAST, bulk_bytes=0)
    async with running(server.url, FakeEncoder(), options) as sidecar:
        assert sidecar.status().bulk is None


async def test_request_of_a_killed_sidecar_is_answered_by_another(
    server: RedisServer, client: Client, team: Team
) -> None:
    (vector,) = vectors = unit_vectors(1)
    memory = await Stored(team).store(vector)
    await client.xgroup_create(keys.bulk(0, "fake"), keys.GROUP, id="0", mkstream=True)
    ask_id = await request_bulk(client, nearest_to(vectors))
    assert await client.xreadgroup(keys.GROUP, "killed", {keys.bulk(0, "fake"): ">"})
    async with running(server.url, FakeEncoder()):
        reply = await await_reply(client, ask_id)
    assert list(read_body(reply.vectors, NearestFound).ids) == [memory]


async def test_sealed_request_needs_the_key_and_gets_a_sealed_reply(
    server: RedisServer, client: Client, team: Team
) -> None:
    (vector,) = vectors = unit_vectors(1)
    memory = await Stored(team).store(vector)
    held = Transports([Secret(bytes(range(32)))])
    ask = BulkAsk("id", keys.reply("x"), "team", "fake", 1, nearest_to(vectors), held.current)
    assert to_bytes(vector) not in _bytes(ask.fields(held)["body"])
    async with running(server.url, FakeEncoder(), transports=held):
        ask_id = await request_bulk(client, nearest_to(vectors), held)
        reply = await await_reply(client, ask_id, held)
        assert reply.seal == held.current
        assert list(read_body(reply.vectors, NearestFound).ids) == [memory]
        ((_, _, fields),) = entries(await client.xread({keys.reply(ask_id): "0"}))
        assert memory.encode() not in fields[b"body"]
        await request_bulk(client, nearest_to(vectors), held, ns="other")
        clear = await await_reply(client, await request_bulk(client, nearest_to(vectors)))
        assert (clear.seal, clear.error) == ("", "")

        async def dropped() -> bool:
            return not await client.xlen(keys.bulk(0, "fake"))

        await wait_until(dropped)
    async with running(server.url, FakeEncoder()):
        reply = await await_reply(client, await request_bulk(client, nearest_to(vectors), held))
        assert (reply.error.split(":")[0], reply.vectors) == ("not_supported", b"")


def test_requests_match_their_schema() -> None:
    rules = json.loads(resource("schemas/bulk.json").read_text())
    selection = Selection(
        every=[("scope", ["pub"])], none=[("priority", ["archive"])], mistrusted=[("bob", 5.0)], since=1.0
    )
    requests: list[Request] = [
        Nearest(selection=selection, queries=b"\0" * 64, k=3),
        Duplicates(selection=selection, least=0.9),
        Clusters(selection=selection, count=3),
    ]
    body_rules = {"$ref": "#/$defs/request", "$defs": rules["$defs"]}
    for request in requests:
        ask = BulkAsk("id", keys.reply("x"), "team", "fake", 1, request)
        fields = {name.encode(): _bytes(value) for name, value in ask.fields().items()}
        assert BulkAsk.parse(fields) == ask
        jsonschema.validate({name.decode(): value.decode("latin-1") for name, value in fields.items()}, rules)
        jsonschema.validate(request.model_dump(mode="json"), body_rules)
        for name in fields:
            with pytest.raises(BadMessage):
                BulkAsk.parse({key: value for key, value in fields.items() if key != name})
    with pytest.raises(BadMessage):
        read_body(b"\xc1", NearestFound)


def _bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


def _text(value: object) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)
