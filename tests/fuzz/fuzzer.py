"""Attackers call all tools at random. A victim on the same server must stay unchanged and unseen.

Each call must be answered in time, by an answer of the tool's schema or by an error with a known code that reveals no
internals. Some calls go over HTTP as bytes, some of them broken.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import httpx2
from jsonschema import Draft202012Validator
from mcp_types import Tool
from support.auth_helpers import ACCEPT, INITIALIZE, issued
from support.in_process import Direct, InProcess
from support.stack import Server

from memory_core import errors
from memory_core.records.keys import Keys
from memory_core.redis_client import Client

from .calls import Calls, Json
from .corpus import CANARY, FORBIDDEN, RAW_BODIES

NAMESPACE, OUTSIDE = "fuzz", "fuzz-outside"
SETTINGS: dict[str, Any] = {
    "auth": {"mode": "tokens"},
    "embed_wait_seconds": 15.0,
    "limits": {"burst": 1_000_000_000, "calls_per_second": 1e9},
}
HANG_SECONDS = 5.0
SLOW_SECONDS = 1.0
WIRE_SHARE = 0.08
"""Share of the calls that go over HTTP, as bytes."""
_CODES = {kind.code for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "code")} - {
    "internal"
}
_ATTACKERS = (("mallory", NAMESPACE), ("mike", NAMESPACE), ("outsider", OUTSIDE))
_SDK_TEXTS = ["pydantic"]
"""The SDK's own errors for malformed messages contain this, before the product sees them."""
_NO_KEEPALIVE = httpx2.Limits(max_keepalive_connections=0)
"""The server may close an idle connection just when it is reused. On a new one, a missing answer is a real fault."""
_WORKERS = 6
_PROGRESS_CALLS = 5000
_SHOWN_CHARS = 300


@dataclass(slots=True)
class Report:
    """The results of a run."""

    calls: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    slow: int = 0
    outcomes: Counter[str] = field(default_factory=Counter[str])
    tools: Counter[str] = field(default_factory=Counter[str])
    problems: list[str] = field(default_factory=list[str])

    def __str__(self) -> str:
        lines = [
            f"{self.calls} calls in {self.seconds:.0f} s, {self.calls / self.seconds:.0f} a second; slowest "
            f"{self.slowest:.2f} s, {self.slow} over {SLOW_SECONDS:g} s; {len(self.problems)} problems",
            ", ".join(f"{name} {number}" for name, number in self.outcomes.most_common()),
        ]
        return "\n".join([*lines, *self.problems[:20]])


