"""The server calls a Function several times rather than once with much work."""

from __future__ import annotations

from typing import Any

import pytest
from support.stack import Agent
from support.team_helpers import register

from memory_core.records.keys import namespace_of
from memory_server.agents.registry import RENEWED_AT_ONCE, register_agent
from memory_server.contract.arguments import StoreArguments
from memory_server.contract.sharing import ShareArguments
from memory_server.contract.task_arguments import RegisterArguments
from memory_server.engine.request_context import Caller, RequestContext
from memory_server.memories.clear import DELETED_AT_ONCE
from memory_server.memories.store import store_memory
from memory_server.service import Service
from memory_server.sharing.grants import revoke_shared, share_context

Calls = list[tuple[str, dict[str, Any]]]
RECEIVERS = 40
"""More than one call ends."""


@pytest.fixture
def calls(service: Service, namespace: str, monkeypatch: pytest.MonkeyPatch) -> Calls:
    """The calls of Functions from now on in the test's namespace. Sweeps also delete what earlier tests left."""
    found: Calls = []
    write = service.backend.write

    async def recorded(function: str, keys: list[str], **request: Any) -> dict[str, Any]:
        if namespace_of(keys[0]) == namespace:
            found.append((function, request))
        return await write(function, keys, **request)

    monkeypatch.setattr(service.backend, "write", recorded)
    return found


def _sizes(calls: Calls, function: str, field: str) -> list[int]:
    return [len(request[field]) for name, request in calls if name == function]


async def test_clear_deletes_at_most_24_memories_a_call(alice: Agent, calls: Calls) -> None:
    operations = [{"op": "store_memory", "content": f"note {number}", "wait": False} for number in range(60)]
    await alice.call("batch_operations", operations=operations)
    ids = [memory["memory_id"] for memory in (await alice.call("get_agent_memories", limit=100))["memories"]]
    assert (await alice.call("clear_memory", memory_ids=ids, confirm=True))["deleted"] == 60
    assert DELETED_AT_ONCE == 24
    assert _sizes(calls, "rm1_delete", "ids") == [24, 24, 12]


async def test_heartbeat_renews_at_most_250_leases_a_call(alice: Agent, calls: Calls) -> None:
    await register(alice)
    tokens = [f"{number}.1.secret" for number in range(600)]
    answer = await alice.call("update_agent_heartbeat", lease_tokens=tokens, load=0.5)
    assert len(answer["leases_lost"]) == 600
    assert RENEWED_AT_ONCE == 250
    assert _sizes(calls, "rm1_agent_heartbeat", "tokens") == [250, 250, 100]


async def test_revoke_returns_when_all_that_was_passed_on_ended(service: Service, namespace: str, calls: Calls) -> None:
    names = ["alice", "bob", *(f"reader-{number}" for number in range(RECEIVERS))]
    requests = {name: RequestContext(Caller(namespace, name)) for name in names}
    for request in requests.values():
        await register_agent(service, request, RegisterArguments())
    stored = await store_memory(service, requests["alice"], StoreArguments(content="a plan", context="p", wait=False))
    above = ShareArguments(target_agent="bob", context="p", permission="write")
    grant = await share_context(service, requests["alice"], above)
    for name in names[2:]:
        below = ShareArguments(target_agent=name, memory_ids=[stored.memory_id])
        await share_context(service, requests["bob"], below)
    answer = await revoke_shared(service, requests["alice"], grant.grant_id)
    assert (answer.grants_ended, answer.partial) == (RECEIVERS + 1, False)
    assert [function for function, _ in calls].count("rm1_revoke") == 2
