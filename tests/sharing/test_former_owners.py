"""After an agent left its memories, none of its calls that began before can change or delete them."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio
from support.sharing_helpers import readable, register
from support.stack import Agent, Server, Stack

from memory_core.records.audit_entry import system_entry
from memory_core.records.keys import Keys
from memory_server.contract.arguments import ClearArguments
from memory_server.engine.principals import resolve
from memory_server.engine.request_context import Caller, RequestContext
from memory_server.memories import clear, update
from memory_server.security.open_records import load_readable


@pytest_asyncio.fixture(autouse=True, loop_scope="session")
async def registered(alice: Agent, bob: Agent) -> None:
    """Both agents are registered."""
    await register(alice, "alice")
    await register(bob, "bob")


async def transfer(alice: Agent, bob: Agent) -> None:
    """Alice leaves, and Bob takes her memories over."""
    offer = (await alice.call("unregister_agent", memories="transfer", transfer_to="bob"))["offer_id"]
    await bob.call("answer_offer", offer_id=offer)


async def leave(alice: Agent, _: Agent) -> None:
    """Alice leaves, and comes back as the next holder of her name."""
    await alice.call("unregister_agent", memories="keep")
    await register(alice, "alice")
    await alice.store("Of the next holder.")


@pytest.mark.parametrize("part", [transfer, leave])
async def test_former_owner_cannot_update_what_it_left(
    server: Server, stack: Stack, alice: Agent, bob: Agent, namespace: str, part: Any
) -> None:
    kept = await alice.store("A map of the coast.")
    service, request = server.service, RequestContext(Caller(namespace, "alice"))
    principal = await resolve(service.backend, request)
    record = await load_readable(service, request, principal, kept)
    model = await service.models.current(namespace)
    await part(alice, bob)
    changed = replace(record, metadata='{"late":1}')
    write = update._write  # pyright: ignore[reportPrivateUsage]
    status, _ = await write(service, request, principal, record, changed, model)
    assert status == "not_owner"
    assert await stack.client.hget(Keys(namespace).memory(kept), "rev") == b"1"


@pytest.mark.parametrize("part", [transfer, leave])
async def test_former_owner_cannot_delete_what_it_left(
    server: Server, stack: Stack, alice: Agent, bob: Agent, namespace: str, part: Any
) -> None:
    kept = await alice.store("A map of the coast.", context="maps")
    service, request = server.service, RequestContext(Caller(namespace, "alice"))
    chosen = [ClearArguments(memory_ids=[kept]), ClearArguments(context="maps")]
    plans = [await clear.select(service, request, arguments) for arguments in chosen]
    assert [plan.matched for plan in plans] == [1, 1]
    await part(alice, bob)
    for plan in plans:
        assert (await clear.clear_memory(service, plan, confirmed=True, dry_run=False)).deleted == 0
    assert await stack.client.exists(Keys(namespace).memory(kept))


async def test_new_owner_updates_and_deletes_what_it_took_over(alice: Agent, bob: Agent) -> None:
    kept = await alice.store("A map of the coast.")
    await transfer(alice, bob)
    await bob.call("update_memory", memory_id=kept, content="A map of the island.")
    assert (await bob.call("clear_memory", memory_ids=[kept]))["deleted"] == 1


async def test_no_call_of_the_former_owner_succeeds_after_a_transfer(alice: Agent, bob: Agent) -> None:
    kept = [await alice.store(f"Map number {number}.") for number in range(8)]
    offer = (await alice.call("unregister_agent", memories="transfer", transfer_to="bob"))["offer_id"]
    calls = [alice.raw("update_memory", memory_id=memory_id, metadata={"late": 1}) for memory_id in kept[:4]] + [
        alice.raw("clear_memory", memory_ids=[memory_id]) for memory_id in kept[4:]
    ]
    running = [asyncio.create_task(call) for call in calls]
    await bob.call("answer_offer", offer_id=offer)
    await asyncio.gather(*running)
    assert await readable(bob, kept) == kept
    for memory_id in kept:
        assert (await bob.call("retrieve_memory", memory_id=memory_id))["memory"]["rev"] == 1


async def test_server_purges_only_memories_of_deleted_owners(
    server: Server, stack: Stack, alice: Agent, namespace: str
) -> None:
    kept = await alice.store("A map of the coast.")
    owner = await stack.client.hget(Keys(namespace).memory(kept), "owner")
    assert owner is not None
    audit = system_entry("server", "purge", [kept])
    assert await clear.delete(server.service, namespace, [kept], owners=[owner.decode()], audit=audit) == 0
    assert await stack.client.exists(Keys(namespace).memory(kept))
