"""Servers survive damaged entries in Redis: they remove them, go on, and report them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
from redis.exceptions import ResponseError
from support.audit_helpers import flushed_entries
from support.stack import Agent, Server, Stack
from support.task_helpers import submit

from memory_core.errors import StoreRefused
from memory_core.records.ids import new_id
from memory_core.records.keys import (
    AUDITED,
    LIBRARY_PROOF,
    NAMESPACES,
    SESSION_KEY,
    SIDECARS,
    SWEEPER,
    Keys,
    asks,
    bell,
    bulk,
)
from memory_core.redis_client import Client
from memory_core.settings.settings import Settings
from memory_server.engine import redis_backend
from memory_server.engine.damage import discard
from memory_server.events.retention import trim_events
from memory_server.operations.health.namespaces import check_namespaces
from memory_server.operations.health.report import DoctorReport, Inspection
from memory_server.operations.health.shared_keys import check_shared_keys
from memory_server.operations.health.sidecars import check_sidecars
from memory_server.operations.sweeper import sweep, sweep_audits
from memory_server.operations.team_sweeper import sweep_due_teams
from memory_server.security.audit import reader
from memory_server.service import Service

pytestmark = pytest.mark.asyncio(loop_scope="session")

LAST = "zzz-last"
"""A namespace that is swept after all others."""
MODEL = Settings().vector_store.embedding_model
SHARED = [NAMESPACES, AUDITED, SIDECARS, LIBRARY_PROOF, SESSION_KEY, bell(0), asks(1, MODEL), bulk(0, MODEL)]
Plant = Callable[[Client, Keys], Awaitable[object]]
DAMAGE: dict[str, Plant] = {
    "a chore without number": lambda client, keys: client.zadd(keys.chores, {"odd": 1}),
    "a chore that is not text": lambda client, keys: client.zadd(keys.chores, {b"\xff:2": 1}),
    "a tombstone that is not text": lambda client, keys: client.sadd(keys.tombstones, b"\xff"),
    "an agent whose name is not text": lambda client, keys: client.zadd(keys.agents, {b"\xff": 1}),
    "an agent without record": lambda client, keys: client.zadd(keys.agents, {"ghost": 1}),
    "a lease without task": lambda client, keys: client.zadd(keys.leases, {"ghost": 1}),
    "a grant without record that is due": lambda client, keys: client.zadd(keys.grants_due, {"ghost": 1}),
    **{
        f"{name} of another type": lambda client, keys, name=name: client.set(getattr(keys, name), "damaged")
        for name in "chores tombstones quarantined agents leases unclaimed grants_due events kinds tokens".split()
    },
}


async def _damaged(client: Client, keys: Keys) -> list[str]:
    return [fields[b"key"].decode() for _, fields in await client.xrange(keys.damaged)]


@pytest.fixture
def keys(namespace: str) -> Keys:
    return Keys(namespace)


@pytest.mark.parametrize("damage", DAMAGE)
async def test_sweep_removes_damage_and_reaches_the_last_namespace(
    service: Service, stack: Stack, alice: Agent, keys: Keys, damage: str
) -> None:
    await alice.call("register_agent")
    await alice.store("The heron nests by the weir.")
    await stack.client.sadd(NAMESPACES, LAST)
    await stack.client.zadd(Keys(LAST).leases, {"ghost": 1})
    await DAMAGE[damage](stack.client, keys)
    failed = service.counters.sweeps["failed"]
    for _ in range(2):
        await sweep_due_teams(service)
        await sweep(service, patience=0)
    assert service.counters.sweeps["failed"] == failed
    assert await _damaged(stack.client, keys)
    assert await stack.client.zcard(Keys(LAST).leases) == 0
    await alice.call("register_agent")
    assert [agent["agent_id"] for agent in (await alice.call("list_agents"))["agents"]] == ["alice"]
    assert await alice.search("heron")


async def test_namespace_that_cannot_be_swept_does_not_stop_the_others(
    service: Service, stack: Stack, alice: Agent, keys: Keys
) -> None:
    await alice.store("The heron nests by the weir.")
    await stack.client.sadd(NAMESPACES, LAST)
    await stack.client.zadd(Keys(LAST).leases, {"ghost": 1})
    await stack.client.delete(keys.meta)
    await stack.client.set(keys.meta, "damaged")
    try:
        await sweep(service, patience=0)
        assert await stack.client.zcard(Keys(LAST).leases) == 0
    finally:
        await stack.client.srem(NAMESPACES, keys.namespace)
        await stack.client.delete(keys.meta)


async def test_server_outlives_a_key_of_another_type_that_it_watches(
    stack: Stack, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def failing(*_: object) -> None:
        raise ResponseError("WRONGTYPE")

    monkeypatch.setattr(redis_backend, "_WATCH_SECONDS", 0.01)
    settings = Settings.load(redis_url=stack.redis.url, namespace=keys.namespace)
    await stack.client.set(keys.counters, "damaged")
    async with redis_backend.Backend(settings).running() as backend:
        await backend.client()
        monkeypatch.setattr(backend, "check_signer", failing)
        await asyncio.sleep(0.3)
        assert await backend.read(lambda client: client.exists(keys.counters))
        with pytest.raises(StoreRefused, match="another type"):
            await backend.read(lambda client: client.hgetall(keys.counters))
    await stack.client.delete(keys.counters)


@pytest.mark.parametrize("name", ["meta", "counters"])
async def test_doctor_reports_a_key_of_another_type_and_goes_on(
    service: Service, stack: Stack, alice: Agent, keys: Keys, name: str
) -> None:
    await alice.store("The heron nests by the weir.")
    key, report = getattr(keys, name), DoctorReport()
    await stack.client.rename(key, f"{key}:kept")
    await stack.client.set(key, "damaged")
    await stack.client.sadd(NAMESPACES, LAST)
    try:
        await check_namespaces(Inspection(stack.client, service.settings, service.backend.keyring, report))
    finally:
        await stack.client.rename(f"{key}:kept", key)
        await stack.client.srem(NAMESPACES, LAST)
    assert "namespace.unreadable" in [one.id for one in report.faults if one.where == keys.namespace]
    assert any(one.where == LAST for one in report.findings)


@pytest.mark.parametrize("key", SHARED)
async def test_shared_key_of_another_type_is_removed_and_reported(
    service: Service, stack: Stack, alice: Agent, keys: Keys, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    await alice.store("The heron nests by the weir.")
    client, before = stack.client, service.counters.damaged
    kept = {one: await client.smembers(one) for one in (NAMESPACES, AUDITED)}
    reports = Keys(service.settings.namespace).damaged
    async with client.pipeline() as pipe:  # a sidecar makes its streams again at once
        await pipe.delete(key).hset(key, "damaged", "1").execute()
    report = DoctorReport()
    inspection = Inspection(client, service.settings, service.backend.keyring, report)
    await check_shared_keys(inspection)
    await check_sidecars(inspection)
    await check_namespaces(inspection)
    assert [(one.where, key in one.remedy) for one in report.faults if one.id == "redis.key"] == [(key, True)]
    with caplog.at_level(logging.WARNING):
        await sweep(service)
        await sweep_due_teams(service)
        await sweep_audits(service)
    assert await client.type(key) != b"hash"
    assert service.counters.damaged > before
    assert key in caplog.text
    assert keys.namespace in await service.namespaces.names()
    assert key in await _damaged(client, Keys(service.settings.namespace))
    await client.delete(reports)
    for one, members in kept.items():
        assert not members - await client.smembers(one) - {LAST.encode()}


async def test_sweeper_holds_its_lease_after_its_key_was_of_another_type(service: Service, stack: Stack) -> None:
    async with stack.client.pipeline(transaction=True) as pipe:  # another server may take the lease in between
        await pipe.delete(SWEEPER).hset(SWEEPER, "damaged", "1").execute()
    assert await service.backend.hold_lease(SWEEPER, "me", 1)


async def test_set_of_namespaces_with_another_member_is_swept(service: Service, stack: Stack, alice: Agent) -> None:
    await alice.store("The heron nests by the weir.")
    for key in (NAMESPACES, AUDITED):
        await stack.client.sadd(key, b"\xff", "No Name")
    try:
        assert await service.namespaces.names()
        await sweep(service)
        await sweep_audits(service)
        await asyncio.sleep(3.5)  # sidecars look for namespaces every 3 s
        stack.sidecar.check_running()
    finally:
        for key in (NAMESPACES, AUDITED):
            await stack.client.srem(key, b"\xff", "No Name")


async def test_removed_damage_is_counted_logged_audited_and_found_by_doctor(
    service: Service, server: Server, stack: Stack, alice: Agent, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    await alice.store("The heron nests by the weir.")
    before = service.counters.damaged
    await stack.client.zadd(keys.leases, {b"ghost \xff": 1})
    with caplog.at_level(logging.WARNING):
        await sweep_due_teams(service)
    assert service.counters.damaged == before + 1
    assert "removed a damaged entry" in caplog.text
    async with httpx2.AsyncClient() as http:
        assert "memory_server_damaged_entries_total" in (await http.get(f"{server.url}/metrics")).text
    entries = await flushed_entries(server, stack.client, keys.namespace)
    (removed,) = [entry for entry in entries if entry["op"] == "remove_damaged"]
    assert removed["ids"] == quote(f"{keys.leases}:ghost \\xff", safe=":{}")
    report = DoctorReport()
    await check_namespaces(Inspection(stack.client, service.settings, service.backend.keyring, report))
    (found,) = [one for one in report.faults if one.id == "namespace.damage" and one.where == keys.namespace]
    assert keys.leases in found.seen


async def test_unreadable_history_entry_does_not_hide_the_task(stack: Stack, alice: Agent, keys: Keys) -> None:
    task = await submit(alice)
    await stack.client.rpush(keys.history(task), b"\xc1", b"\x01")
    shown = await alice.call("get_task", task_id=task)
    assert [event["op"] for event in shown["history"]] == ["submitted"]
    assert await _damaged(stack.client, keys) == [keys.history(task)] * 2


async def test_damaged_agents_and_tasks_do_not_hide_the_others(
    stack: Stack, alice: Agent, bob: Agent, keys: Keys
) -> None:
    for agent in (alice, bob):
        await agent.call("register_agent")
    tasks = [await submit(alice) for _ in range(3)]
    await stack.client.hset(keys.agent("bob"), "status", "odd")
    await stack.client.hset(keys.task(tasks[0]), "created_at", "odd")
    await stack.client.delete(keys.task(tasks[1]))
    await stack.client.set(keys.task(tasks[1]), "odd")
    assert [agent["agent_id"] for agent in (await alice.call("list_agents"))["agents"]] == ["alice"]
    assert [task["task_id"] for task in (await alice.call("list_tasks"))["tasks"]] == [tasks[2]]


@pytest.mark.parametrize("packed", [b"\xc1", b"\x01", b"\x80"])
async def test_unreadable_grant_does_not_stop_its_holder(
    service: Service, stack: Stack, alice: Agent, bob: Agent, keys: Keys, packed: bytes
) -> None:
    for agent in (alice, bob):
        await agent.call("register_agent")
    memory_id = await alice.store("The heron nests by the weir.", tags=["birds"])
    await alice.call("share_context_with_agent", target_agent="bob", tags=["birds"], bidirectional=True)
    for key in (keys.granted("bob"), keys.offers("bob"), keys.granted("alice")):
        await stack.client.hset(key, new_id(), packed)
    assert (await bob.call("retrieve_memory", memory_id=memory_id))["memory"]["content"]
    assert (await bob.call("get_shared_context"))["granted_to_me"]
    await alice.call("share_context_with_agent", target_agent="bob", tags=["birds"])
    await sweep(service)
    for key in (keys.granted("bob"), keys.offers("bob"), keys.granted("alice")):
        assert key in await _damaged(stack.client, keys)
    assert await bob.call("unregister_agent")


async def test_grant_without_record_is_ended(
    service: Service, stack: Stack, alice: Agent, bob: Agent, keys: Keys
) -> None:
    for agent in (alice, bob):
        await agent.call("register_agent")
    memory_id = await alice.store("The heron nests by the weir.", tags=["birds"])
    shared = await alice.call("share_context_with_agent", target_agent="bob", tags=["birds"])
    await stack.client.hdel(keys.grant(shared["grant_id"]), "from")
    await bob.call("get_shared_context")
    await sweep(service)
    assert (await bob.raw("retrieve_memory", memory_id=memory_id)).is_error


async def test_expired_grant_with_damaged_record_does_not_keep_the_others(
    service: Service, stack: Stack, alice: Agent, bob: Agent, keys: Keys
) -> None:
    for agent in (alice, bob):
        await agent.call("register_agent")
    grants = [
        (await alice.call("share_context_with_agent", target_agent="bob", tags=[tag], expires_in_seconds=600))[
            "grant_id"
        ]
        for tag in ("birds", "ships")
    ]
    await stack.client.hdel(keys.grant(grants[0]), "from")
    await stack.client.zadd(keys.grants_due, dict.fromkeys(grants, 1))
    await sweep(service)
    assert await stack.client.zcard(keys.grants_due) == 0
    assert await stack.client.hget(keys.grant(grants[1]), "state") == b"expired"


async def test_malformed_event_is_dropped(service: Service, stack: Stack, alice: Agent, keys: Keys) -> None:
    await alice.store("The heron nests by the weir.")
    odd = await stack.client.xadd(keys.events, {"odd": "1"})
    await trim_events(service.backend, keys.namespace, kept=100, trimmed_from=1)
    assert await stack.client.xrange(keys.events, odd, odd) == []


async def test_damage_in_one_key_stops_no_function(stack: Stack, alice: Agent, keys: Keys) -> None:
    await alice.store("The heron nests by the weir.")
    for key in (keys.events, keys.audit, keys.counters):
        await stack.client.delete(key)
        await stack.client.set(key, "damaged")
    await alice.store("The otter sleeps.")
    assert set(await _damaged(stack.client, keys)) == {keys.events, keys.audit, keys.counters}
    counted = await reader.counters(stack.client, keys)
    assert counted.given > 0


async def test_many_damaged_entries_are_removed_in_slices(
    service: Service, stack: Stack, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, sizes = service.backend.write, list[int]()

    async def counted(function: str, names: list[str], **request: Any) -> dict[str, Any]:
        sizes.append(len(request["entries"]))
        return await write(function, names, **request)

    monkeypatch.setattr(service.backend, "write", counted)
    await stack.client.sadd(keys.tombstones, *(f"odd{number}" for number in range(250)))
    await discard(service.backend, keys.tombstones, sorted(await stack.client.smembers(keys.tombstones)), "odd")
    assert sizes == [100, 100, 50]
    assert not await stack.client.exists(keys.tombstones)
