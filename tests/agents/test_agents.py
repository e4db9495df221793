"""Registration, heartbeats and routing; a silent agent's work moves to others with a handoff."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest
import pytest_asyncio
from support.sharing_helpers import refusal
from support.stack import Agent, Server, Stack, in_own_task
from support.task_helpers import state
from support.team_helpers import (
    HEARTBEAT,
    claim,
    claim_when_there,
    fall_silent,
    register,
    shown,
    submit,
    sweep,
)

from memory_core.records.agent import AgentType
from memory_core.records.keys import Keys


@pytest_asyncio.fixture(loop_scope="session")
async def boss(server: Server, namespace: str) -> AsyncGenerator[Agent]:
    """An agent that submits tasks and takes none."""
    async with in_own_task(server.agent("boss", namespace)) as agent:
        yield agent


async def test_register_returns_the_profile_and_heartbeat_instructions(alice: Agent) -> None:
    answer = await alice.call(
        "register_agent",
        agent_type="claude",
        capabilities=["python", "Review"],
        context_window=200_000,
        max_tasks=3,
        heartbeat_seconds=30,
        description="reads and writes Python",
    )
    assert (answer["again"], answer["pending_tasks"], answer["heartbeat_seconds"]) == (False, 0, 30)
    assert "30 s" in answer["keep_alive"]
    expected = {
        "agent_id": "alice",
        "agent_type": "claude",
        "capabilities": ["python", "review"],
        "context_window": 200_000,
        "max_tasks": 3,
        "description": "reads and writes Python",
        "status": "active",
        "alive": True,
        "open_tasks": 0,
    }
    assert answer["agent"] == answer["agent"] | expected
    seen = {"last_seen": answer["agent"]["last_seen"]}
    assert await shown(alice, "alice") | seen == answer["agent"]


async def test_each_agent_type_can_register_and_be_listed(alice: Agent, bob: Agent) -> None:
    for agent_type in AgentType:
        await register(alice, agent_type=agent_type)
        await register(bob, agent_type="custom" if agent_type != "custom" else "claude")
        (found,) = (await bob.call("list_agents", agent_types=[agent_type]))["agents"]
        assert (found["agent_id"], found["agent_type"]) == ("alice", agent_type)


async def test_registering_again_changes_what_it_gives_and_keeps_memories(alice: Agent) -> None:
    await register(alice, agent_type="claude", capabilities=["python"], description="old")
    memory = await alice.store("Kept across registrations.")
    answer = await alice.call("register_agent", agent_type="gemini", capabilities=["rust"])
    assert answer["again"]
    found = await shown(alice, "alice")
    assert (found["agent_type"], found["capabilities"], found["description"]) == ("gemini", ["rust"], "old")
    await alice.call("update_memory", memory_id=memory, content="Kept and changed.")


async def test_lists_are_accepted_as_text(alice: Agent, bob: Agent) -> None:
    await register(bob, capabilities=["python"])
    for wanted in (["python", "sql"], '["python", "sql"]', "python, SQL"):
        await register(alice, capabilities=wanted)
        (found,) = (await bob.call("list_agents", capabilities=wanted, agent_types='["custom"]'))["agents"]
        assert (found["agent_id"], found["capabilities"]) == ("alice", ["python", "sql"])
    assert len((await bob.call("list_agents", capabilities="python"))["agents"]) == 2


BAD_PROFILES: dict[str, dict[str, Any]] = {
    "capability with a control character": {"capabilities": ["a\nb"]},
    "empty capability": {"capabilities": ["  "]},
    "capability that is too long": {"capabilities": ["x" * 257]},
    "too many capabilities": {"capabilities": [f"c{number}" for number in range(65)]},
    "capabilities that are not texts": {"capabilities": [1, {}]},
    "heartbeats too often": {"heartbeat_seconds": 0.1},
    "heartbeats too rare": {"heartbeat_seconds": 3601},
    "heartbeat that is not a number": {"heartbeat_seconds": "NaN"},
    "zero tasks at a time": {"max_tasks": 0},
    "too many tasks at a time": {"max_tasks": 1001},
    "half a task": {"max_tasks": 1.5},
    "negative window": {"context_window": -1},
    "unknown type": {"agent_type": "robot"},
    "description too long": {"description": "x" * 16_385},
    "description with NUL": {"description": "a\0b"},
    "unknown argument": {"admin": True},
}


async def test_invalid_profile_is_refused_and_not_registered(alice: Agent) -> None:
    for why, profile in BAD_PROFILES.items():
        code, _ = await refusal(alice, "register_agent", **profile)
        assert code == "invalid_argument", why
    assert (await alice.call("list_agents", alive_only=False))["agents"] == []


BAD_HEARTBEATS: dict[str, dict[str, Any]] = {
    "reports itself dead": {"status": "dead"},
    "unknown status": {"status": "bored"},
    "load above 1": {"load": 1.5},
    "load below 0": {"load": -0.1},
    "too many tokens": {"lease_tokens": [f"t{number}" for number in range(1001)]},
    "metrics that are not an object": {"metrics": [1]},
    "metrics too large": {"metrics": {"log": "x" * 20_000}},
}


async def test_invalid_heartbeat_is_refused(alice: Agent) -> None:
    await register(alice)
    for why, arguments in BAD_HEARTBEATS.items():
        code, _ = await refusal(alice, "update_agent_heartbeat", **arguments)
        assert code == "invalid_argument", why
    assert (await shown(alice, "alice"))["status"] == "active"


async def test_agent_cannot_act_for_another(alice: Agent, bob: Agent) -> None:
    await register(bob)
    for tool in ("register_agent", "unregister_agent", "update_agent_heartbeat", "get_pending_tasks"):
        for name in ("bob", "never-heard-of", "Not*A*Name"):
            code, text = await refusal(alice, tool, agent_id=name)
            assert code == "forbidden"
            assert text.replace(name, "NAME") == (await refusal(alice, tool, agent_id="x"))[1].replace("'x'", "'NAME'")
    assert (await shown(bob, "bob"))["alive"]
    assert (await register(alice, agent_id="alice"))["agent_id"] == "alice"


async def test_unregistered_agent_gets_no_work_and_no_heartbeat(alice: Agent, bob: Agent) -> None:
    for tool in ("update_agent_heartbeat", "get_pending_tasks", "unregister_agent"):
        code, text = await refusal(alice, tool)
        assert code == "not_found"
        assert "register_agent" in text
    code, text = await refusal(bob, "distribute_task", description="For nobody.", assign_to="alice")
    assert code == "not_found"
    assert "list_agents" in text


async def test_heartbeat_renews_its_lease_and_reports_lost_ones(boss: Agent, alice: Agent) -> None:
    await register(alice, max_tasks=2)
    ids = [(await submit(boss, f"Job {number}"))["task_id"] for number in range(2)]
    first, second = await claim(alice), await claim(alice)
    await alice.call("complete_task", task_id=second["task_id"], lease_token=second["lease_token"])
    forged = first["lease_token"][:-1] + ("0" if first["lease_token"][-1] != "0" else "1")
    tokens = [first["lease_token"], second["lease_token"], forged, "nonsense"]
    answer = await alice.call("update_agent_heartbeat", lease_tokens=json.dumps(tokens), status="busy", load=0.7)
    assert {first["task_id"], second["task_id"]} == set(ids)
    assert answer["leases_lost"] == [second["task_id"], first["task_id"], "nonsense"]
    ((renewed, until),) = answer["leases_renewed"].items()
    assert renewed == first["task_id"]
    assert until > first["lease_until"]
    assert (await alice.call("get_task", task_id=renewed))["task"]["lease_until"] == until
    found = await shown(boss, "alice")
    assert (found["status"], found["load"], found["open_tasks"]) == ("busy", 0.7, 1)


async def test_heartbeat_cannot_renew_another_agents_lease(boss: Agent, alice: Agent, bob: Agent) -> None:
    await register(alice)
    await register(bob)
    await submit(boss, assign_to="alice")
    task = await claim(alice)
    answer = await bob.call("update_agent_heartbeat", lease_tokens=[task["lease_token"]])
    assert (answer["leases_renewed"], answer["leases_lost"]) == ({}, [task["task_id"]])
    assert (await alice.call("get_task", task_id=task["task_id"]))["task"]["lease_until"] == task["lease_until"]


async def test_heartbeat_reports_waiting_work(boss: Agent, alice: Agent) -> None:
    await register(alice, capabilities=["sweep"])
    for _ in range(3):
        await submit(boss, required_capabilities=["sweep"])
    await submit(boss, required_capabilities=["fly"])
    assert (await alice.call("update_agent_heartbeat"))["pending_tasks"] == 3


async def test_unclaimed_tasks_of_a_silent_agent_move_to_others_within_one_sweep(
    server: Server, stack: Stack, namespace: str, boss: Agent, alice: Agent, bob: Agent
) -> None:
    assert list((await stack.client.config_get("notify-keyspace-events")).values()) == [""]
    await register(alice, max_tasks=2)
    first, second = [(await submit(boss, f"Job {number}"))["task_id"] for number in range(2)]
    task = await claim(alice)
    await register(bob, max_tasks=2)
    await register(alice, max_tasks=2, heartbeat_seconds=HEARTBEAT)
    await fall_silent(boss, "alice")
    await sweep(server, namespace)
    assert await stack.client.hget(Keys(namespace).agent("alice"), "status") == b"dead"
    assert (await shown(boss, "alice"))["open_tasks"] == 1
    other = ({first, second} - {task["task_id"]}).pop()
    found = await claim(bob)
    assert (found["task_id"], found["attempt"], found["earlier_failures"]) == (other, 1, [])
    assert await state(boss, task["task_id"]) == "leased"
    done = await alice.call("complete_task", task_id=task["task_id"], lease_token=task["lease_token"])
    assert done["state"] == "completed"


@pytest.mark.parametrize("sign", ["update_agent_heartbeat", "get_pending_tasks", "register_agent"])
async def test_dead_agent_that_calls_again_gets_work(
    server: Server, stack: Stack, namespace: str, boss: Agent, alice: Agent, sign: str
) -> None:
    await register(alice, heartbeat_seconds=HEARTBEAT)
    await fall_silent(boss, "alice")
    await sweep(server, namespace)
    assert await stack.client.hget(Keys(namespace).agent("alice"), "status") == b"dead"
    answer = await submit(boss)
    assert (answer["state"], answer.get("assigned_to")) == ("pending", None)
    await alice.call(sign)
    assert await stack.client.hget(Keys(namespace).agent("alice"), "status") == b"active"
    await alice.call("register_agent", heartbeat_seconds=60)
    assert await stack.client.xlen(Keys(namespace).inbox("alice")) == 1


async def test_listing_omits_dead_agents_unless_asked(boss: Agent, alice: Agent, bob: Agent) -> None:
    await register(alice, heartbeat_seconds=HEARTBEAT)
    await register(bob)
    await fall_silent(boss, "alice")
    assert [found["agent_id"] for found in (await boss.call("list_agents"))["agents"]] == ["bob"]
    found = await shown(boss, "alice")
    assert (found["status"], found["alive"]) == ("dead", False)


async def test_draining_agent_finishes_its_tasks_and_gets_no_more(boss: Agent, alice: Agent, bob: Agent) -> None:
    await register(alice, max_tasks=3)
    await submit(boss)
    task = await claim(alice)
    await alice.call("update_agent_heartbeat", status="draining", lease_tokens=[task["lease_token"]])
    waiting = await submit(boss)
    assert (waiting["state"], waiting.get("assigned_to")) == ("pending", None)
    assert (await alice.call("get_pending_tasks"))["tasks"] == []
    await alice.call("complete_task", task_id=task["task_id"], lease_token=task["lease_token"])
    await register(bob)
    assert (await claim_when_there(bob))["task_id"] == waiting["task_id"]
    await alice.call("update_agent_heartbeat", status="active")
    later = await submit(boss)
    assert (await claim_when_there(alice))["task_id"] == later["task_id"]


@pytest_asyncio.fixture(loop_scope="session")
async def abe(server: Server, namespace: str) -> AsyncGenerator[Agent]:
    """The agent chosen when all else is equal, by name."""
    async with in_own_task(server.agent("abe", namespace)) as agent:
        yield agent


@pytest_asyncio.fixture(loop_scope="session")
async def zoe(server: Server, namespace: str) -> AsyncGenerator[Agent]:
    """The agent chosen only when it ranks higher."""
    async with in_own_task(server.agent("zoe", namespace)) as agent:
        yield agent


async def _chosen(server: Server, boss: Agent, description: str = "Sweep the floor.", **how: Any) -> str:
    """Return the agent that gets a task; the task is then cancelled, so that it adds no load."""
    service = await server.runtime.service()
    service.rosters.clear()
    answer = await submit(boss, description, **how)
    await boss.call("cancel_task", task_id=answer["task_id"])
    assert answer["assigned_to"] in answer["why"]["reason"]
    assert answer["why"]["considered"][0]["agent"] == answer["assigned_to"]
    return answer["assigned_to"]


async def test_agent_with_more_capacity_is_chosen(server: Server, boss: Agent, abe: Agent, zoe: Agent) -> None:
    await register(abe, max_tasks=2)
    await register(zoe, max_tasks=2)
    assert await _chosen(server, boss) == "abe"
    await submit(boss, assign_to="abe")
    assert await _chosen(server, boss) == "zoe"


async def test_agent_with_fewer_failures_of_the_type_is_chosen(
    server: Server, boss: Agent, abe: Agent, zoe: Agent
) -> None:
    await register(abe)
    await register(zoe)
    await submit(boss, task_type="lint", assign_to="abe")
    task = await claim(abe)
    token = task["lease_token"]
    await abe.call("fail_task", task_id=task["task_id"], lease_token=token, error="no linter", retry=False)
    assert await _chosen(server, boss, task_type="lint") == "zoe"
    assert await _chosen(server, boss, task_type="build") == "abe"


async def test_agent_that_was_faster_at_the_type_is_chosen(server: Server, boss: Agent, abe: Agent, zoe: Agent) -> None:
    for agent, name, duration in ((abe, "abe", 9000), (zoe, "zoe", 1000)):
        await register(agent)
        await submit(boss, task_type="lint", assign_to=name)
        task = await claim(agent)
        metrics = {"duration_ms": duration}
        await agent.call("complete_task", task_id=task["task_id"], lease_token=task["lease_token"], metrics=metrics)
    assert await _chosen(server, boss, task_type="lint") == "zoe"
    assert await _chosen(server, boss, task_type="build") == "abe"


async def test_agent_with_the_closer_description_is_chosen(server: Server, boss: Agent, abe: Agent, zoe: Agent) -> None:
    await register(abe, description="bakes bread and cakes")
    await register(zoe, description="repairs database servers")
    assert await _chosen(server, boss, "The database server crashes at night.") == "zoe"
    assert await _chosen(server, boss, "A birthday cake with candles.") == "abe"


async def test_agent_that_completed_a_similar_task_is_chosen(
    server: Server, boss: Agent, abe: Agent, zoe: Agent
) -> None:
    await register(abe)
    await register(zoe, capabilities=["repair"])
    crash = "The database server crashes at night."
    await submit(boss, crash, task_type="repair", required_capabilities=["repair"])
    task = await claim(zoe)
    await zoe.call("complete_task", task_id=task["task_id"], lease_token=task["lease_token"])
    assert await _chosen(server, boss, "Our database server is down.", task_type="other") == "zoe"


async def test_free_agent_is_found_behind_many_better_busy_ones(
    server: Server, namespace: str, boss: Agent, zoe: Agent
) -> None:
    await register(zoe, description="bakes bread and cakes")
    await submit(boss, "Bake.", task_type="repair", assign_to="zoe")
    task = await claim(zoe)
    token = task["lease_token"]
    await zoe.call("fail_task", task_id=task["task_id"], lease_token=token, error="burnt", retry=False)
    for number in range(9):
        async with server.agent(f"busy{number}", namespace) as busy:
            await register(busy, description="repairs database servers")
            await submit(boss, "Stand by.", assign_to=f"busy{number}")
    (await server.runtime.service()).rosters.clear()
    urgent = await submit(boss, "The database server crashes at night.", task_type="repair", priority="critical")
    assert urgent["why"]["considered"][0]["agent"].startswith("busy")
    assert urgent["assigned_to"] == "zoe"
