"""What a claim, a sweep and an assignment cost does not grow with the team and with the tasks that an agent avoids."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Generator
from typing import Any

import pytest
from support.embedder_fixtures import RedisServer
from support.task_functions import AT_ONCE, TaskNamespace

from memory_core.redis_client import Client
from memory_core.store.connection import connect
from memory_core.store.functions import load_library

AGENTS, AVOIDED = 300, 150
PER_LEASE = 40
"""More commands than one lease takes."""


@pytest.fixture(scope="module")
def own_redis(tmp_path_factory: pytest.TempPathFactory) -> Generator[RedisServer]:
    """A Redis for this module alone: no other client runs commands."""
    redis = RedisServer(tmp_path_factory.mktemp("claims"))
    redis.start()
    yield redis
    redis.kill()


@pytest.fixture
async def client(own_redis: RedisServer) -> AsyncGenerator[Client]:
    """A client of that Redis."""
    async with connect(own_redis.url) as connected:
        await load_library(connected)
        yield connected


async def cost(client: Client, call: Awaitable[Any]) -> tuple[Any, int]:
    """Return what a call answers and how many commands Redis ran for it."""
    await client.execute_command("CONFIG", "RESETSTAT")
    answer = await call
    stats = await client.info("commandstats")
    return answer, sum(figures["calls"] for figures in stats.values())


async def team_with_avoided_tasks(client: Client, namespace: str) -> TaskNamespace:
    """`me` failed at many tasks; `other` is able to do them too, the rest of a large team is not."""
    tasks = TaskNamespace(client, namespace)
    await tasks.register(*(f"unable{number}" for number in range(AGENTS)))
    await tasks.register("other", "me", able=["lua"], capacity=1000)
    for _ in range(AVOIDED):
        await tasks.submit(needs=["lua"])
    for lease in await tasks.claim("me", AVOIDED):
        assert (await tasks.fail("me", lease["lease_token"]))["status"] == "reassigned"
    await tasks.sweep()
    return tasks


async def test_claim_of_avoided_tasks_reads_no_agents_and_no_tasks(client: Client) -> None:
    tasks = await team_with_avoided_tasks(client, "avoided")
    leased, commands = await cost(client, tasks.claim("me", 50))
    assert leased == []
    assert commands < 50


async def test_fresh_task_behind_many_avoided_ones_is_offered(client: Client) -> None:
    tasks = await team_with_avoided_tasks(client, "fresh")
    fresh = await tasks.submit(needs=["lua"])
    assert [lease["id"] for lease in await tasks.claim("me", 50)] == [fresh]
    assert len(await tasks.claim("other", 200)) == AVOIDED


async def test_avoided_tasks_are_kept_for_a_bounded_time(client: Client) -> None:
    tasks = await team_with_avoided_tasks(client, "bounded")
    assert await client.zcard(tasks.keys.avoided("me")) == AVOIDED
    assert 0 < await client.ttl(tasks.keys.avoided("me")) <= 62


async def test_unregistered_agent_avoids_nothing(client: Client) -> None:
    tasks = await team_with_avoided_tasks(client, "left")
    await tasks.leave("me")
    assert not await client.exists(tasks.keys.avoided("me"))


async def test_sweep_reads_each_agent_once_for_all_expired_leases(client: Client) -> None:
    tasks = TaskNamespace(client, "expired")
    await tasks.register(*(f"unable{number}" for number in range(AGENTS)))
    await tasks.register("me", able=["lua"], capacity=1000, window=32)
    for window in range(32):
        await tasks.submit(needs=["lua"], window=window, lease=AT_ONCE)
    await tasks.claim("me", 32)
    answer, sweeps = {"more": True}, 0
    while answer["more"]:
        answer, commands = await cost(client, tasks.call("rm1_task_sweep"))
        assert commands < AGENTS + 32 * PER_LEASE
        sweeps += 1
    assert await client.zcard(tasks.keys.leases) == 0
    assert 1 < sweeps <= 32


async def test_lost_agent_with_tasks_that_none_can_do_is_released_in_slices(client: Client) -> None:
    tasks = TaskNamespace(client, "lost")
    await tasks.register(*(f"unable{number}" for number in range(AGENTS)))
    await tasks.register("me", able=["lua"], capacity=1000)
    for _ in range(32):
        await tasks.submit(needs=["lua"])
    await tasks.claim("me", 32)
    release = tasks.call("rm1_agent_release", [tasks.keys.agent("me")], agent="me", reason="gone")
    answer, commands = await cost(client, release)
    assert (answer["taken"], answer["more"]) == (4, True)
    assert commands < AGENTS + 4 * PER_LEASE


async def test_claim_behind_avoided_tasks_passes_each_of_them_once(client: Client) -> None:
    commands = list[int]()
    for namespace, avoided in (("behind", True), ("before", False)):
        tasks = await team_with_avoided_tasks(client, namespace)
        if not avoided:
            await client.delete(tasks.keys.avoided("me"))
            await tasks.claim("me", AVOIDED)
        for _ in range(50):
            await tasks.submit(needs=["lua"])
        leased, number = await cost(client, tasks.claim("me", 50))
        assert len(leased) == 50
        commands.append(number)
    assert commands[0] <= commands[1] + 20


async def test_task_that_moves_up_behind_the_rank_of_a_claim_is_leased(client: Client) -> None:
    tasks = await team_with_avoided_tasks(client, "moves")
    own = [await tasks.submit(by="me", needs=["lua"]) for _ in range(3)]
    later = [await tasks.submit(by="another", needs=["lua"]) for _ in range(3)]
    assert {lease["id"] for lease in await tasks.claim("me", 50)} == {*own, *later}


async def test_pause_runs_two_commands_per_lease(client: Client) -> None:
    tasks = TaskNamespace(client, "pause")
    await tasks.register("me", capacity=1000)
    for _ in range(200):
        await tasks.submit()
    await tasks.claim("me", 100)
    await tasks.claim("me", 100)
    ends = dict(await client.zrange(tasks.keys.leases, 0, -1, withscores=True))
    await client.hincrbyfloat(tasks.keys.counters, "team_at", -100)
    _, commands = await cost(client, tasks.call("rm1_task_sweep"))
    assert commands < 2 * 200 + 40
    for task_id, score in await client.zrange(tasks.keys.leases, 0, -1, withscores=True):
        assert score == pytest.approx(ends[task_id] + 100, abs=20)
        assert float(await client.hget(tasks.keys.task(task_id.decode()), "lease_until")) == pytest.approx(score)


async def test_claim_from_a_full_inbox_costs_a_bounded_number_of_commands_a_task(client: Client) -> None:
    tasks = TaskNamespace(client, "inbox")
    await tasks.register("me", capacity=1000)
    for number in range(500):
        await tasks.submit(by=f"lead{number % 8}", to=["me"])
    for _ in range(3):
        leased, commands = await cost(client, tasks.claim("me", 100))
        assert len(leased) == 100
        assert commands < 500 + 100 * PER_LEASE


async def test_claim_that_finds_nothing_looks_at_each_queue_once(client: Client) -> None:
    tasks = TaskNamespace(client, "kinds")
    await tasks.register("other", "me", capacity=1000, window=1000)
    for window in range(300):
        await tasks.submit(by=f"lead{window % 8}", window=window)
    for _ in range(3):
        for lease in await tasks.claim("me", 100):
            await tasks.fail("me", lease["lease_token"])
    await tasks.sweep()
    leased, commands = await cost(client, tasks.claim("me", 50))
    assert leased == []
    assert commands < 2 * 300 + 50


async def test_claim_leases_the_best_tasks_of_many_queues(client: Client) -> None:
    tasks = TaskNamespace(client, "best")
    await tasks.register("me", capacity=1000, window=1000)
    submitted = [await tasks.submit(window=window % 60) for window in range(120)]
    for start in (0, 50):
        assert [lease["id"] for lease in await tasks.claim("me", 50)] == submitted[start : start + 50]
