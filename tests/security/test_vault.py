"""Vault: data keys destroyed elsewhere expire from the cache; without a key nothing sensitive is sent to Redis."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from support.embedder_fixtures import wait_until
from support.redis_monitor import Monitor
from support.redis_users import SERVER
from support.sharing_helpers import refusal
from support.stack import MASTER_KEY, Agent, Stack, serving

from memory_core.crypto.sealed_memory import wrap
from memory_core.crypto.sealing import Key
from memory_core.errors import KeyMissing, Tampered
from memory_core.records.keys import Keys
from memory_core.redis_client import Client
from memory_server.engine.redis_backend import Backend
from memory_server.operations.health.namespaces import check_namespaces
from memory_server.operations.health.report import DoctorReport, Inspection
from memory_server.operations.sweeper import sweep
from memory_server.security import vault
from memory_server.security.vault import Opened, Vault


@pytest.mark.parametrize(
    ("short", "long"), [("_LOOK_SECONDS", "REMEMBER_SECONDS"), ("REMEMBER_SECONDS", "_LOOK_SECONDS")]
)
async def test_data_key_destroyed_elsewhere_soon_opens_nothing(
    short: str, long: str, stack: Stack, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vault, short, 0.05)
    monkeypatch.setattr(vault, long, 3600.0)
    keys = Keys(namespace)
    async with (
        serving(stack.redis.url_of(SERVER), master_key=MASTER_KEY) as server,
        server.agent("ann", namespace) as ann,
    ):
        memory_id = await ann.store("The vault stands open.", sensitive=True, wait=False)
        assert (await ann.call("retrieve_memory", memory_id=memory_id))["memory"]["content"] == "The vault stands open."
        owner = (await stack.client.hget(keys.agent("ann"), "owner")).decode()
        await stack.client.delete(keys.data_key(owner))

        async def is_closed() -> bool:
            return (await ann.raw("retrieve_memory", memory_id=memory_id)).is_error

        await wait_until(is_closed)
        assert (await refusal(ann, "retrieve_memory", memory_id=memory_id))[0] == "tampered"


@pytest.mark.long
async def test_data_key_of_another_type_closes_only_the_sensitive_memories_of_its_owner(
    stack: Stack, namespace: str
) -> None:
    keys, client = Keys(namespace), stack.client
    async with (
        serving(stack.redis.url_of(SERVER), master_key=MASTER_KEY) as server,
        server.agent("ann", namespace) as ann,
        server.agent("ben", namespace) as ben,
    ):
        ids = [await ann.store(text, sensitive=number == 0) for number, text in enumerate(["The vault.", "A harbour."])]
        other = await ben.store("The cellar.", sensitive=True)
        key = keys.data_key((await client.hget(keys.agent("ann"), "owner")).decode())
        await client.rename(key, keys.use("kept"))
        await client.set(key, "damaged")
        refused = await refusal(ann, "store_memory", content="While the key is cached.", sensitive=True)
        assert refused[0] == "store_unavailable"
        for owner in await client.smembers(keys.keyed):
            server.service.vault.forget(namespace, owner.decode())
        listed = await ann.call("get_agent_memories")
        assert [memory["memory_id"] for memory in listed["memories"]] == ids[1:]
        assert "data key of their owner cannot be read" in str(listed)
        assert (await refusal(ann, "retrieve_memory", memory_id=ids[0]))[0] == "tampered"
        assert (await refusal(ann, "store_memory", content="More.", sensitive=True))[0] == "tampered"
        assert (await ben.call("retrieve_memory", memory_id=other))["memory"]["content"] == "The cellar."
        await sweep(server.service, patience=0)
        assert await client.get(key) == b"damaged"
        report = DoctorReport()
        await check_namespaces(Inspection(client, server.service.settings, server.service.backend.keyring, report))
        (found,) = [one for one in report.faults if one.id == "namespace.data_key"]
        assert key in found.seen
        assert key in found.remedy
        await client.rename(keys.use("kept"), key)
        assert (await ann.call("retrieve_memory", memory_id=ids[0]))["memory"]["content"] == "The vault."


class Counting:
    """A backend that counts its reads."""

    def __init__(self, backend: Backend) -> None:
        self._backend, self.reads = backend, 0
        self.settings, self.keyring = backend.settings, backend.keyring

    async def read(self, fetch: Callable[[Client], Awaitable[Any]]) -> Any:
        """Count the read and pass it on."""
        self.reads += 1
        return await self._backend.read(fetch)


async def test_data_keys_are_cached_and_new_ones_are_looked_up(stack: Stack, alice: Agent, namespace: str) -> None:
    await alice.store("The vault stands open.", sensitive=True)
    owner = (await stack.client.hget(Keys(namespace).agent("alice"), "owner")).decode()
    backend = Counting(stack.server.service.backend)
    held = Vault(backend)  # type: ignore[arg-type]
    current = await held.current(namespace, owner)
    assert await held.find(namespace, owner, current.id) == current
    assert backend.reads == 1
    newer = Key.new()
    wrapped = wrap(backend.keyring.master, newer, namespace, owner)
    await stack.client.hset(Keys(namespace).data_key(owner), newer.id, wrapped)
    assert await held.find(namespace, owner, newer.id) == newer
    assert await held.find(namespace, owner, current.id) == current
    assert backend.reads == 2
    with pytest.raises(Tampered):
        await held.find(namespace, owner, "unknown")


def test_unopened_memories_are_counted_by_reason() -> None:
    opened = Opened()
    opened.leave_out(KeyMissing("no master key"))
    opened.leave_out(KeyMissing("no master key"), 2)
    opened.leave_out(Tampered("anything"))
    assert opened.warnings == [
        "3 sensitive texts are left out: no master key",
        "1 sensitive text is left out: it was altered, or its key was destroyed",
    ]


async def test_without_master_key_no_sensitive_content_reaches_redis(stack: Stack, namespace: str) -> None:
    async with (
        serving(stack.redis.url_of(SERVER)) as server,
        server.agent("ann", namespace) as ann,
        Monitor(stack.redis.path) as monitor,
    ):
        refused = await refusal(ann, "store_memory", content="The canary of the cellar sings.", sensitive=True)
        assert refused[0] == "key_missing"
        await monitor.until(namespace.encode() + b" is silent", stack.client)
        assert b"canary" not in monitor.received
