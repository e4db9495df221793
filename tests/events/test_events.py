"""wait_for_events wakes agents for their events, without gaps and without events that they may not see."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from mcp import Client as McpClient
from support.embedder_fixtures import wait_until
from support.event_helpers import PATIENT, emit, listeners, named, now, waiting
from support.stack import Agent, Refused, Server, Stack

from memory_core.records.keys import Keys
from memory_server.contract.arguments import WaitArguments
from memory_server.engine.request_context import Caller, RequestContext
from memory_server.events.retention import trim_events
from memory_server.events.waiting import unread, wait_for_events
from memory_server.service import Service


async def all_events(agent: Agent, cursor: str, **arguments: Any) -> tuple[list[tuple[str, str, str]], str]:
    """Read all events after a cursor, page by page."""
    found: list[tuple[str, str, str]] = []
    while True:
        answer = await now(agent, cursor=cursor, **arguments)
        cursor = answer["cursor"]
        if not answer["events"]:
            return found, cursor
        assert len(answer["events"]) <= 100
        found += named(answer)


async def test_stored_memory_wakes_only_its_readers(server: Server, namespace: str, alice: Agent, bob: Agent) -> None:
    wait = await waiting(server, namespace, bob)
    memory_id = await alice.store("The bridge is open.", visibility="public")
    answer = await wait
    assert named(answer) == [("memory", "stored", memory_id)]
    assert answer["events"][0]["by"] == "alice"
    assert answer["events"][0]["uri"] == f"memory://{memory_id}"
    assert named(await now(bob, cursor=answer["cursor"])) == []


@pytest.mark.parametrize(
    ("kind", "op", "to"),
    [
        ("task", "assigned", ("bob",)),
        ("task", "completed", ("carol", "bob")),
        ("grant", "granted", ("bob",)),
        ("agent", "registered", ()),
        ("agent", "dead", ("bob", "carol")),
    ],
)
async def test_each_event_kind_wakes_its_addressees(
    server: Server, stack: Stack, namespace: str, bob: Agent, kind: str, op: str, to: tuple[str, ...]
) -> None:
    wait = await waiting(server, namespace, bob)
    await emit(stack, namespace, "subject", kind=kind, op=op, to=to, by="carol")
    assert named(await wait) == [(kind, op, "subject")]


@pytest.mark.parametrize(("kind", "to"), [("task", ("carol",)), ("task", ()), ("grant", ("carol",)), ("grant", ())])
async def test_events_addressed_to_others_are_not_shown(
    server: Server, stack: Stack, namespace: str, bob: Agent, kind: str, to: tuple[str, ...]
) -> None:
    begin = (await now(bob))["cursor"]
    wait = await waiting(server, namespace, bob)
    await emit(stack, namespace, "theirs", kind=kind, to=to, by="carol")
    await emit(stack, namespace, "mine")
    assert named(await wait) == [("task", "assigned", "mine")]
    assert named(await now(bob, cursor=begin)) == [("task", "assigned", "mine")]


async def test_agent_is_not_notified_of_its_own_actions(
    server: Server, stack: Stack, namespace: str, alice: Agent, bob: Agent
) -> None:
    begin = (await now(bob))["cursor"]
    wait = await waiting(server, namespace, bob, query="a lantern in the boathouse")
    await bob.store("A lantern hangs in the boathouse.", visibility="public")
    await emit(stack, namespace, "his", by="bob")
    memory_id = await alice.store("Somebody lit the boathouse lantern.", visibility="public")
    first = await wait
    assert {event["id"] for event in first["events"]} == {memory_id}
    assert {name[2] for name in (await all_events(bob, begin))[0]} == {memory_id}


async def test_first_wait_of_an_unregistered_agent_starts_now(stack: Stack, namespace: str, bob: Agent) -> None:
    await emit(stack, namespace, "earlier")
    assert named(await now(bob)) == []


async def test_first_wait_of_a_registered_agent_starts_at_its_registration(
    stack: Stack, namespace: str, bob: Agent
) -> None:
    await emit(stack, namespace, "earlier")
    await asyncio.sleep(0.002)
    await bob.call("register_agent")
    await emit(stack, namespace, "later")
    assert (await bob.call("update_agent_heartbeat"))["unread_events"] == 1
    assert named(await now(bob)) == [("task", "assigned", "later")]
    assert (await bob.call("update_agent_heartbeat"))["unread_events"] == 0


async def test_wait_without_cursor_goes_on_where_the_last_one_ended(
    server: Server, stack: Stack, namespace: str, bob: Agent
) -> None:
    await bob.call("register_agent")
    begin = (await now(bob))["cursor"]
    for number in range(70):
        await emit(stack, namespace, f"task-{number}")
    assert (await bob.call("update_agent_heartbeat"))["unread_events"] == 70
    first = await now(bob)
    assert first["more"]
    assert (await bob.call("update_agent_heartbeat"))["unread_events"] == 20
    async with server.agent("bob", namespace) as other_session:
        second = await now(other_session)
    assert [name[2] for name in [*named(first), *named(second)]] == [f"task-{number}" for number in range(70)]
    assert "more" not in second or not second["more"]
    assert len((await now(bob, cursor=begin))["events"]) == 50
    assert named(await now(bob)) == []


async def test_updates_and_deletions_are_reported_deletions_only_by_id(
    namespace: str, alice: Agent, bob: Agent
) -> None:
    cursor = (await now(bob))["cursor"]
    memory_id = await alice.store("The password is swordfish.", visibility="public")
    await alice.call("update_memory", memory_id=memory_id, tags=["security"])
    answer = await now(bob, cursor=cursor)
    assert named(answer) == [("memory", "stored", memory_id), ("memory", "updated", memory_id)]
    await alice.call("clear_memory", memory_ids=[memory_id])
    answer = await now(bob, cursor=answer["cursor"])
    assert named(answer) == [("memory", "deleted", memory_id)]
    assert set(answer["events"][0]) == {"kind", "op", "id", "by", "at", "what"}
    assert answer["events"][0]["what"] == f"alice deleted memory {memory_id}"


async def test_grant_and_revoke_change_a_wait_in_progress(
    server: Server, stack: Stack, namespace: str, alice: Agent, bob: Agent
) -> None:
    for name, agent in (("alice", alice), ("bob", bob)):
        await agent.call("register_agent", agent_id=name, agent_type="custom")
    begin = (await now(bob))["cursor"]
    wait = await waiting(server, namespace, bob, kinds=["memory"])
    grant = await alice.call("share_context_with_agent", target_agent="bob", context="island")
    shared = await alice.store("The chest is under the palm.", context="island")
    first = await wait
    assert named(first) == [("memory", "stored", shared)]

    wait = await waiting(server, namespace, bob, kinds=["memory", "task"], cursor=first["cursor"])
    await alice.call("revoke_shared_context", grant_id=grant["grant_id"])
    secret = await alice.store("The chest was moved to the cave.", context="island")
    await alice.call("clear_memory", memory_ids=[secret])
    await emit(stack, namespace, "end")
    assert named(await wait) == [("task", "assigned", "end")]
    caught_up, _ = await all_events(bob, begin, kinds=["memory", "grant"])
    assert [(kind, op) for kind, op, _ in caught_up] == [("grant", "granted"), ("grant", "revoked")]


@pytest.mark.parametrize("visibility", ["private", "shared", "public"])
async def test_memory_events_follow_visibility(
    server: Server, stack: Stack, namespace: str, alice: Agent, bob: Agent, visibility: str
) -> None:
    cursor = (await now(bob))["cursor"]
    wait = await waiting(server, namespace, bob, query="a treasure chest")
    memory_id = await alice.store("The treasure chest is under the lighthouse.", visibility=visibility)
    await alice.call("update_memory", memory_id=memory_id, tags=["gold"])
    await alice.call("clear_memory", memory_ids=[memory_id])
    await emit(stack, namespace, "end")
    received = named(await wait)
    caught_up, _ = await all_events(bob, cursor, query="a treasure chest")
    if visibility == "public":
        assert memory_id in {name[2] for name in received}
        assert ("memory", "deleted", memory_id) in caught_up
    else:
        assert received == caught_up == [("task", "assigned", "end")]


async def test_memory_made_private_is_not_reported(namespace: str, alice: Agent, bob: Agent) -> None:
    cursor = (await now(bob))["cursor"]
    memory_id = await alice.store("The treasure chest is here.", visibility="public")
    await alice.call("update_memory", memory_id=memory_id, visibility="private")
    answer = await now(bob, cursor=cursor, query="treasure chest")
    assert answer["events"] == []


async def test_memory_matches_when_it_becomes_public(namespace: str, alice: Agent, bob: Agent) -> None:
    memory_id = await alice.store("The treasure chest is here.")
    cursor = (await now(bob))["cursor"]
    await alice.call("update_memory", memory_id=memory_id, visibility="public")
    answer = await now(bob, cursor=cursor, kinds=["match"], query="the treasure chest")
    assert named(answer) == [("match", "updated", memory_id)]


async def test_kinds_filter_the_events(stack: Stack, namespace: str, alice: Agent, bob: Agent) -> None:
    cursor = (await now(bob))["cursor"]
    memory_id = await alice.store("A note.", visibility="public")
    await emit(stack, namespace, "task")
    await emit(stack, namespace, "grant", kind="grant", op="granted")
    expected = {"task": ("assigned", "task"), "grant": ("granted", "grant"), "memory": ("stored", memory_id)}
    for kind, (op, subject) in expected.items():
        assert named(await now(bob, cursor=cursor, kinds=kind)) == [(kind, op, subject)]
    assert named(await now(bob, cursor=cursor, kinds=["agent"])) == []


async def test_standing_query_wakes_only_for_close_memories(
    server: Server, namespace: str, alice: Agent, bob: Agent
) -> None:
    wait = await waiting(server, namespace, bob, query="Where do the ships leave from?", kinds=["match"])
    await alice.store("Tomatoes want sun and water.", visibility="public")
    await alice.store("The ships leave from the northern harbour.")
    memory_id = await alice.store("The ships leave from the southern harbour.", visibility="public")
    answer = await wait
    assert named(answer) == [("match", "stored", memory_id)]
    match = answer["events"][0]
    assert 0.45 <= match["score"] <= 1
    assert match["snippet"] == "The ships leave from the southern harbour."
    assert match["by"] == "alice"


async def test_memory_matches_once_its_vector_exists(server: Server, namespace: str, alice: Agent, bob: Agent) -> None:
    begin = (await now(bob))["cursor"]
    wait = await waiting(server, namespace, bob, query="Where do the ships leave from?", kinds=["match"])
    memory_id = await alice.store("The ships leave from the harbour.", visibility="public", wait=False)
    assert named(await wait) == [("match", "embedded", memory_id)]
    missed = await now(bob, cursor=begin, query="Where do the ships leave from?", kinds=["match"])
    assert named(missed) == [("match", "embedded", memory_id)]
    assert named(await now(bob, cursor=begin)) == [("memory", "stored", memory_id)]


async def test_any_chunk_of_a_long_memory_can_match(server: Server, namespace: str, alice: Agent, bob: Agent) -> None:
    ships = "The ships leave from the southern harbour at dawn and at dusk. " * 40
    filler = "The minutes of the committee on gardens and parks list flowers, hedges and benches. " * 40
    wait = await waiting(server, namespace, bob, query="Where do the ships leave from?", kinds=["match"])
    memory_id = await alice.store(f"{filler}\n\n{ships}", visibility="public")
    answer = await wait
    assert {event["id"] for event in answer["events"]} == {memory_id}
    assert "ships" in answer["events"][0]["snippet"]


async def test_min_score_sets_the_match_threshold(namespace: str, alice: Agent, bob: Agent) -> None:
    cursor = (await now(bob))["cursor"]
    memory_id = await alice.store("The ships leave from the harbour.", visibility="public")
    query = {"query": "Where do the ships leave from?", "kinds": ["match"], "cursor": cursor}
    assert named(await now(bob, min_score=0.99, **query)) == []
    assert named(await now(bob, min_score=0.1, **query)) == [("match", "stored", memory_id)]


async def test_timed_out_wait_returns_no_events_and_a_cursor(stack: Stack, namespace: str, bob: Agent) -> None:
    answer = await bob.call("wait_for_events", timeout_seconds=0.05)
    assert answer["events"] == []
    assert not answer["partial"]
    await emit(stack, namespace, "later")
    assert named(await now(bob, cursor=answer["cursor"])) == [("task", "assigned", "later")]


@pytest.mark.parametrize(
    "arguments",
    [
        *({"cursor": cursor} for cursor in ("x", "1", "1-", "-1-0", "1-0-0", "+", "$", "1-(0", "9" * 15 + "-0")),
        {"cursor": "9" * 40 + "-0"},
        {"kinds": ["all_events"]},
        {"kinds": ["match"]},
        {"query": " "},
        {"query": "q", "min_score": 1.1},
        *({"timeout_seconds": seconds} for seconds in (-1, 301, "soon")),
        {"agent_id": "alice"},
    ],
)
async def test_invalid_wait_arguments_are_refused(bob: Agent, arguments: dict[str, Any]) -> None:
    with pytest.raises(Refused) as refused:
        await bob.call("wait_for_events", **{"timeout_seconds": 0} | arguments)
    assert refused.value.code == "invalid_argument"


async def test_burst_arrives_complete_and_in_order(server: Server, stack: Stack, namespace: str, bob: Agent) -> None:
    wait = await waiting(server, namespace, bob)
    sent = [f"task-{number}" for number in range(500)]
    pipe = stack.client.pipeline(transaction=False)
    for subject in sent:
        pipe.xadd(
            Keys(namespace).events, {"kind": "task", "op": "o", "id": subject, "by": "", "scope": "", "to": "bob"}
        )
    await pipe.execute()
    first = await wait
    rest, _ = await all_events(bob, first["cursor"])
    assert [name[2] for name in [*named(first), *rest]] == sent


async def test_continuous_events_are_delivered_exactly_once(stack: Stack, namespace: str, bob: Agent) -> None:
    cursor = (await now(bob))["cursor"]
    sent = [f"task-{number}" for number in range(300)]

    async def send() -> None:
        for subject in sent:
            await emit(stack, namespace, subject)

    sending = asyncio.create_task(send())
    got: list[str] = []
    while len(got) < len(sent):
        answer = await bob.call("wait_for_events", cursor=cursor, timeout_seconds=PATIENT)
        cursor = answer["cursor"]
        got += [event["id"] for event in answer["events"]]
    await sending
    assert got == sent


async def test_two_hundred_waiting_agents_each_get_their_own_event(
    server: Server, stack: Stack, namespace: str
) -> None:
    callers = [Caller(namespace, f"a{number}") for number in range(200)]
    request = WaitArguments(timeout_seconds=PATIENT)
    calls = [
        asyncio.create_task(wait_for_events(server.service, RequestContext(caller), request)) for caller in callers
    ]

    async def all_wait() -> bool:
        return listeners(server, namespace) == len(callers)

    await wait_until(all_wait)
    for number in range(len(callers)):
        await emit(stack, namespace, f"task-{number}", to=(f"a{number}",))
    answers = await asyncio.gather(*calls)
    assert [[event.id for event in answer.events] for answer in answers] == [[f"task-{n}"] for n in range(200)]
    assert listeners(server, namespace) == 0


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
async def test_wait_of_a_disconnected_client_ends(server: Server, namespace: str, mode: Any) -> None:
    url = f"{server.url}/mcp?agent=bob&namespace={namespace}"

    async def wait_and_leave() -> None:
        async with McpClient(url, mode=mode) as client:
            await client.call_tool("wait_for_events", {"timeout_seconds": 300})

    task = asyncio.create_task(wait_and_leave())

    async def waits() -> bool:
        return listeners(server, namespace) == 1

    async def is_gone() -> bool:
        return listeners(server, namespace) == 0

    await wait_until(waits)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await wait_until(is_gone)


async def test_dropped_events_are_reported(stack: Stack, service: Service, namespace: str, bob: Agent) -> None:
    cursor = (await now(bob))["cursor"]
    await emit(stack, namespace, "first")
    whole = await now(bob, cursor=cursor)
    assert not whole["partial"]
    for number in range(5):
        await emit(stack, namespace, f"task-{number}")
    assert await trim_events(service.backend, namespace, 2, 2) == 4
    answer = await now(bob, cursor=cursor)
    assert answer["partial"]
    assert "dropped" in answer["reason"]
    assert [name[2] for name in named(answer)] == ["task-3", "task-4"]
    assert not (await now(bob, cursor=answer["cursor"]))["partial"]


async def test_private_memories_of_others_do_not_count_as_unread(
    server: Server, stack: Stack, namespace: str, alice: Agent, bob: Agent
) -> None:
    caller = Caller(namespace, "bob")
    assert await unread(server.service, RequestContext(caller)) == 0
    await alice.store("Private.")
    assert await unread(server.service, RequestContext(caller)) == 0
    await alice.store("Public.", visibility="public")
    await emit(stack, namespace, "task")
    assert await unread(server.service, RequestContext(caller)) == 2
    for number in range(120):
        await emit(stack, namespace, f"task-{number}")
    assert await unread(server.service, RequestContext(caller)) == 100
    seen = await server.service.positions.get(namespace, "bob")
    assert seen
    _, cursor = await all_events(bob, seen)
    assert await unread(server.service, RequestContext(caller)) == 0

    async def is_remembered() -> bool:
        return (await stack.client.get(Keys(namespace).seen("bob"))) == cursor.encode()

    await wait_until(is_remembered)


async def test_event_of_a_memory_shared_by_id_does_not_repeat_the_id(
    alice: Agent, bob: Agent, stack: Stack, namespace: str
) -> None:
    await bob.call("register_agent")
    memory_id = await alice.store("The kettle is in the shed.")
    await alice.call("share_context_with_agent", target_agent="bob", memory_ids=[memory_id])
    since = (await now(bob))["cursor"]
    await alice.call("update_memory", memory_id=memory_id, content="The kettle is in the attic.")
    assert ("memory", "updated", memory_id) in named(await now(bob, cursor=since))
    events = [fields for _, fields in await stack.client.xrange(Keys(namespace).events) if fields[b"kind"] == b"memory"]
    assert events
    assert not [fields for fields in events if memory_id.encode() in fields[b"scope"]]
