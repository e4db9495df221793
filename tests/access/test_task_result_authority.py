"""Results of tasks reach the parties of the tasks alone: no scope and no role is a way around."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support import dashboard_fixtures
from support.dashboard_helpers import Browser, operate
from support.embedder_fixtures import wait_until
from support.in_process import ADMIN, WRITER, Direct, InProcess
from support.stack import Refused, Server, text_of

from memory_core.records.access import Scope

guarded, stranger = dashboard_fixtures.guarded, dashboard_fixtures.stranger
WEIGHT = "The anchor weighs three tonnes."


class Team:
    """A lead and a worker who did a task for it, whose result is stored; both have all scopes but admin."""

    def __init__(self, direct: InProcess, namespace: str) -> None:
        self.direct, self.namespace = direct, namespace

    async def agent(self, name: str, scopes: tuple[Scope, ...] = WRITER) -> Direct:
        return await self.direct.agent(name, self.namespace, scopes)

    async def build(self) -> Team:
        self.lead, worker = await self.agent("lead"), await self.agent("ada")
        await worker.call("register_agent")
        self.task_id: str = (await self.lead.call("distribute_task", description="Weigh it."))["task_id"]
        task = await take(worker, self.task_id)
        end = {"task_id": self.task_id, "lease_token": task["lease_token"]}
        self.memory_id: str = (await worker.call("complete_task", **end, result=WEIGHT, store_result=True))["memory_id"]
        await worker.call("update_agent_heartbeat", status="draining")
        return self


async def take(agent: Direct, task_id: str, **arguments: Any) -> dict[str, Any]:
    """Claim until a task arrives."""
    found: list[dict[str, Any]] = []

    async def came() -> bool:
        found.extend((await agent.call("get_pending_tasks", with_memories=0, **arguments))["tasks"])
        return bool(found)

    await wait_until(came)
    assert [task["task_id"] for task in found] == [task_id]
    return found[0]


async def depending(submitter: Direct, team: Team, assign_to: str) -> str:
    """Submit a task that depends on the one that the team did."""
    given = {"description": "Buy a chain.", "depends_on": [team.task_id], "assign_to": assign_to}
    return (await submitter.call("distribute_task", **given))["task_id"]


async def read_code(agent: Direct, memory_id: str) -> str:
    """Return the code of the error with which a read is refused; `read` if it is not."""
    try:
        await agent.call("retrieve_memory", memory_id=memory_id)
    except Refused as error:
        return error.code
    return "read"


@pytest.fixture
async def team(guarded: Server, namespace: str) -> Team:
    return await Team(InProcess.over(guarded), namespace).build()


async def test_admin_who_takes_a_dependent_task_gains_no_result(team: Team) -> None:
    eve, admin = await team.agent("eve"), await team.agent("boss", ADMIN)
    for agent in (eve, admin):
        await agent.call("register_agent")
    dependent = await depending(eve, team, "boss")
    (before,) = (await take(admin, dependent))["predecessors"]
    assert (before.get("result"), before.get("memory_id")) == (None, None)
    assert await read_code(admin, team.memory_id) == "not_found"


async def test_admin_who_submits_a_dependent_task_hands_no_result_on(team: Team) -> None:
    eve, admin = await team.agent("eve"), await team.agent("boss", ADMIN)
    await eve.call("register_agent")
    dependent = await depending(admin, team, "eve")
    (before,) = (await take(eve, dependent))["predecessors"]
    assert (before.get("result"), before.get("memory_id")) == (None, None)
    assert (await eve.call("get_task", task_id=team.task_id))["task"].get("result") is None
    assert await read_code(eve, team.memory_id) == "not_found"


async def test_admin_who_acts_for_a_worker_gains_no_result(team: Team) -> None:
    eve, admin = await team.agent("eve"), await team.agent("boss", ADMIN)
    await eve.call("register_agent")
    dependent = await depending(team.lead, team, "eve")
    (before,) = (await take(admin, dependent, agent_id="eve"))["predecessors"]
    assert before["result"] == WEIGHT
    assert await read_code(admin, team.memory_id) == "not_found"


async def test_admin_finds_no_result_by_other_tools(team: Team) -> None:
    admin = await team.agent("boss", ADMIN)
    await admin.call("register_agent")
    assert (await admin.call("list_tasks"))["tasks"] == []
    for tool, arguments in (
        ("wait_for_events", {"timeout_seconds": 0}),
        ("semantic_search", {"query": WEIGHT, "min_score": 0}),
        ("get_agent_memories", {"agent_id": "ada"}),
        ("get_shared_context", {}),
    ):
        assert WEIGHT not in json.dumps(await admin.call(tool, **arguments)), tool


TASKS_ONLY: tuple[tuple[str, dict[str, Any]], ...] = (
    ("get_task", {}),
    ("list_tasks", {}),
    ("wait_for_events", {"timeout_seconds": 0}),
    ("retrieve_memory", {}),
    ("semantic_search", {"query": WEIGHT}),
    ("get_shared_context", {}),
)


async def test_token_with_scope_tasks_alone_reads_no_results(team: Team) -> None:
    eve, blind = await team.agent("eve"), await team.agent("eve", ("tasks",))
    await blind.call("register_agent")
    dependent = await depending(team.lead, team, "eve")
    result = await blind.raw("get_pending_tasks")
    answer = result.structured_content or {}
    assert [task["task_id"] for task in answer["tasks"]] == [dependent]
    (before,) = answer["tasks"][0]["predecessors"]
    assert (before.get("result"), before.get("memory_id")) == (None, None)
    assert "results of earlier tasks are left out: a token with scope read shows them" in text_of(result)
    assert WEIGHT not in text_of(result)
    assert await read_code(eve, team.memory_id) == "not_found"
    ids = {"get_task": {"task_id": team.task_id}, "retrieve_memory": {"memory_id": team.memory_id}}
    for tool, arguments in TASKS_ONLY:
        with pytest.raises(Refused) as refused:
            await blind.call(tool, **arguments, **ids.get(tool, {}))
        assert refused.value.code == "forbidden", tool
    again = await blind.raw("register_agent")
    assert WEIGHT not in text_of(again) + json.dumps(again.structured_content)


async def test_scopes_tasks_and_read_show_results_of_predecessors(team: Team) -> None:
    eve = await team.agent("eve", ("read", "tasks"))
    await eve.call("register_agent")
    dependent = await depending(team.lead, team, "eve")
    (before,) = (await take(eve, dependent))["predecessors"]
    assert (before["result"], before["memory_id"]) == (WEIGHT, team.memory_id)
    assert await read_code(eve, team.memory_id) == "read"


async def test_long_payload_says_which_scope_shows_all_of_it(team: Team) -> None:
    blind = await team.agent("eve", ("tasks",))
    await blind.call("register_agent")
    given = {"description": "Buy a chain.", "assign_to": "eve", "payload": {"log": "y;" * 15_000}}
    await team.lead.call("distribute_task", **given)
    text = text_of(await blind.raw("get_pending_tasks", with_memories=0))
    assert "long parts of tasks are left out: a token with scope read shows them" in text


async def test_operator_sees_no_results(team: Team, stranger: Browser) -> None:
    await operate(stranger, team.namespace)
    shown = [await stranger.call("get_task", task_id=team.task_id)]
    shown.append(await stranger.call("get_task", task_id=team.task_id, max_tokens=0))
    shown.append(await stranger.call("dashboard_tasks"))
    assert WEIGHT not in json.dumps(shown)
    assert shown[0]["task"]["state"] == "completed"
    answer = await stranger.post("call/get_task", {"task_id": team.task_id, "cursor": "result.0.00000000"})
    assert answer.json()["error"]["code"] == "invalid_argument"
