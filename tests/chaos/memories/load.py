"""Agents that store, change, delete, read and search over HTTP, alone and in batches, and record every call.

Only the agent that stored a memory changes it, one call after another. When a search begins, the agent records the
memories it expects: acknowledged, unchanged since and not about to expire.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from chaos.history import Json, Recorder, Refusal
from chaos.tool_clients import RemoteTools, remote
from memory_core.errors import OutcomeUnknown

from . import contents

MODEL = "all-MiniLM-L6-v2"
NAMESPACE = "chaos"
ANSWER_SECONDS = 25.0
"""An agent that waits longer gives up; the outcome is then unknown."""
_UNSURE = {"outcome_unknown"}
_GROUPS = 6
_SHORT_LIVES = (2, 4, 7)
_HOUR = 3600


@dataclass(slots=True)
class KnownMemory:
    """What an agent knows about its memory. `settled` is False after a call with an unclear outcome."""

    memory_id: str
    mark: str
    content: str
    group: str
    rev: int = 1
    settled: bool = True
    expires: bool = False
    archived: bool = False
    deleted: bool = False


@dataclass(slots=True)
class Load:
    """The amount of work, and when to stop."""

    ops: int
    """Acknowledged writes to reach."""
    largest_batch: int = 40
    acknowledged: int = 0
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_done(self) -> bool:
        """Whether the work is done."""
        return self.stopping.is_set() or self.acknowledged >= self.ops


class Actor:
    """One agent at work. `epoch` separates its marks from those of earlier parts on the same Redis."""

    def __init__(self, name: str, seed: int, recorder: Recorder, load: Load, address: str, epoch: int = 0) -> None:
        self.name = name
        self._chance = random.Random(f"{seed} {epoch} {name}")
        self._recorder, self._load, self._address = recorder, load, address
        self._first = epoch * 1_000_000
        self._stored = 0
        self._known: list[KnownMemory] = []
        self._retries: list[Json] = []

    async def work(self) -> None:
        """Work until the load is done. Reconnects when the server goes away."""
        while not self._load.is_done:
            with suppress(Exception):
                async with remote(self._address, NAMESPACE, self.name) as tools:
                    while not self._load.is_done:
                        await self._step(tools)
            await asyncio.sleep(0.1)

    async def _step(self, tools: RemoteTools) -> None:
        kind = self._chance.random()
        if self._retries and kind < 0.5:
            await self._retry_store(tools)
        elif kind < 0.55:
            await self._batch(tools)
        elif kind < 0.68:
            await self._single(tools, self._new())
        elif kind < 0.78:
            await self._single(tools, self._change())
        elif kind < 0.82:
            await self._single(tools, self._deletion())
        elif kind < 0.88:
            await self._single(tools, self._reading())
        elif kind < 0.96:
            await self._search(tools)
        else:
            await self._list(tools)

    async def _call(self, tools: RemoteTools, op: str, arguments: Json, **extra: Any) -> Json | None:
        """Make and record a call; return None if it was refused.

        Raises:
            ConnectionError: the outcome is unknown.
        """

        async def act() -> Json:
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    return trimmed(op, await tools(op, self.name, **arguments))
            except TimeoutError as error:
                raise OutcomeUnknown("no answer in time") from error

        try:
            return await self._recorder.call(op, self.name, arguments | extra, act)
        except Refusal as refusal:
            if refusal.code in _UNSURE:
                raise ConnectionError from refusal
            await asyncio.sleep(0.05)
            return None

    async def _batch(self, tools: RemoteTools) -> None:
        size = self._chance.randint(2, self._load.largest_batch)
        writes = [self._change, self._deletion, self._reading]
        made = [self._new() if self._chance.random() < 0.6 else self._chance.choice(writes)() for _ in range(size)]
        operations = _one_per_memory(made)
        for operation in operations:
            self._mark_unsettled(operation)
        try:
            answer = await self._call(tools, "batch_operations", {"operations": operations, "max_tokens": 0})
        except ConnectionError:
            for operation in operations:
                self._failed(operation, "outcome_unknown")
            raise
        refused: Json = {"ok": False, "error": {"code": "refused"}}
        outcomes: list[Json] = answer["results"] if answer else [refused] * len(operations)
        for operation, outcome in zip(operations, outcomes, strict=True):
            if outcome["ok"]:
                self._succeeded(operation, outcome["result"])
            else:
                self._failed(operation, outcome["error"]["code"])

    async def _single(self, tools: RemoteTools, operation: Json) -> None:
        self._mark_unsettled(operation)
        arguments = {name: value for name, value in operation.items() if name != "op"}
        if operation["op"] == "store_memory":
            arguments["wait"] = self._chance.random() < 0.3
        try:
            answer = await self._call(tools, operation["op"], arguments)
        except ConnectionError:
            self._failed(operation, "outcome_unknown")
            raise
        if answer is None:
            self._failed(operation, "refused")
        else:
            self._succeeded(operation, answer)

    async def _retry_store(self, tools: RemoteTools) -> None:
        """Repeat a store with an idempotency key until it is acknowledged."""
        operation = self._retries.pop(0)
        await self._single(tools, operation)

    async def _search(self, tools: RemoteTools) -> None:
        """Search for a memory, usually one that must be found, sometimes a deleted one."""
        known = self._pick(lambda one: not one.archived)
        if known is None:
            return
        mode = self._chance.choice(["keyword", "keyword", "hybrid", "vector"])
        query = known.mark if mode == "keyword" else known.content[:400]
        expected = [known.memory_id] if _must_be_found(known) else []
        arguments = {"query": query, "mode": mode, "limit": 10, "rerank": mode == "vector"}
        await self._call(tools, "semantic_search", arguments, expected=expected)

    async def _list(self, tools: RemoteTools) -> None:
        group = f"group {self._chance.randrange(_GROUPS)}"
        expected = [one for one in self._known if one.group == group and _must_be_found(one) and not one.archived]
        arguments = {"context": group, "agent_id": self.name, "limit": 100}
        await self._call(tools, "get_agent_memories", arguments, expected=[one.memory_id for one in expected])

    def _new(self) -> Json:
        self._stored += 1
        mark = contents.mark_of(self.name, self._first + self._stored, 1)
        chance = self._chance
        priority = chance.choices(["critical", "high", "medium", "low", "archive"], [3, 3, 10, 3, 1])[0]
        fields = contents.version(mark, chance) | {
            "priority": priority,
            "context": f"group {chance.randrange(_GROUPS)}",
        }
        if chance.random() < 0.15:
            fields["ttl_seconds"] = chance.choice([*_SHORT_LIVES, _HOUR])
        if chance.random() < 0.4:
            fields["idempotency_key"] = mark
        return {"op": "store_memory", **fields}

    def _change(self) -> Json:
        known = self._pick(lambda one: one.settled)
        if known is None:
            return self._new()
        number = int(known.mark.rpartition("v")[2]) + 1
        fields = contents.version(f"{contents.memory_of(known.mark)}v{number}", self._chance)
        expected = {"expected_rev": known.rev} if self._chance.random() < 0.5 else {}
        return {"op": "update_memory", "memory_id": known.memory_id, **fields, **expected}

    def _deletion(self) -> Json:
        known = self._pick(lambda one: one.settled)
        return {"op": "clear_memory", "memory_ids": [known.memory_id]} if known else self._new()

    def _reading(self) -> Json:
        if not self._known:
            return self._new()
        return {"op": "retrieve_memory", "memory_id": self._chance.choice(self._known[-500:]).memory_id}

    def _pick(self, condition: Callable[[KnownMemory], bool]) -> KnownMemory | None:
        """Choose one of the agent's memories, usually a recent one."""
        for _ in range(8):
            recent = self._known[-60:] if self._chance.random() < 0.6 else self._known
            one = self._chance.choice(recent) if recent else None
            if one and not one.deleted and condition(one):
                return one
        return None

    def _mark_unsettled(self, operation: Json) -> None:
        """Distrust a memory while it is being changed."""
        for one in self._targets(operation):
            one.settled = False

    def _failed(self, operation: Json, code: str) -> None:
        """Handle an operation that was refused or has an unknown outcome."""
        if code not in _UNSURE:
            for one in self._targets(operation):
                one.settled = True
        if operation["op"] == "store_memory" and "idempotency_key" in operation and code != "conflict":
            self._retries.append(operation)

    def _succeeded(self, operation: Json, answer: Json) -> None:
        if operation["op"] == "store_memory":
            self._load.acknowledged += 1
            expires, archived = "ttl_seconds" in operation, operation["priority"] == "archive"
            content, mark, group = operation["content"], operation["tags"][0], operation["context"]
            self._known.append(
                KnownMemory(answer["memory_id"], mark, content, group, expires=expires, archived=archived)
            )
        for one in self._targets(operation):
            one.settled = True
            self._load.acknowledged += 1
            if operation["op"] == "update_memory":
                one.mark, one.content, one.rev = operation["tags"][0], operation["content"], answer["rev"]
            else:
                one.deleted = True

    def _targets(self, operation: Json) -> list[KnownMemory]:
        if operation["op"] not in {"update_memory", "clear_memory"}:
            return []
        ids = operation.get("memory_ids") or [operation["memory_id"]]
        return [one for one in self._known if one.memory_id in ids]


