"""Authority follows the effect: every tool, batch operation, resource and route, with every combination of scopes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import chain, combinations
from typing import Any

import pytest
from support import dashboard_fixtures
from support.auth_helpers import INITIALIZE, issued, post
from support.dashboard_helpers import Browser, log_in, operate
from support.stack import Agent, Server

from memory_core.records.authority import ALLOWED_BY, Effect
from memory_core.settings.settings import Settings
from memory_server.dashboard.tools import dashboard_tools
from memory_server.mcp.resources import EFFECTS
from memory_server.mcp.server import tool_groups
from memory_server.mcp.tools.tool_factory import StrictTool
from memory_server.runtime import Runtime

guarded = dashboard_fixtures.guarded
stranger = dashboard_fixtures.stranger

POWERS = """
READ_MEMORIES   read admin operator
READ_PRIVATE    read admin
WRITE_MEMORIES  write admin
DELETE_MEMORIES write admin
MOVE_MEMORIES   write admin
SHARE_MEMORIES  write admin
END_GRANTS      write admin
SEE_OWN         read admin
SEE_TASKS       read admin operator
SEE_GRANTS      read admin operator
SEE_EVENTS      read admin operator
SEE_TEAM        read admin operator
OVERSEE         admin operator
SEE_AUDIT       admin operator
SUBMIT_TASKS    tasks admin
WORK_ON_TASKS   tasks admin
CHANGE_TASKS    tasks admin
REGISTER        tasks admin
ACT_FOR_OTHERS  admin
"""
CALLS = """
store_memory                         WRITE_MEMORIES
retrieve_memory                      READ_MEMORIES
get_agent_memories                   READ_MEMORIES
update_memory                        WRITE_MEMORIES
clear_memory                         DELETE_MEMORIES
semantic_search                      READ_MEMORIES
find_similar_memories                READ_MEMORIES
distribute_task                      SUBMIT_TASKS
get_pending_tasks                    WORK_ON_TASKS
complete_task                        WORK_ON_TASKS
complete_task store_result=True      WORK_ON_TASKS WRITE_MEMORIES
fail_task                            WORK_ON_TASKS
get_task                             SEE_TASKS
list_tasks                           SEE_OWN
cancel_task                          CHANGE_TASKS
requeue_task                         CHANGE_TASKS
register_agent                       REGISTER
unregister_agent                     REGISTER END_GRANTS
unregister_agent memories=transfer   REGISTER END_GRANTS MOVE_MEMORIES
unregister_agent memories=delete     REGISTER END_GRANTS DELETE_MEMORIES
update_agent_heartbeat               REGISTER
list_agents                          SEE_TEAM
share_context_with_agent             SHARE_MEMORIES
get_shared_context                   SEE_OWN READ_MEMORIES
revoke_shared_context                END_GRANTS
answer_offer                         END_GRANTS SHARE_MEMORIES MOVE_MEMORIES
answer_offer accept=False            END_GRANTS
memory_stats                         SEE_TEAM
gpu_status                           SEE_TEAM
wait_for_events                      SEE_OWN READ_MEMORIES
batch_operations
dashboard_census                     SEE_TEAM
dashboard_tasks                      SEE_TASKS
dashboard_grants                     SEE_GRANTS
dashboard_map                        READ_MEMORIES
dashboard_snippets                   READ_MEMORIES
dashboard_audit                      SEE_AUDIT
dashboard_audit_check                SEE_AUDIT
"""
RESOURCES = {"memory": "READ_MEMORIES", "task": "SEE_TASKS", "agent": "SEE_TEAM"}
UNKNOWN = "0" * 26
REQUIRED: dict[str, Any] = {
    "memory_id": UNKNOWN, "task_id": UNKNOWN, "grant_id": UNKNOWN, "offer_id": UNKNOWN, "lease_token": "x",
    "error": "x", "content": "x", "query": "x", "description": "x", "target_agent": "nobody", "operations": [],
    "memory_ids": [UNKNOWN],
}  # fmt: skip
"""A value for each required argument. No call finds anything, so allowed calls fail in other ways or change little."""
EXTRA: dict[str, dict[str, Any]] = {
    "clear_memory": {"memory_ids": [UNKNOWN]},
    "store_memory": {"wait": False},
    "wait_for_events": {"timeout_seconds": 0},
    "share_context_with_agent": {"context": "x"},
    "unregister_agent memories=transfer": {"transfer_to": "nobody"},
    "complete_task store_result=True": {"result": "x"},
}
ALONE = {"batch_operations", "wait_for_events"}
"""Tools that no batch runs."""
SCOPES = ("read", "write", "tasks")
HOLDERS = [*chain.from_iterable(combinations(SCOPES, size) for size in (1, 2, 3)), ("admin",), ("operator",)]
"""Every combination of scopes that a token can have; `admin` includes all, and `operator` is a dashboard session."""


def table(text: str) -> dict[str, frozenset[str]]:
    rows = (re.split(r"  +|(?<=\S) (?=[A-Z]{2}|read|write|tasks|admin)", line, maxsplit=1) for line in text.split("\n"))
    return {row[0]: frozenset(row[1].split() if row[1:] else ()) for row in rows if row[0]}


EXPECTED, ALLOWED = table(CALLS), table(POWERS)


def is_allowed(effects: Iterable[str], powers: Iterable[str]) -> bool:
    return all(ALLOWED[effect] & set(powers) for effect in effects)


def arguments(call: str, tool: StrictTool) -> dict[str, Any]:
    """Valid arguments of a call of the table."""
    _, *given = call.split()
    values = {
        name: {"True": True, "False": False}.get(value, value)
        for name, _, value in (one.partition("=") for one in given)
    }
    required = {name: REQUIRED[name] for name in tool.parameters.get("required", ())}
    return {**required, **EXTRA.get(tool.name, {}), **EXTRA.get(call, {}), **values}


def choices(schema: dict[str, Any]) -> list[Any]:
    """All values of an argument that has only a few."""
    return [True, False] if schema.get("type") == "boolean" else list(schema.get("enum", ()))


async def every_tool() -> dict[str, StrictTool]:
    runtime = Runtime(Settings.model_construct())
    tools = [tool for group in tool_groups(runtime).values() for tool in group]
    return {tool.name: tool for tool in tools} | dashboard_tools(runtime)


def declared(tool: StrictTool, given: dict[str, Any]) -> set[str]:
    """The names of the effects that a tool declares for a call."""
    args = tool.arguments.model_validate(given)
    return {effect.name for effect in (*tool.effects, *(tool.effects_of(args) if tool.effects_of else ()))}


# What is declared


def test_table_of_effects_and_powers_is_as_agreed() -> None:
    assert {effect.name: allowed for effect, allowed in ALLOWED_BY.items()} == ALLOWED
    assert set(ALLOWED_BY) == set(Effect)


async def test_every_tool_declares_its_effects_for_all_choices_of_its_arguments() -> None:
    tools = await every_tool()
    assert {call.split()[0] for call in EXPECTED} == set(tools)
    for name, tool in tools.items():
        plain = arguments(name, tool)
        assert declared(tool, plain) == EXPECTED[name], name
        for argument, schema in tool.parameters.get("properties", {}).items():
            for value in choices(schema):
                call = f"{name} {argument}={value}"
                assert declared(tool, {**plain, argument: value}) == EXPECTED.get(call, EXPECTED[name]), call


async def test_every_resource_declares_its_effect(server: Server, namespace: str) -> None:
    assert {scheme: effect.name for scheme, effect in EFFECTS.items()} == RESOURCES
    async with server.agent("alice", namespace) as alice:
        templates = (await alice.client.list_resource_templates()).resource_templates
    assert {template.uri_template.partition(":")[0] for template in templates} == set(RESOURCES)


# What happens


async def open_page(page: Browser, namespace: str, held: tuple[str, ...]) -> None:
    if held == ("operator",):
        await operate(page, namespace)
    else:
        await log_in(page, "alice", namespace, held)


@pytest.mark.parametrize("held", HOLDERS, ids="-".join)
async def test_call_is_refused_exactly_if_a_power_for_an_effect_is_missing(
    stranger: Browser, namespace: str, held: tuple[str, ...]
) -> None:
    tools = await every_tool()
    await open_page(stranger, namespace, held)
    operations: list[dict[str, Any]] = []
    for call, effects in EXPECTED.items():
        tool = tools[call.split()[0]]
        given = arguments(call, tool)
        response = await stranger.post(f"call/{tool.name}", given)
        error = response.json().get("error", {})
        assert (error.get("code") == "forbidden") != is_allowed(effects, held), (call, response.text)
        assert error.get("code") != "internal", (call, response.text)
        if tool.name not in ALONE and not tool.name.startswith("dashboard_"):
            operations.append({"op": tool.name, **given})
    outcomes = (await stranger.call("batch_operations", operations=operations))["results"]
    for operation, outcome in zip(operations, outcomes, strict=True):
        tool = tools[operation.pop("op")]
        was_refused = outcome.get("error", {}).get("code") == "forbidden"
        assert was_refused != is_allowed(declared(tool, operation), held), (tool.name, operation)


@pytest.mark.parametrize("held", HOLDERS, ids="-".join)
async def test_event_stream_is_refused_exactly_if_its_power_is_missing(
    stranger: Browser, namespace: str, held: tuple[str, ...]
) -> None:
    await open_page(stranger, namespace, held)
    async with stranger.stream() as response:
        assert response.status_code == (200 if is_allowed(["SEE_EVENTS"], held) else 403)


@pytest.mark.parametrize("held", HOLDERS[:-1], ids="-".join)
async def test_resource_is_refused_exactly_if_its_power_is_missing(
    guarded: Server, namespace: str, held: tuple[str, ...]
) -> None:
    token = await issued(guarded, "alice", namespace, held)
    session = {"Mcp-Session-Id": (await post(guarded, token, INITIALIZE)).headers["mcp-session-id"]}
    for scheme, effect in RESOURCES.items():
        for method, effects in (("resources/read", [effect]), ("resources/subscribe", RESOURCES.values())):
            call = {"jsonrpc": "2.0", "id": 2, "method": method, "params": {"uri": f"{scheme}://{UNKNOWN}"}}
            answer = (await post(guarded, token, call, **session)).text
            assert ("forbidden" in answer) != is_allowed(effects, held), (method, scheme, answer)


# What an answer attaches


async def test_answer_says_what_a_missing_scope_leaves_out(guarded: Server, namespace: str) -> None:
    text = "The parser is written in Rust."
    whole, blind = (
        await issued(guarded, "alice", namespace),
        await issued(guarded, "alice", namespace, ["write", "tasks"]),
    )
    async with (
        guarded.agent("alice", namespace, token=whole) as reader,
        guarded.agent("alice", namespace, token=blind) as writer,
    ):
        await reader.call("register_agent")
        memory = await reader.store(text, tags=["rust"])
        for agent, reads in ((reader, True), (writer, False)):
            stored = await agent.call("store_memory", content=text)
            assert (bool(stored["similar"]), stored.get("duplicate_of") is not None) == (reads, reads)
            assert is_explained(stored, "similar memories") != reads
            changed = await agent.call("update_memory", memory_id=memory, priority="high")
            assert (changed["memory"]["content"], changed["memory"]["tags"]) == (
                (text, ["rust"]) if reads else ("", [])
            )
            assert is_explained(changed, "texts") != reads
            await tasks_and_events(agent, text, reads)


async def tasks_and_events(agent: Agent, text: str, reads: bool) -> None:
    """Check what the task tools and the heartbeat attach."""
    beat = await agent.call("update_agent_heartbeat")
    assert ("unread_events" in beat) == reads
    assert is_explained(beat, "unread events") != reads
    submitted = [await agent.call("distribute_task", description=text) for _ in range(2)][1]
    assert bool(submitted["similar_tasks"]) == reads
    assert is_explained(submitted, "similar tasks") != reads
    claimed = await agent.call("get_pending_tasks")
    assert bool(claimed["tasks"][0]["memories"]) == reads
    assert is_explained(claimed, "memories") != reads
    for task in (submitted, *claimed["tasks"]):
        await agent.raw("cancel_task", task_id=task["task_id"])


def is_explained(answer: dict[str, Any], what: str) -> bool:
    return answer["partial"] and what in answer["reason"] and "scope read" in answer["reason"]