class _Errors(logging.Handler):
    """Collects what the server logs as errors."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        cause = record.exc_info[1] if record.exc_info else None
        self.texts.append(f"{record.getMessage()}: {cause!r}"[:_SHOWN_CHARS])


@dataclass(slots=True)
class Fuzzer:
    """Attackers and a victim on one server."""

    server: Server
    client: Client
    seed: int
    report: Report = field(default_factory=Report)
    validators: dict[str, Draft202012Validator] = field(default_factory=dict[str, Draft202012Validator])
    tools: list[Tool] = field(default_factory=list[Tool])
    known: list[str] = field(default_factory=list[str])

    @property
    def url(self) -> str:
        """The MCP endpoint."""
        return f"{self.server.url}/mcp"

    async def run(self, calls: int, minutes: float = 60.0) -> Report:
        """Make this many calls, or as many as the time allows; return the results."""
        place = InProcess.over(self.server)
        self.tools = await place.tools.list_tools()
        self.validators = {tool.name: Draft202012Validator(tool.output_schema or {}) for tool in self.tools}
        victim = await self._victim(place)
        before, listed_before = await self._state(), await self._listed(victim)
        watch, began = _Errors(), time.monotonic()
        logging.getLogger().addHandler(watch)
        try:
            async with AsyncExitStack() as opened:
                workers = [await self._worker(opened, place, number) for number in range(_WORKERS)]
                deadline = began + minutes * 60
                await asyncio.gather(*(self._work(*worker, calls, deadline) for worker in workers))
        finally:
            logging.getLogger().removeHandler(watch)
        self.report.seconds = time.monotonic() - began
        self.report.problems += watch.texts
        self.report.problems += _changes(before, await self._state())
        if await self._listed(victim) != listed_before:
            self.report.problems.append("the victim's list changed")
        await self._check_health(victim)
        return self.report

    async def _victim(self, place: InProcess) -> Direct:
        victim = await place.agent("victim", NAMESPACE)
        await victim.call("register_agent", heartbeat_seconds=3600)
        for number in range(20):
            labels = {"tags": ["red", CANARY], "context": "island", "metadata": {"secret": CANARY}}
            content = f"Note {number} on the harbour and its lantern: {CANARY}."
            answer = await victim.call("store_memory", content=content, idempotency_key=f"{CANARY} {number}", **labels)
            self.known.append(answer["memory_id"])
        errand = {"description": f"Guard it: {CANARY}.", "assign_to": "victim", "lease_seconds": 86_400}
        task = await victim.call("distribute_task", **errand)
        (held,) = (await victim.call("get_pending_tasks", with_memories=0))["tasks"]
        self.known += [task["task_id"], held["lease_token"]]
        await place.agent("friend", NAMESPACE)
        await (await place.agent("friend", NAMESPACE)).call("register_agent", heartbeat_seconds=3600)
        grant = await victim.call("share_context_with_agent", target_agent="friend", context="island", note=CANARY)
        self.known.append(grant["grant_id"])
        return victim

    async def _worker(
        self, opened: AsyncExitStack, place: InProcess, number: int
    ) -> tuple[Direct, httpx2.AsyncClient, Calls]:
        name, namespace = _ATTACKERS[number % len(_ATTACKERS)]
        headers = ACCEPT | {"Authorization": f"Bearer {await issued(self.server, name, namespace, seconds=86_400)}"}
        http = await opened.enter_async_context(
            httpx2.AsyncClient(headers=headers, timeout=HANG_SECONDS, limits=_NO_KEEPALIVE)
        )
        greeted = await http.post(self.url, json=INITIALIZE)
        http.headers["Mcp-Session-Id"] = greeted.headers["Mcp-Session-Id"]
        await http.post(self.url, json={"jsonrpc": "2.0", "method": "notifications/initialized"})
        calls = Calls(self.tools, random.Random(f"{self.seed}-{number}"))
        calls.ids.extend(self.known)
        return await place.agent(name, namespace), http, calls

    async def _work(self, agent: Direct, http: httpx2.AsyncClient, calls: Calls, most: int, deadline: float) -> None:
        while self.report.calls < most and time.monotonic() < deadline:
            self.report.calls += 1
            if self.report.calls % _PROGRESS_CALLS == 0:
                print(f"{self.report.calls} calls, {len(self.report.problems)} problems", flush=True)
            tool, arguments = calls.make()
            began = time.monotonic()
            if calls.chance.random() < WIRE_SHARE:
                await self._over_http(http, calls, tool, arguments)
            else:
                await self._directly(agent, calls, tool, arguments)
            spent = time.monotonic() - began
            self.report.slowest = max(self.report.slowest, spent)
            self.report.slow += spent > SLOW_SECONDS

    def _problem(self, what: str, tool: str, arguments: Any) -> None:
        self.report.problems.append(f"{what}: {tool} {ascii(arguments)[:_SHOWN_CHARS]}")

    async def _directly(self, agent: Direct, calls: Calls, tool: str, arguments: Json) -> None:
        self.report.tools[tool] += 1
        try:
            async with asyncio.timeout(HANG_SECONDS):
                result = await agent.raw(tool, **arguments)
        except TimeoutError:
            self._problem("hang", tool, arguments)
            return
        except Exception as error:
            self._problem(f"crash {error!r}"[:_SHOWN_CHARS], tool, arguments)
            return
        try:
            text = result.model_dump_json()
        except ValueError as error:
            self._problem(f"not JSON, {error}", tool, arguments)
            return
        self._judge(tool, arguments, bool(result.is_error), result.structured_content or {}, text)
        calls.learn(result.structured_content or {})

    def _judge(self, tool: str, arguments: Json, is_error: bool, structured: Json, text: str) -> None:
        """Check one answer."""
        if is_error:
            code = structured.get("error", {}).get("code", "none")
            self.report.outcomes[code] += 1
            if code not in _CODES:
                self._problem(f"untyped error {text[:_SHOWN_CHARS]}", tool, arguments)
        else:
            self.report.outcomes["ok"] += 1
            if wrong := next(self.validators[tool].iter_errors(structured), None):
                self._problem(f"does not match its schema, {wrong.message[:_SHOWN_CHARS]}", tool, arguments)
        if shown := [part for part in FORBIDDEN if part in text and part not in json.dumps(arguments, default=repr)]:
            self._problem(f"the answer shows {shown}: {text[:_SHOWN_CHARS]}", tool, arguments)

    async def _over_http(self, http: httpx2.AsyncClient, calls: Calls, tool: str, arguments: Json) -> None:
        body, is_call = _body(calls.chance, tool, arguments)
        try:
            response = await http.post(self.url, content=body)
        except httpx2.HTTPError as error:
            self._problem(f"unanswered {error!r}", tool, body[:_SHOWN_CHARS])
            return
        text = response.text
        self.report.outcomes[f"HTTP {response.status_code}"] += 1
        shown = [part for part in FORBIDDEN if part in text and part not in str(body)]
        if response.status_code >= 500 or (shown and shown != _SDK_TEXTS):
            self._problem(f"HTTP {response.status_code} {text[:_SHOWN_CHARS]}", tool, body[:_SHOWN_CHARS])
            return
        if is_call and response.status_code == 200:
            message = json.loads(
                next(line for line in reversed(text.splitlines()) if line.strip()).removeprefix("data:")
            )
            if "result" not in message and "error" not in message:
                self._problem(f"no answer in {text[:_SHOWN_CHARS]}", tool, body[:_SHOWN_CHARS])
                return
            if result := message.get("result"):
                answer = result.get("structuredContent") or {}
                self._judge(
                    tool, arguments, result.get("isError", False), answer, json.dumps(result, ensure_ascii=False)
                )
        elif not text.strip() and response.status_code != 202:
            self._problem(f"HTTP {response.status_code} without a body", tool, body[:_SHOWN_CHARS])

    async def _state(self) -> dict[str, bytes | None]:
        """The victim's records, task, grant and owner ids as stored in Redis, field by field."""
        keys, state = Keys(NAMESPACE), dict[str, bytes | None]()
        for record_id in (known for known in self.known if "." not in known):
            for name in (keys.memory(record_id), keys.task(record_id), keys.grant(record_id)):
                found = await self.client.hgetall(name)
                state |= {f"{name} {field.decode()}": value for field, value in found.items()}
        owner, owners = await self.client.hmget(keys.agent("victim"), "owner", "owners")
        return state | {"owner": owner, "owners": owners}

    async def _listed(self, victim: Direct) -> list[str]:
        """The contents that the victim lists of its memories."""
        listed = await victim.call("get_agent_memories", limit=100, tags=[CANARY])
        return [memory["content"] for memory in listed["memories"]]

    async def _check_health(self, victim: Direct) -> None:
        found = await victim.call("semantic_search", query="lantern of the harbour", agent_ids=["victim"])
        async with httpx2.AsyncClient() as http:
            ready = await http.get(f"{self.server.url}/readyz")
        if not found["hits"] or found["partial"] or ready.status_code != 200:
            self.report.problems.append(f"the server is unhealthy: {found} {ready.text}")


def _changes(before: dict[str, bytes | None], after: dict[str, bytes | None]) -> list[str]:
    """Describe what differs."""
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return [f"{name} was {before.get(name)!r} and is {after.get(name)!r}"[:_SHOWN_CHARS] for name in changed]


def _body(chance: random.Random, tool: str, arguments: Json) -> tuple[bytes, bool]:
    """A request, and whether it is valid JSON-RPC: some have duplicate keys, infinite numbers, or are truncated."""
    kind = chance.random()
    if kind < 0.15:
        return chance.choice(RAW_BODIES), False
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": arguments}}
    text = json.dumps(call)
    if kind < 0.25:
        key = next(iter(arguments), "x")
        text = text.replace('"arguments": {', f'"arguments": {{{json.dumps(key)}: "first", ', 1)
    elif kind < 0.3:
        return text.encode()[: chance.randrange(len(text))], False
    elif kind < 0.33:
        return text.encode().replace(b'"', b'"\xff', 3), False
    return text.replace("Infinity", "1e999").encode(), True
