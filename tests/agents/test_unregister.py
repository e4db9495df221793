"""unregister_agent hands over tasks, ends grants, and keeps, transfers or deletes memories."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_asyncio
from support.embedder_fixtures import wait_until
from support.long_content import FACT, pieces_in_redis, prose
from support.sharing_helpers import LABELS, SECRET, found_ids, ids_of, readable, refusal, share, visibility_by_read
from support.stack import Agent, Server, Stack
from support.team_helpers import claim, claim_when_there, register, submit, sweep

from memory_core.records.keys import Keys
from memory_core.redis_client import Client
from memory_server.engine.request_context import Caller, RequestContext
from memory_server.operations.kept_memories import offer_kept


@pytest_asyncio.fixture(autouse=True, loop_scope="session")
async def registered(alice: Agent, bob: Agent) -> None:
    """Both agents are registered."""
    await register(alice)
    await register(bob)


async def leave(agent: Agent, **how: Any) -> dict[str, Any]:
    """Unregister and return the answer."""
    return await agent.call("unregister_agent", **how)


async def hand_over(agent: Agent, receiver: Agent) -> int:
    """Transfer all memories and accept them; return how many."""
    name = (await receiver.call("register_agent"))["agent"]["agent_id"]
    offer = (await leave(agent, memories="transfer", transfer_to=name))["offer_id"]
    return (await receiver.call("answer_offer", offer_id=offer))["memories_received"]


async def owner_of(client: Client, namespace: str, memory_id: str) -> str:
    """Return the owner id of a memory."""
    return (await client.hget(Keys(namespace).memory(memory_id), "owner")).decode()


async def visibility_by_unfiltered_read(reader: Agent, memory_id: str) -> dict[str, bool]:
    """Return, for each way of reading without an agent filter, whether it shows a memory."""
    seen = {"retrieve": await readable(reader, [memory_id]) == [memory_id]}
    for mode in ("hybrid", "vector", "keyword"):
        found = found_ids(await reader.call("semantic_search", query="treasure under the lighthouse", mode=mode))
        seen[mode] = memory_id in found
    seen["statistics"] = (await reader.call("memory_stats"))["total"] > 0
    seen["list"] = memory_id in ids_of((await reader.call("get_agent_memories", limit=100))["memories"])
    return seen


async def test_unregistered_agent_no_longer_exists(alice: Agent, bob: Agent) -> None:
    answer = await leave(alice)
    assert (answer["tasks_reassigned"], answer["memories_affected"], answer["grants_revoked"]) == (0, 0, 0)
    assert [found["agent_id"] for found in (await bob.call("list_agents", alive_only=False))["agents"]] == ["bob"]
    for tool in ("unregister_agent", "update_agent_heartbeat", "get_pending_tasks"):
        assert (await refusal(alice, tool))[0] == "not_found"
    assert (await refusal(bob, "distribute_task", description="For her.", assign_to="alice"))[0] == "not_found"


async def test_returning_agent_gets_a_new_owner_id_without_kept_memories(
    alice: Agent, bob: Agent, stack: Stack, namespace: str
) -> None:
    old, known = await alice.store(SECRET, **LABELS), await alice.store("The harbour opens.", visibility="public")
    assert (await leave(alice))["memories_affected"] == 2
    assert await readable(alice, [old, known]) == [known]
    assert not (await alice.call("register_agent"))["again"]
    new = await alice.store("The map is in the attic.")
    owners = [await owner_of(stack.client, namespace, memory_id) for memory_id in (old, new)]
    assert owners[0] != owners[1]
    assert SECRET not in await alice.search("treasure under the lighthouse")
    assert (await refusal(alice, "update_memory", memory_id=old, content="The treasure was found."))[0] == "not_found"
    assert (await refusal(alice, "update_memory", memory_id=known, content="It is closed."))[0] == "forbidden"
    assert await readable(bob, [old, new]) == []
    listed = await bob.call("get_agent_memories", agent_id="alice")
    assert ids_of(listed["memories"]) == [known]


async def test_deleting_on_the_second_leave_spares_what_the_first_kept(
    alice: Agent, stack: Stack, namespace: str
) -> None:
    old = await alice.store(SECRET)
    await leave(alice)
    await register(alice)
    await alice.store("The map is in the attic.")
    await leave(alice, memories="delete")
    owner = await owner_of(stack.client, namespace, old)
    assert not await stack.client.sismember(Keys(namespace).tombstones, owner)
    assert await stack.client.hget(Keys(namespace).agent("alice"), "kept") == owner.encode()


async def test_kept_owner_id_expires_with_the_last_memory(alice: Agent, stack: Stack, namespace: str) -> None:
    keys, grace, days = Keys(namespace), 3600, 86_400
    memory = await alice.store(SECRET, sensitive=True, ttl_seconds=800 * days)
    owner = await owner_of(stack.client, namespace, memory)
    await leave(alice)
    for key in (keys.owner(owner), keys.data_key(owner), keys.agent("alice")):
        assert 0 <= 800 * days + grace - await stack.client.ttl(key) < 60, key
    await register(alice)
    assert await stack.client.ttl(keys.agent("alice")) == -1
    second = await owner_of(stack.client, namespace, await alice.store("Back again.", ttl_seconds=60))
    await stack.client.delete(keys.owner(owner))  # as if it had expired
    await leave(alice)
    assert await stack.client.hget(keys.agent("alice"), "kept") == second.encode()
    assert 364 * days < await stack.client.ttl(keys.agent("alice")) <= 365 * days


async def test_kept_owner_id_lasts_with_a_memory_that_never_expires(alice: Agent, stack: Stack, namespace: str) -> None:
    keys, memory = Keys(namespace), await alice.store(SECRET, ttl_seconds=60)
    owner = await owner_of(stack.client, namespace, memory)
    await alice.call("update_memory", memory_id=memory, priority="critical")
    await leave(alice)
    for key in (keys.owner(owner), keys.agent("alice")):
        assert await stack.client.ttl(key) == -1


async def test_accepted_owner_id_no_longer_expires(alice: Agent, bob: Agent, stack: Stack, namespace: str) -> None:
    keys, memory = Keys(namespace), await alice.store(SECRET, sensitive=True, ttl_seconds=60)
    owner = await owner_of(stack.client, namespace, memory)
    await leave(alice)
    admin = RequestContext(Caller(namespace, "operator", admin=True))
    offer = await offer_kept(stack.server.service, admin, "alice", "bob")
    await bob.call("answer_offer", offer_id=offer.offer_id)
    for key in (keys.owner(owner), keys.data_key(owner)):
        assert await stack.client.ttl(key) == -1
    assert await stack.client.ttl(keys.agent("alice")) > 0
    assert await readable(bob, [memory]) == [memory]


async def test_owner_id_without_memories_is_not_kept(alice: Agent, stack: Stack, namespace: str) -> None:
    keys = Keys(namespace)
    owner = (await stack.client.hget(keys.agent("alice"), "owner")).decode()
    await leave(alice)
    assert not await stack.client.exists(keys.owner(owner))
    assert set(await stack.client.hkeys(keys.agent("alice"))) == {b"since"}


async def test_storing_after_leaving_gives_a_new_owner_id(alice: Agent, stack: Stack, namespace: str) -> None:
    old = await alice.store("Before.")
    await leave(alice)
    new = await alice.store("After.")
    assert await owner_of(stack.client, namespace, old) != await owner_of(stack.client, namespace, new)
    assert await readable(alice, [old, new]) == [new]


async def test_transfer_changes_one_mapping_for_any_number_of_memories(
    alice: Agent, bob: Agent, stack: Stack, namespace: str
) -> None:
    secret = await alice.store(SECRET, **LABELS)
    long = await alice.store(prose(60) + FACT)
    operations = [{"op": "store_memory", "content": f"Note {number} on boats."} for number in range(50)]
    await alice.call("batch_operations", operations=operations)
    owner = await owner_of(stack.client, namespace, secret)
    keys = Keys(namespace)
    revision = await stack.client.hmget(keys.memory(secret), ["rev", "scope", "owner"])
    answer = await leave(alice, memories="transfer", transfer_to="bob")
    assert answer["memories_affected"] == 52
    seen = await visibility_by_unfiltered_read(bob, secret)
    assert seen == dict.fromkeys(seen, False)
    assert await stack.client.hget(keys.owner(owner), "agent") == b"alice"
    assert (await bob.call("answer_offer", offer_id=answer["offer_id"]))["memories_received"] == 52
    assert await stack.client.hget(keys.owner(owner), "agent") == b"bob"
    assert await stack.client.hmget(keys.memory(secret), ["rev", "scope", "owner"]) == revision
    assert (await bob.call("get_agent_memories"))["total"] == 52
    seen = await visibility_by_unfiltered_read(bob, secret)
    assert seen == dict.fromkeys(seen, True)
    assert FACT in (await bob.search("which number opens the safe in the cellar?", mode="keyword"))[0]
    changed = await bob.call("update_memory", memory_id=secret, content="The treasure was found.", tags=["found"])
    assert changed["memory"]["tags"] == ["found"]
    assert (await bob.call("clear_memory", memory_ids=[long]))["deleted"] == 1
    seen = await visibility_by_unfiltered_read(alice, secret)
    assert seen == dict.fromkeys(seen, False)
    await register(alice)
    assert (await refusal(alice, "update_memory", memory_id=secret, content="Mine!"))[0] == "not_found"
    assert (await alice.call("get_agent_memories"))["total"] == 0


async def test_transferred_memories_can_be_transferred_again(alice: Agent, bob: Agent, server: Server) -> None:
    memory = await alice.store(SECRET, **LABELS)
    await hand_over(alice, bob)
    own = await bob.store("A map of the coast.")
    await register(alice)
    assert await hand_over(bob, alice) == 2
    assert await readable(alice, [memory, own]) == [memory, own]
    assert await readable(bob, [memory, own]) == []


async def test_deleted_memories_are_hidden_at_once_and_purged_by_sweep(
    alice: Agent, bob: Agent, server: Server, stack: Stack, namespace: str
) -> None:
    memory = await alice.store(SECRET, visibility="public", **LABELS)
    seen = await visibility_by_read(bob, memory)
    assert seen == dict.fromkeys(seen, True)
    long = await alice.store(prose(60) + FACT, visibility="public")
    owner = await owner_of(stack.client, namespace, memory)
    answer = await leave(alice, memories="delete")
    assert answer["memories_affected"] == 2
    for reader in (bob, alice):
        seen = await visibility_by_read(reader, memory) | await visibility_by_unfiltered_read(reader, memory)
        assert seen == dict.fromkeys(seen, False)
        assert await readable(reader, [long]) == []
        assert await reader.search("safe cellar 4711", mode="keyword") == []
    await register(alice)
    assert await readable(alice, [memory, long]) == []
    assert (await refusal(alice, "update_memory", memory_id=memory, content="Back!"))[0] == "not_found"
    await alice.store("A new beginning.")

    await sweep(server, namespace)
    keys = Keys(namespace)
    left = [key.decode() async for key in stack.client.scan_iter(f"{keys.memory_prefix}*")]
    assert len(left) == 1
    assert await pieces_in_redis(stack, namespace) == set()
    assert await stack.client.exists(keys.tombstones, keys.owner(owner)) == 0
    assert await alice.search("A new beginning.", mode="keyword") == ["A new beginning."]


async def test_purge_deletes_all_of_many_memories(alice: Agent, server: Server, stack: Stack, namespace: str) -> None:
    operations = [{"op": "store_memory", "content": f"Note {number}."} for number in range(120)]
    await alice.call("batch_operations", operations=operations)
    await alice.store("An old thing.", priority="archive")
    await leave(alice, memories="delete")
    assert (await alice.call("get_agent_memories"))["total"] == 0
    await sweep(server, namespace)
    assert [key async for key in stack.client.scan_iter(f"{Keys(namespace).memory_prefix}*")] == []
    assert await stack.client.exists(Keys(namespace).tombstones) == 0


BAD_LEAVES: dict[str, tuple[dict[str, Any], str]] = {
    "without a receiver": ({"memories": "transfer"}, "invalid_argument"),
    "to itself": ({"memories": "transfer", "transfer_to": "alice"}, "invalid_argument"),
    "to an unknown agent": ({"memories": "transfer", "transfer_to": "carol"}, "not_found"),
    "to an invalid name": ({"memories": "transfer", "transfer_to": "not/a/name"}, "invalid_argument"),
    "kept with a receiver": ({"memories": "keep", "transfer_to": "bob"}, "invalid_argument"),
    "deleted with a receiver": ({"memories": "delete", "transfer_to": "bob"}, "invalid_argument"),
    "with an unknown mode": ({"memories": "burn"}, "invalid_argument"),
}


async def test_invalid_unregister_is_refused_and_changes_nothing(alice: Agent, bob: Agent) -> None:
    memory = await alice.store(SECRET, **LABELS)
    await share(alice, "bob", memory_ids=[memory])
    for why, (how, code) in BAD_LEAVES.items():
        assert (await refusal(alice, "unregister_agent", **how))[0] == code, why
    assert await readable(alice, [memory]) == [memory]
    assert await readable(bob, [memory]) == [memory]
    assert len((await bob.call("list_agents"))["agents"]) == 2


async def test_unregistering_agent_hands_its_tasks_over(
    server: Server, namespace: str, alice: Agent, bob: Agent
) -> None:
    async with server.agent("boss", namespace) as boss:
        await register(alice, max_tasks=40)
        await bob.call("update_agent_heartbeat", status="draining")
        ids = {(await submit(boss, f"Job {number}"))["task_id"] for number in range(35)}
        held = await claim(alice)
        left = await leave(alice)
        assert (left["tasks_reassigned"], left["tasks_ended"]) == (35, 0)
        await register(bob, max_tasks=40)
        taken: dict[str, dict[str, Any]] = {}

        async def has_all() -> bool:
            answer = await bob.call("get_pending_tasks", limit=40, with_memories=0)
            taken.update({task["task_id"]: task for task in answer["tasks"]})
            return set(taken) == ids

        await wait_until(has_all)
        assert {task["attempt"] for task_id, task in taken.items() if task_id != held["task_id"]} == {1}
        assert taken[held["task_id"]]["attempt"] == 2
        (failure,) = taken[held["task_id"]]["earlier_failures"]
        assert failure["error"] == "alice was unregistered"
        token = held["lease_token"]
        code, _ = await refusal(alice, "complete_task", task_id=held["task_id"], lease_token=token)
        assert code == "lease_lost"


async def test_tasks_submitted_before_leaving_go_on_without_the_submitter(alice: Agent, bob: Agent) -> None:
    await submit(alice, "For bob.", assign_to="bob")
    await leave(alice)
    task = await claim_when_there(bob)
    await bob.call("complete_task", task_id=task["task_id"], lease_token=task["lease_token"], result="done")
    assert (await bob.call("get_task", task_id=task["task_id"]))["task"]["result"] == "done"
    await register(alice)
    for tool in ("get_task", "cancel_task", "requeue_task"):
        assert (await refusal(alice, tool, task_id=task["task_id"]))[0] == "not_found"


async def test_new_holder_sees_tasks_that_it_holds_whoever_submitted_them(alice: Agent, bob: Agent) -> None:
    task_id = (await submit(bob, "For alice.", assign_to="alice"))["task_id"]
    await leave(alice)
    await register(alice)
    assert (await bob.call("requeue_task", task_id=task_id))["state"] == "pending"
    task = await claim_when_there(alice)
    assert task["task_id"] == task_id
    await alice.call("complete_task", task_id=task_id, lease_token=task["lease_token"], result="done")
    assert (await alice.call("get_task", task_id=task_id))["task"]["result"] == "done"


async def test_unregistering_ends_grants_in_both_directions(alice: Agent, bob: Agent) -> None:
    hers, his = await alice.store(SECRET, **LABELS), await bob.store("A map of the coast.", **LABELS)
    await share(alice, "bob", context="island")
    await share(bob, "alice", context="island")
    assert await readable(bob, [hers]) == [hers]
    assert await readable(alice, [his]) == [his]
    assert (await leave(alice))["grants_revoked"] == 2
    assert await readable(bob, [hers]) == []
    assert await readable(alice, [his]) == []


@pytest.mark.parametrize("memories", ["keep", "delete"])
async def test_reused_name_does_not_inherit_earlier_grants(alice: Agent, bob: Agent, memories: str) -> None:
    secret = await alice.store(SECRET, **LABELS)
    await share(alice, "bob", context="island")
    assert await readable(bob, [secret]) == [secret]
    await leave(bob, memories=memories)
    assert await readable(bob, [secret]) == []
    await register(bob)
    later = await alice.store("There is a second chest.", **LABELS)
    assert await readable(bob, [secret, later]) == []
    assert await bob.search("treasure under the lighthouse") == []


async def test_transfer_excludes_memories_others_shared(
    server: Server, namespace: str, alice: Agent, bob: Agent
) -> None:
    async with server.agent("carol", namespace) as carol:
        await register(carol)
        secret = await carol.store(SECRET, **LABELS)
        await share(carol, "alice", context="island")
        await hand_over(alice, bob)
        assert await readable(bob, [secret]) == []