def _must_be_found(one: KnownMemory) -> bool:
    return one.settled and not one.expires and not one.deleted


def _one_per_memory(operations: list[Json]) -> list[Json]:
    """Keep only the first operation on each memory, so that the expected result of a batch stays simple."""
    seen: set[str] = set()
    chosen: list[Json] = []
    for operation in operations:
        ids = set(operation.get("memory_ids", ())) | {operation.get("memory_id", "")} - {""}
        if not ids & seen:
            chosen.append(operation)
        seen |= ids
    return chosen


def trimmed(op: str, answer: Json) -> Json:
    """The part of an answer that the rules read."""
    whole = {"partial": True} if answer.get("partial") else {}
    match op:
        case "batch_operations":
            return {"results": [_trimmed_outcome(outcome) for outcome in answer["results"]]}
        case "store_memory":
            names = ("memory_id", "expires_at", "vector", "durability", "replayed")
            return {name: answer[name] for name in names if name in answer}
        case "retrieve_memory" | "update_memory":
            return _trimmed_memory(answer["memory"])
        case "semantic_search":
            hits = [
                {"memory_id": hit["memory"]["memory_id"], "vector": hit.get("vector_score")} for hit in answer["hits"]
            ]
            return {"hits": hits, **whole}
        case "get_agent_memories":
            memories = [_trimmed_memory(memory) for memory in answer["memories"]]
            return {"memories": memories, "total": answer["total"], "next_cursor": answer.get("next_cursor"), **whole}
        case _:
            return answer


def _trimmed_outcome(outcome: Json) -> Json:
    if not outcome["ok"]:
        return {"ok": False, "error": {"code": outcome["error"]["code"]}}
    result = outcome["result"]
    op = "retrieve_memory" if "memory" in result else "store_memory" if "durability" in result else "clear_memory"
    return {"ok": True, "result": trimmed(op, result)}


def _trimmed_memory(memory: Json) -> Json:
    names = ("memory_id", "content", "tags", "metadata", "rev", "priority", "expires_at", "pieces")
    return {name: memory[name] for name in names if name in memory}
