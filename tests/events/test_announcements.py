"""An unclaimed task is announced once, and again only to an agent that becomes able to do it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest_asyncio
from support.event_helpers import named, now
from support.stack import Agent, Server, Stack, in_own_task, serving
from support.task_helpers import claim, complete, joined, lease, submit

from memory_server.operations.team_sweeper import sweep_team

CLAIM_SECONDS = 0.1


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def hasty(stack: Stack) -> AsyncGenerator[Server]:
    """A server whose assignments end soon."""
    async with in_own_task(serving(stack.redis.url, tasks={"claim_seconds": CLAIM_SECONDS})) as server:
        yield server


async def rounds(server: Server, namespace: str, number: int = 3) -> None:
    """Let assignments end unclaimed, and sweep after each."""
    for _ in range(number):
        await asyncio.sleep(CLAIM_SECONDS + 0.02)
        await sweep_team(server.service, namespace)


async def news(agent: Agent, since: dict[str, Any], **arguments: Any) -> list[tuple[str, str, str]]:
    """Return the events after an answer."""
    return named(await now(agent, cursor=since["cursor"], **arguments))


async def test_unclaimed_task_is_announced_once(hasty: Server, namespace: str) -> None:
    async with joined(hasty, namespace, "ada") as ada, hasty.agent("lead", namespace) as lead:
        begin = await now(lead)
        task_id = await submit(lead, "Tar the hull before the rain.")
        await rounds(hasty, namespace)
        assert await news(ada, begin, kinds="task") == [("task", "assigned", task_id)]
        assert await news(lead, begin, kinds="task") == [("task", "assigned", task_id)]


async def test_each_able_agent_is_told_once_of_an_unclaimed_task(hasty: Server, namespace: str) -> None:
    async with (
        joined(hasty, namespace, "ada") as ada,
        joined(hasty, namespace, "ben") as ben,
        hasty.agent("lead", namespace) as lead,
    ):
        begin = await now(lead)
        task_id = await submit(lead)
        await rounds(hasty, namespace, 5)
        for agent in (ada, ben, lead):
            assert await news(agent, begin, kinds="task") == [("task", "assigned", task_id)]


async def test_agent_that_becomes_able_is_told_again(hasty: Server, namespace: str) -> None:
    async with joined(hasty, namespace, "ada") as ada, hasty.agent("lead", namespace) as lead:
        task_id = await submit(lead)
        await rounds(hasty, namespace, 2)
        begin = await now(lead)
        await ada.call("register_agent", capabilities=["tar"])
        await rounds(hasty, namespace, 2)
        assert await news(ada, begin, kinds="task") == [("task", "assigned", task_id)]
        assert await news(lead, begin, kinds="task") == []


async def test_agent_with_a_free_slot_again_is_told_again(hasty: Server, namespace: str) -> None:
    async with joined(hasty, namespace, "ada") as ada, hasty.agent("lead", namespace) as lead:
        second = await submit(lead, priority="low")
        await rounds(hasty, namespace, 1)
        await submit(lead, priority="critical")
        task = await lease(ada)
        begin = await now(lead)
        await complete(ada, task)
        await rounds(hasty, namespace, 2)
        assert await news(ada, begin, kinds="task") == [("task", "assigned", second)]


async def test_failed_task_is_announced_again(hasty: Server, namespace: str) -> None:
    async with joined(hasty, namespace, "ada") as ada, hasty.agent("lead", namespace) as lead:
        await submit(lead)
        task = await lease(ada)
        begin = await now(lead)
        failing = {"task_id": task["task_id"], "lease_token": task["lease_token"], "error": "stuck"}
        await ada.call("fail_task", **failing)
        for _ in range(100):
            await rounds(hasty, namespace, 1)
            if ("task", "assigned", task["task_id"]) in await news(ada, begin, kinds="task"):
                break
        assert [event[1] for event in await news(lead, begin, kinds="task")] == ["retrying", "pending", "assigned"]
        assert await claim(ada)
