"""Runs one script in two worlds, one without the steps of bob and carol, and compares alice's answers.

Her answers must have the same bytes, except for times, issued ids (compared by their order) and the load of other
agents, which the agent registry shows to all.
"""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass, field
from typing import Any

from mcp_types import CallToolResult

from memory_core.records.ids import new_id
from memory_server.engine.request_context import Caller
from memory_server.engine.sidecars.vector_cache import Vectors
from memory_server.tasks.routing import dispatch
from support.in_process import Direct, InProcess
from support.stack import text_of
from support.twin_scripts import EMBEDDED, PRIVATE, Arguments, Ref, Step, Who, script

SETTINGS: dict[str, Any] = {
    "auth": {"mode": "tokens"},
    "embed_wait_seconds": 30.0,
    "limits": {"burst": 1_000_000_000, "calls_per_second": 1e9},
    "cache": {"entries": 100_000, "redis_ttl_seconds": 0},
    "tasks": {"claim_seconds": 86_400, "backoff_seconds": 86_400, "backoff_most_seconds": 86_400},
}
"""Authentication is on, so that only admins see figures about all agents; no timer fires during a script."""
SCRIPTS_OF_A_PAIR = 25
"""Scripts that share two namespaces, each with its own agents: their leftovers are others' data for the next."""
CAST: dict[Who, list[str]] = {"alice": ["knots"], "dora": ["knots"], "bob": ["sums"], "carol": ["sums"]}
_MASKED = {
    *("took_ms", "search_latency_ms", "embedding_latency_ms", "next_cursor", "cursor", "access_count"),
    *("started_at", "updated_at", "mean_ms"),
}
_MOVES_TASKS = {
    *("distribute_task", "get_pending_tasks", "complete_task", "fail_task", "cancel_task", "requeue_task"),
    *("update_agent_heartbeat", "batch_operations"),
}
"""After these, tasks are dispatched at once, so that alice's next call always comes after the dispatch."""
_OF_OTHERS = frozenset({"status", "load", "open_tasks", "leased_tasks", "completed", "failed"})
_ULID = re.compile(r"\b[0-9a-hjkmnp-tv-z]{26}\b")
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+(Z|\+00:00)")
_TOKEN = re.compile(r"\.\d{16}\.[0-9a-f]{16}")
_CURSOR = re.compile(r"\d{13}-\d+|\bc1\.[\w-]+|cursor=[\w-]+")
_FENCE = re.compile(r'"fence": \d{16}')
_LOADS = re.compile(r"\w+, \d+ of \d+ tasks")
_MILLISECONDS = re.compile(r"\d+(\.\d+)? ms\b|p50 unknown")


@dataclass(frozen=True, slots=True)
class Difference:
    """The first answer to alice that differs."""

    seed: int
    step: Step
    with_them: str
    without: str

    def __str__(self) -> str:
        start = next(
            (place for place, pair in enumerate(zip(self.with_them, self.without, strict=False)) if pair[0] != pair[1]),
            min(len(self.with_them), len(self.without)),
        )
        shown = slice(max(start - 300, 0), start + 300)
        return (
            f"script {self.seed}: {self.step.tool} {self.step.arguments}\n"
            f"with others:    …{self.with_them[shown]}\nwithout others: …{self.without[shown]}"
        )


