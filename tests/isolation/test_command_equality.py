"""Forbidden and unknown ids cost Redis the same commands in the same order."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import pytest
import pytest_asyncio
from support.in_process import Direct, InProcess
from support.redis_users import SERVER
from support.stack import Stack, serving

from memory_core.records.ids import new_id
from memory_core.records.scope import NOBODY

NAMESPACE = "same-commands"
_ULID = re.compile(r"[0-9a-hjkmnp-tv-z]{26}")
_NUMBER = re.compile(r"\d+(\.\d+)?")
_marks = count()
_BACKGROUND_MARKS = (f"{{{NAMESPACE}}}:kinds", f"{{{NAMESPACE}}}:seen:", "XREAD", "xread", "rm1_agent_seen")
"""Text in background commands that do not depend on the call: dispatch, cursor writes, event reads, signs of life."""
_ATTEMPTS = 5
"""A sweep may run between two calls, but not five times in a row."""

CALLS: list[tuple[str, str, dict[str, Any]]] = [
    ("memory", "retrieve_memory", {"memory_id": "ID"}),
    ("memory", "update_memory", {"memory_id": "ID", "content": "mine now"}),
    ("memory", "clear_memory", {"memory_ids": ["ID"], "confirm": True}),
    ("memory", "find_similar_memories", {"memory_id": "ID"}),
    ("memory", "share_context_with_agent", {"target_agent": "carol", "memory_ids": ["ID"]}),
    ("memory", "batch_operations", {"operations": [{"op": "retrieve_memory", "memory_id": "ID"}]}),
    ("task", "get_task", {"task_id": "ID"}),
    ("task", "cancel_task", {"task_id": "ID"}),
    ("task", "requeue_task", {"task_id": "ID"}),
    ("task", "complete_task", {"task_id": "ID", "lease_token": "ID.1763000000000000.0123456789abcdef"}),
    ("task", "fail_task", {"task_id": "ID", "lease_token": "ID.1763000000000000.0123456789abcdef", "error": "x"}),
    ("task", "distribute_task", {"description": "x", "depends_on": ["ID"]}),
    ("task", "update_agent_heartbeat", {"lease_tokens": ["ID.1763000000000000.0123456789abcdef"]}),
    ("grant", "revoke_shared_context", {"grant_id": "ID"}),
    ("offer", "answer_offer", {"offer_id": "ID"}),
    ("offer", "answer_offer", {"offer_id": "ID", "accept": False}),
    ("agent", "get_agent_memories", {"agent_id": "ID"}),
    ("agent", "semantic_search", {"query": "lighthouse", "mode": "keyword", "agent_ids": ["ID"]}),
    ("agent", "memory_stats", {"agent_id": "ID"}),
    ("agent", "get_shared_context", {"agent_id": "ID"}),
]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def bob(stack: Stack) -> AsyncGenerator[tuple[Direct, dict[str, str]]]:
    """An agent without access, and the ids of objects that belong to alice and carol."""
    async with serving(stack.redis.url_of(SERVER), auth={"mode": "tokens"}, embed_wait_seconds=15.0) as server:
        place = InProcess.over(server)
        alice, bob, carol = [await place.agent(name, NAMESPACE) for name in ("alice", "bob", "carol")]
        for agent in (alice, bob, carol):
            await agent.call("register_agent", heartbeat_seconds=3600)
        memory = await alice.call("store_memory", content="The chest lies under the lighthouse.")
        await bob.call("store_memory", content="Something of his own.")
        task = await alice.call("distribute_task", description="Dig.", assign_to="carol")
        await carol.call("get_pending_tasks")
        grant = await alice.call("share_context_with_agent", target_agent="carol", context="island", bidirectional=True)
        ids = {"memory": memory["memory_id"], "task": task["task_id"], "agent": "alice"}
        ids |= {"grant": grant["grant_id"], "offer": grant["offer_id"]}
        yield bob, ids


def _filled(value: Any, some_id: str) -> Any:
    if isinstance(value, dict):
        return {name: _filled(item, some_id) for name, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, some_id) for item in value]
    return value.replace("ID", some_id) if isinstance(value, str) else value


@asynccontextmanager
async def _watched(stack: Stack) -> AsyncGenerator[list[str]]:
    """Collect the commands that Redis runs in the namespace, those of Functions included."""
    seen: list[str] = []
    end = f"mark-{next(_marks)}"
    async with stack.client.monitor() as monitor:
        yield seen
        await stack.client.echo(end)
        async with asyncio.timeout(10):
            async for command in monitor.listen():
                text = str(command["command"])
                if end in text:
                    return
                if f"{{{NAMESPACE}}}" in text and not any(part in text for part in _BACKGROUND_MARKS):
                    seen.append(text)


def _shape(command: str, ids: Sequence[str]) -> str:
    """Write a command without ids, values issued for this call, times and packed arguments."""
    name = command.partition(" ")[0].upper()
    for some_id in ids:
        command = command.replace(some_id, "ID")
    text = _NUMBER.sub("N", _ULID.sub("ID", command)).replace(f" {NOBODY} ", " ID ")
    return " ".join(text.split()[:4]) if name == "FCALL" else text


async def _commands(
    stack: Stack, agent: Direct, tool: str, arguments: dict[str, Any], ids: Sequence[str], which: int
) -> list[str]:
    async with _watched(stack) as seen:
        await agent.raw(tool, **_filled(arguments, ids[which]))
    return [_shape(command, ids) for command in seen]


@pytest.mark.parametrize(("kind", "tool", "arguments"), CALLS, ids=[call[1] for call in CALLS])
async def test_unknown_and_forbidden_ids_run_the_same_commands(
    bob: tuple[Direct, dict[str, str]], stack: Stack, kind: str, tool: str, arguments: dict[str, Any]
) -> None:
    agent, ids = bob
    unknown = "nancy" if kind == "agent" else new_id()
    for attempt in range(_ATTEMPTS):
        forbidden, missing = [await _commands(stack, agent, tool, arguments, (ids[kind], unknown), n) for n in range(2)]
        assert forbidden
        if forbidden == missing:
            return
        assert attempt < _ATTEMPTS - 1, f"{forbidden}\n{missing}"
