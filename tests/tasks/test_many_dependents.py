"""However many tasks depend on an ended one, the server that ended it goes on until all are unblocked or cancelled."""

from __future__ import annotations

import pytest
import pytest_asyncio
from support.embedder_fixtures import wait_until
from support.stack import Agent, Stack
from support.task_functions import TaskNamespace
from support.task_helpers import ada, claim, complete, fail, lead, quick

from memory_core.records import redis_time
from memory_core.records.keys import SWEEPER

pytestmark = pytest.mark.asyncio(loop_scope="session")
__all__ = ["ada", "lead", "quick"]

MANY = 150
SETTLED_WITHIN = 4.0
"""Shorter than the time for which no server sweeps."""


@pytest_asyncio.fixture(loop_scope="session")
async def tasks(stack: Stack, namespace: str, ada: Agent) -> TaskNamespace:
    return TaskNamespace(stack.client, namespace)


async def _with_dependents(tasks: TaskNamespace, **options: float) -> str:
    """Submit a task that many others depend on, and stop all sweeps."""
    first = await tasks.submit(**options)
    for _ in range(MANY):
        await tasks.submit(after=[first])
    await tasks.client.set(SWEEPER, "a process that hangs", ex=6)
    return first


async def _settle(tasks: TaskNamespace, state: str, ended: str) -> None:
    async def is_settled() -> bool:
        return not await tasks.client.exists(tasks.keys.unsettled, tasks.keys.dependents(ended))

    await wait_until(is_settled, SETTLED_WITHIN)
    found = [await tasks.state(raw.decode()) for raw in await tasks.client.zrange(tasks.keys.submitted("lead"), 0, -1)]
    assert found.count(state) >= MANY


async def test_completion_unblocks_all_dependents(tasks: TaskNamespace, ada: Agent) -> None:
    first = await _with_dependents(tasks)
    (task,) = await claim(ada)
    await complete(ada, task)
    await _settle(tasks, "pending", first)


async def test_failure_cancels_all_dependents(tasks: TaskNamespace, ada: Agent) -> None:
    first = await _with_dependents(tasks)
    (task,) = await claim(ada)
    await fail(ada, task, retry=False)
    await _settle(tasks, "cancelled", first)


async def test_cancellation_cancels_all_dependents(tasks: TaskNamespace, lead: Agent, ada: Agent) -> None:
    first = await _with_dependents(tasks)
    await lead.call("cancel_task", task_id=first, reason="no wind")
    await _settle(tasks, "cancelled", first)


async def test_agent_that_leaves_cancels_all_dependents_of_its_last_attempt(tasks: TaskNamespace, ada: Agent) -> None:
    first = await _with_dependents(tasks, retries=0)
    await claim(ada)
    await ada.call("unregister_agent")
    await _settle(tasks, "cancelled", first)


async def test_claim_that_ends_an_expired_task_cancels_all_its_dependents(tasks: TaskNamespace, ada: Agent) -> None:
    first = await _with_dependents(tasks)
    await claim(ada)
    await tasks.client.zadd(tasks.keys.deadlines, {first: redis_time.now() - 1})
    await claim(ada)
    await _settle(tasks, "cancelled", first)