@dataclass(slots=True)
class World:
    """One namespace in which a script runs."""

    in_process: InProcess
    namespace: str
    number: int
    agents: dict[Who, Direct] = field(default_factory=dict[Who, Direct])
    made: dict[tuple[Who, str], list[str]] = field(default_factory=dict[tuple[Who, str], list[str]])
    guessed: set[str] = field(default_factory=set[str])
    """Ids in the current call that its caller cannot know; a missing one is made up."""

    async def open(self, vectors: Vectors) -> None:
        """Register the agents of this script under unique names."""
        service = self.in_process.server.service
        cache, model = service.embeddings.cache, await service.models.current(self.namespace)
        for who, able in CAST.items():
            agent = await self.in_process.agent(self.name_of(who), self.namespace)
            self.agents[who] = agent
            await cache.put(Caller(self.namespace, agent.agent), vectors, model)
            await agent.call("register_agent", capabilities=able, max_tasks=20, heartbeat_seconds=3600)

    def name_of(self, who: str) -> str:
        """Return an actor's name in this script."""
        return f"{who}-{self.number}"

    async def close(self) -> None:
        """Unregister the agents, after cancelling alice's tasks so that the next script does not get them."""
        alice = self.agents["alice"]
        for task in (await alice.call("list_tasks", limit=100))["tasks"]:
            await alice.raw("cancel_task", task_id=task["task_id"])
        for agent in self.agents.values():
            await agent.call("unregister_agent")

    async def run(self, steps: list[Step]) -> list[str]:
        """Run a script; return alice's answers as text."""
        answers: list[str] = []
        order: dict[str, str] = {}
        for step in steps:
            self.guessed.clear()
            service = self.in_process.server.service
            service.rosters.pop(self.namespace, None)
            arguments = self._filled(step.arguments)
            result = await self.agents[step.who].raw(step.tool, **arguments)
            self._note(step, arguments, result.structured_content or {})
            if step.tool in _MOVES_TASKS:
                await dispatch(service, self.namespace)
            if step.who == "alice":
                answers.append(self._shown(result, order))
        return answers

    def _filled(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: self._filled(item) for name, item in value.items() if not _is_missing_cursor(self, item)}
        if isinstance(value, list):
            return [self._filled(item) for item in value]
        if isinstance(value, Ref):
            known = self.made.get((value.who, value.what), [])
            is_known = value.back < len(known)
            some_id = known[-1 - value.back] if is_known else new_id()
            if value.who in PRIVATE or not is_known:
                self.guessed.add(some_id)
            return some_id
        return self.name_of(value) if value in CAST or value == "nobody" else value

    def _note(self, step: Step, arguments: Arguments, answer: Arguments) -> None:
        """Record the ids and cursors of an answer."""
        found = {
            "memory": [answer.get("memory_id")] if step.tool == "store_memory" else [],
            "task": [answer.get("task_id")] if step.tool == "distribute_task" else [],
            "grant": [answer.get("grant_id")] if step.tool == "share_context_with_agent" else [],
            "cursor": [answer.get("cursor")],
            "page": [answer.get("next_cursor")] if step.tool == "get_agent_memories" else [],
            "since": [answer.get("next_cursor")] if step.tool == "get_shared_context" else [],
        }
        if step.tool == "batch_operations":
            found["memory"] = [(outcome.get("result") or {}).get("memory_id") for outcome in answer.get("results", [])]
        if step.tool == "get_pending_tasks":
            found["token"] = [task.get("lease_token") for task in answer.get("tasks", [])]
            found["task"] = [task["task_id"] for task in answer.get("tasks", []) if task.get("lease_token")]
        for what, values in found.items():
            self.made.setdefault((step.who, what), []).extend(value for value in values if value)

    def _shown(self, result: CallToolResult, order: dict[str, str]) -> str:
        """Serialize an answer without times and random values."""
        kept = self._masked(result.structured_content)
        text = json.dumps([bool(result.is_error), kept, text_of(result)], ensure_ascii=False)
        text = text.replace(self.namespace, "NAMESPACE")
        for some_id in self.guessed:
            text = text.replace(some_id, "GUESSED")
        for pattern, stand_in in (
            (_MOMENT, "T"), (_TOKEN, ".F.S"), (_CURSOR, "C"), (_FENCE, '"fence": F'), (_MILLISECONDS, "N ms"),
            (_LOADS, "busy or not"),
        ):  # fmt: skip
            text = pattern.sub(stand_in, text)
        return _ULID.sub(lambda match: order.setdefault(match.group(), f"#{len(order)}"), text)

    def _masked(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._masked(item) for item in value]
        if not isinstance(value, dict):
            return value
        is_other = "capabilities" in value and value.get("agent_id") != self.name_of("alice")
        left_out = _OF_OTHERS if is_other else {"last_access"}
        return {name: name in _MASKED or self._masked(item) for name, item in value.items() if name not in left_out}


def _is_missing_cursor(world: World, value: Any) -> bool:
    is_cursor = isinstance(value, Ref) and value.what in ("cursor", "page", "since")
    return is_cursor and not world.made.get((value.who, value.what))


async def embedded(in_process: InProcess) -> Vectors:
    """Embed all texts of all scripts once."""
    texts = list(dict.fromkeys(EMBEDDED))
    rows = await in_process.server.service.embeddings.embed(texts, Caller("twin-texts", "embedder"), wait=60)
    return {text: row.tobytes() for text, row in zip(texts, rows, strict=True)}


async def compare(in_process: InProcess, pair: str, seed: int, length: int, vectors: Vectors) -> Difference | None:
    """Run one script in both worlds of a pair at the same time; return the first difference."""
    steps = script(seed, length)
    with_them, without = (World(in_process, f"{pair}-{twin}", seed) for twin in ("m", "s"))
    for world in (with_them, without):
        await world.open(vectors)
    alone = [step for step in steps if step.who not in PRIVATE]
    answers, answers_alone = await asyncio.gather(with_them.run(steps), without.run(alone))
    for world in (with_them, without):
        await world.close()
    alices = [step for step in steps if step.who == "alice"]
    for step, one, other in zip(alices, answers, answers_alone, strict=True):
        if one != other:
            return Difference(seed, step, one, other)
    return None
