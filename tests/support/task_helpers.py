"""Submits, claims and ends tasks over MCP."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest_asyncio
from mcp.client.client import ConnectMode

from support.embedder_fixtures import wait_until
from support.sharing_helpers import refusal
from support.stack import Agent, Server, Stack, in_own_task, serving

Answer = dict[str, Any]
WAIT = 10.0
UNKNOWN = "01arz3ndektsv4rrffq69g5fav"


@asynccontextmanager
async def joined(
    server: Server, namespace: str, name: str, mode: ConnectMode = "auto", **profile: Any
) -> AsyncGenerator[Agent]:
    """A registered agent."""
    async with server.agent(name, namespace, mode) as agent:
        await agent.call("register_agent", **profile)
        yield agent


async def submit(agent: Agent, description: str = "Weigh the anchor.", **arguments: Any) -> str:
    """Submit a task and return its id."""
    return (await agent.call("distribute_task", description=description, **arguments))["task_id"]


async def claim(agent: Agent, **wanted: Any) -> list[Answer]:
    """Claim available tasks, by default without memories."""
    return (await agent.call("get_pending_tasks", **{"with_memories": 0, **wanted}))["tasks"]


async def lease(agent: Agent, **wanted: Any) -> Answer:
    """Claim until a task arrives; return it with its lease."""
    tasks: list[Answer] = []

    async def came() -> bool:
        tasks.extend(await claim(agent, **wanted))
        return bool(tasks)

    await wait_until(came)
    assert len(tasks) == 1, f"{len(tasks)} tasks arrived"
    return tasks[0]


async def complete(agent: Agent, task: Answer, **arguments: Any) -> Answer:
    """Complete a leased task."""
    return await agent.call("complete_task", task_id=task["task_id"], lease_token=task["lease_token"], **arguments)


async def fail(agent: Agent, task: Answer, error: str = "The chain is stuck.", **arguments: Any) -> Answer:
    """Fail a leased task."""
    return await agent.call(
        "fail_task", task_id=task["task_id"], lease_token=task["lease_token"], error=error, **arguments
    )


async def show(agent: Agent, task_id: str) -> Answer:
    """Return a task."""
    return (await agent.call("get_task", task_id=task_id))["task"]


async def state(agent: Agent, task_id: str) -> str:
    """Return a task's state."""
    return (await show(agent, task_id))["state"]


async def events(agent: Agent, task_id: str) -> list[str]:
    """Return the history of a task, in order."""
    return [entry["op"] for entry in (await agent.call("get_task", task_id=task_id))["history"]]


async def code(agent: Agent, tool: str, /, **arguments: Any) -> str:
    """Make a call that must be refused and return the code."""
    return (await refusal(agent, tool, **arguments))[0]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def quick(stack: Stack) -> AsyncGenerator[Server]:
    """A server that retries failed tasks quickly."""
    settings = {"backoff_seconds": 0.1, "backoff_most_seconds": 0.4}
    async with serving(stack.redis.url, embed_wait_seconds=15.0, tasks=settings) as server:
        yield server


@pytest_asyncio.fixture(loop_scope="session")
async def lead(quick: Server, namespace: str) -> AsyncGenerator[Agent]:
    """An agent that submits tasks; it is not registered, so it gets none."""
    async with in_own_task(quick.agent("lead", namespace)) as agent:
        yield agent


@pytest_asyncio.fixture(loop_scope="session")
async def ada(quick: Server, namespace: str) -> AsyncGenerator[Agent]:
    """A worker."""
    async with in_own_task(joined(quick, namespace, "ada", max_tasks=5)) as agent:
        yield agent


@pytest_asyncio.fixture(loop_scope="session")
async def ben(quick: Server, namespace: str) -> AsyncGenerator[Agent]:
    """Another worker."""
    async with in_own_task(joined(quick, namespace, "ben", max_tasks=5)) as agent:
        yield agent
