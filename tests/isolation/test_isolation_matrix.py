"""Calls every tool in every role about every kind of object; tests/support/isolation_table.py has the expectations.

Forbidden objects get the same bytes as unknown ones, through the same Redis commands.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest
import pytest_asyncio
from mcp_types import CallToolResult
from support.in_process import ADMIN, WRITER, Direct, InProcess
from support.isolation_table import CALLS, ROLES, VISIBILITIES, Row, rows
from support.redis_users import SERVER
from support.stack import MASTER_KEY, Stack, serving, text_of

from memory_core.records.ids import new_id

NAMESPACE, ELSEWHERE = "matrix", "matrix-elsewhere"
SETTINGS: dict[str, Any] = {
    "auth": {"mode": "tokens"},
    "embed_wait_seconds": 15.0,
    "limits": {"burst": 1_000_000, "calls_per_second": 1e6},
    "tasks": {"similar_from": 1.0, "claim_seconds": 3600},
}
_NOISE = {"took_ms", "search_latency_ms", "embedding_latency_ms", "cache", "cursor", "next_cursor", "bytes_estimate"}
_ULID = re.compile(r"\b[0-9a-hjkmnp-tv-z]{26}\b")
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z|\d+(\.\d+)? ms\b|since=c1\.[\w-]+|cursor=[\w-]+")
_fresh = count()


@dataclass(slots=True)
class Matrix:
    """Agents of all roles. Each row has its own owner, named after the visibility of its memory."""

    place: InProcess
    roles: dict[str, Direct] = field(default_factory=dict[str, Direct])
    reads: set[str] = field(default_factory=set[str])

    async def open(self) -> Matrix:
        """Create the agents and the grants to reader and writer."""
        tools = await self.place.tools.list_tools()
        self.reads = {tool.name for tool in tools if tool.annotations and tool.annotations.read_only_hint}
        for role in ROLES:
            if role != "owner":
                await self._join(role, role, ELSEWHERE if role == "elsewhere" else NAMESPACE)
        await self._join("worker", "worker", NAMESPACE)
        await self._join("worker-elsewhere", "worker", ELSEWHERE)
        for visibility in VISIBILITIES:
            owner = await self._join(f"owner {visibility}", f"owner-{visibility}", NAMESPACE)
            for target, permission in (("reader", "read"), ("writer", "write")):
                await owner.call(
                    "share_context_with_agent", target_agent=target, context="island", permission=permission
                )
        return self

    async def _join(self, role: str, name: str, namespace: str) -> Direct:
        agent = await self.place.agent(name, namespace, ADMIN if role == "admin" else WRITER)
        await agent.call("register_agent", max_tasks=1000, heartbeat_seconds=3600)
        self.roles[role] = agent
        return agent

    def caller(self, role: str, visibility: str) -> Direct:
        """Return the agent of a role."""
        return self.roles[f"owner {visibility}" if role == "owner" else role]

    async def target(self, row: Row) -> dict[str, str]:
        """Create the target of a call; return the values of its <…> placeholders."""
        owner, number, kind = self.roles[f"owner {row.visibility}"], next(_fresh), CALLS[row.call].target
        made = {
            "<start>": (await owner.call("wait_for_events", timeout_seconds=0))["cursor"],
            "<agent>": owner.agent, "<word>": f"zq{number}", "<tag>": f"tag{number}", "<key>": f"key{number}",
        }  # fmt: skip
        if kind == "memory":
            made["<memory>"] = (
                await owner.call(
                    "store_memory",
                    content=f"A chest lies under the lighthouse: {made['<word>']}",
                    **({"sensitive": True} if row.visibility == "sensitive" else {"visibility": row.visibility}),
                    tags=[made["<tag>"]],
                    context="island",
                    idempotency_key=made["<key>"],
                )
            )["memory_id"]
        elif kind == "task":
            made |= await self._leased(owner, made["<key>"])
        elif kind == "grant":
            shared = await owner.call(
                "share_context_with_agent", target_agent="reader", tags=[made["<tag>"]], bidirectional=True
            )
            made |= {"<grant>": shared["grant_id"], "<offer>": shared["offer_id"]}
        else:
            made["<leaver>"] = f"leaver-{number}"
        return made

    async def _leased(self, owner: Direct, key: str) -> dict[str, str]:
        arguments = {"description": "Dig.", "assign_to": "worker", "idempotency_key": key}
        task_id = (await owner.call("distribute_task", **arguments))["task_id"]
        claimed = (await self.roles["worker"].call("get_pending_tasks", limit=100, with_memories=0))["tasks"]
        token = next(task["lease_token"] for task in claimed if task["task_id"] == task_id)
        return {"<task>": task_id, "<token>": token}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def matrix(stack: Stack) -> AsyncGenerator[Matrix]:
    """All agents, created once."""
    async with AsyncExitStack() as opened:
        server = await opened.enter_async_context(
            serving(stack.redis.url_of(SERVER), master_key=MASTER_KEY, **SETTINGS)
        )
        yield await Matrix(InProcess.over(server)).open()


def _unknown(made: dict[str, str]) -> dict[str, str]:
    """Return placeholders of the same length that name nothing."""
    task, number = new_id(), next(_fresh)
    return {
        "<memory>": new_id(), "<task>": task, "<grant>": new_id(), "<offer>": new_id(), "<agent>": "nobody",
        "<leaver>": "never-here",
        "<token>": task + made.get("<token>", "")[26:], "<word>": f"zq{number}", "<tag>": f"tag{number}",
        "<key>": f"key{number}", "<start>": made["<start>"],
    }  # fmt: skip


def _filled(value: Any, made: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {name: _filled(item, made) for name, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, made) for item in value]
    if isinstance(value, str):
        for name, meant in {**made, "<fresh>": f"Errand {next(_fresh)}"}.items():
            value = value.replace(name, meant)
    return value


def _bytes(result: CallToolResult, made: dict[str, str]) -> str:
    """Serialize an answer; sent values, times and random values are replaced by fixed text."""
    kept = {name: value for name, value in (result.structured_content or {}).items() if name not in _NOISE}
    text = json.dumps([bool(result.is_error), kept, text_of(result)], sort_keys=True, ensure_ascii=False)
    for name, meant in made.items():
        text = text.replace(meant, name)
    return _MOMENT.sub("T", _ULID.sub("ID", text))


async def _outcome(caller: Direct, row: Row, made: dict[str, str]) -> tuple[str, str, CallToolResult]:
    """Call about something unknown, then about the target; return both answers."""
    call, unknown = CALLS[row.call], _unknown(made)
    about_nothing = await caller.raw(call.tool, **_filled(call.arguments, unknown))
    result = await caller.raw(call.tool, **_filled(call.arguments, made))
    return _bytes(result, made), _bytes(about_nothing, unknown), result


def _check(expected: str, result: CallToolResult, needle: str, shown: str, unknown: str) -> None:
    structured = result.structured_content or {}
    holds = needle in json.dumps(structured) and not result.is_error
    match expected:
        case "shows":
            assert holds, shown
        case "names":
            assert holds, shown
            assert "belongs to another agent" in shown
        case "does":
            assert not result.is_error, shown
        case "hides":
            assert shown == unknown
        case "absent":
            assert not holds, shown
        case _:
            assert structured.get("error", {}).get("code") == expected, shown
            assert expected != "forbidden" or "belongs to" in shown or shown == unknown


ROWS = rows()


@pytest.mark.parametrize("row", ROWS, ids=[f"{row.call} {row.visibility}" for row in ROWS])
async def test_call_result_matches_the_table(row: Row, matrix: Matrix) -> None:
    call, made = CALLS[row.call], dict[str, str]()
    changes = call.tool not in matrix.reads
    for role in reversed(ROLES):
        if not made or (row.expected[role] == "does" and changes):
            made = await matrix.target(row)
        caller = matrix.caller(role, row.visibility)
        if "<leaver>" in made and role == "owner" and call.tool == "unregister_agent":
            caller = await matrix.place.agent(made["<leaver>"], NAMESPACE)
            await caller.call("register_agent")
        elif call.tool == "unregister_agent" and role == "admin":
            leaver = await matrix.place.agent(made["<leaver>"], NAMESPACE)
            await leaver.call("register_agent")
        shown, unknown, result = await _outcome(caller, row, made)
        try:
            _check(row.expected[role], result, made[f"<{call.target}>"], shown, unknown)
        except AssertionError as error:
            raise AssertionError(f"{role}: {row.expected[role]} was expected: {error}") from None


async def test_every_tool_has_a_row(matrix: Matrix) -> None:
    tools = {tool.name for tool in await matrix.place.tools.list_tools()}
    assert tools == {CALLS[row.call].tool for row in ROWS}
    assert set(CALLS) == {row.call for row in ROWS}
