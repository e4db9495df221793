"""Agents that store, change, delete, read and search over HTTP, alone and in batches, and record every call.

Each memory is written by the agent alone that stored it, one call after the other. What an agent may expect of a
search it says when it begins it: what is acknowledged, unchanged since, and not about to expire.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from chaos.history import Json, Recorder, Refusal
from chaos.surfaces import Remote, remote
from memory_core.errors import OutcomeUnknown

from . import texts

MODEL = "all-MiniLM-L6-v2"
NAMESPACE = "chaos"
ANSWER_SECONDS = 25.0
"""An agent that waits for longer gives up and does not know."""
_UNSURE = {"outcome_unknown"}
_GROUPS = 6
_SHORT_LIVES = (2, 4, 7)
_HOUR = 3600


@dataclass(slots=True)
class Mine:
    """What an agent knows of a memory of its own. `settled` is False once a call about it had no clear answer."""

    memory_id: str
    mark: str
    content: str
    group: str
    rev: int = 1
    settled: bool = True
    mortal: bool = False
    archived: bool = False
    deleted: bool = False


@dataclass(slots=True)
class Load:
    """How much is asked, until when."""

    ops: int
    """Acknowledged writes after which it is enough."""
    largest_batch: int = 40
    acknowledged: int = 0
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_done(self) -> bool:
        """Whether it is enough."""
        return self.stopping.is_set() or self.acknowledged >= self.ops


class Actor:
    """One agent at work. `epoch` keeps its marks apart from those of earlier times on the same Redis."""

    def __init__(self, name: str, seed: int, recorder: Recorder, load: Load, address: str, epoch: int = 0) -> None:
        self.name = name
        self._chance = random.Random(f"{seed} {epoch} {name}")
        self._recorder, self._load, self._address = recorder, load, address
        self._first = epoch * 1_000_000
        self._stored = 0
        self._book: list[Mine] = []
        self._retries: list[Json] = []

    async def work(self) -> None:
        """Work until there is enough, connecting again whenever the server went away."""
        while not self._load.is_done:
            with suppress(Exception):
                async with remote(self._address, NAMESPACE, self.name) as surface:
                    while not self._load.is_done:
                        await self._step(surface)
            await asyncio.sleep(0.1)

    async def _step(self, surface: Remote) -> None:
        kind = self._chance.random()
        if self._retries and kind < 0.5:
            await self._store_again(surface)
        elif kind < 0.55:
            await self._batch(surface)
        elif kind < 0.68:
            await self._alone(surface, self._new())
        elif kind < 0.78:
            await self._alone(surface, self._change())
        elif kind < 0.82:
            await self._alone(surface, self._deletion())
        elif kind < 0.88:
            await self._alone(surface, self._reading())
        elif kind < 0.96:
            await self._search(surface)
        else:
            await self._list(surface)

    async def _call(self, surface: Remote, op: str, arguments: Json, **noted: Any) -> Json | None:
        """Make a call and record it; None when it was refused.

        Raises:
            ConnectionError: its outcome is unknown, and so is the connection.
        """

        async def act() -> Json:
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    return trimmed(op, await surface(op, self.name, **arguments))
            except TimeoutError as error:
                raise OutcomeUnknown("no answer in time") from error

        try:
            return await self._recorder.call(op, self.name, arguments | noted, act)
        except Refusal as refusal:
            if refusal.code in _UNSURE:
                raise ConnectionError from refusal
            await asyncio.sleep(0.05)
            return None

    async def _batch(self, surface: Remote) -> None:
        size = self._chance.randint(2, self._load.largest_batch)
        writes = [self._change, self._deletion, self._reading]
        made = [self._new() if self._chance.random() < 0.6 else self._chance.choice(writes)() for _ in range(size)]
        operations = _one_for_each(made)
        for operation in operations:
            self._doubt(operation)
        try:
            answer = await self._call(surface, "batch_operations", {"operations": operations})
        except ConnectionError:
            for operation in operations:
                self._despair(operation, "outcome_unknown")
            raise
        refused: Json = {"ok": False, "error": {"code": "refused"}}
        outcomes: list[Json] = answer["results"] if answer else [refused] * len(operations)
        for operation, outcome in zip(operations, outcomes, strict=True):
            if outcome["ok"]:
                self._learn(operation, outcome["result"])
            else:
                self._despair(operation, outcome["error"]["code"])

    async def _alone(self, surface: Remote, operation: Json) -> None:
        self._doubt(operation)
        arguments = {name: value for name, value in operation.items() if name != "op"}
        if operation["op"] == "store_memory":
            arguments["wait"] = self._chance.random() < 0.3
        try:
            answer = await self._call(surface, operation["op"], arguments)
        except ConnectionError:
            self._despair(operation, "outcome_unknown")
            raise
        if answer is None:
            self._despair(operation, "refused")
        else:
            self._learn(operation, answer)

    async def _store_again(self, surface: Remote) -> None:
        """Ask again for what has an idempotency key, until it is acknowledged."""
        operation = self._retries.pop(0)
        await self._alone(surface, operation)

    async def _search(self, surface: Remote) -> None:
        """Search for a memory, mostly one that must be found; sometimes for one that was deleted."""
        known = self._some(lambda one: not one.archived)
        if known is None:
            return
        mode = self._chance.choice(["keyword", "keyword", "hybrid", "vector"])
        query = known.mark if mode == "keyword" else known.content[:400]
        expected = [known.memory_id] if _is_sure(known) else []
        arguments = {"query": query, "mode": mode, "limit": 10, "rerank": mode == "vector"}
        await self._call(surface, "semantic_search", arguments, expected=expected)

    async def _list(self, surface: Remote) -> None:
        group = f"group {self._chance.randrange(_GROUPS)}"
        sure = [one for one in self._book if one.group == group and _is_sure(one) and not one.archived]
        arguments = {"context": group, "agent_id": self.name, "limit": 100}
        await self._call(surface, "get_agent_memories", arguments, expected=[one.memory_id for one in sure])

    def _new(self) -> Json:
        self._stored += 1
        mark = texts.mark_of(self.name, self._first + self._stored, 1)
        chance = self._chance
        priority = chance.choices(["critical", "high", "medium", "low", "archive"], [3, 3, 10, 3, 1])[0]
        said = texts.version(mark, chance) | {"priority": priority, "context": f"group {chance.randrange(_GROUPS)}"}
        if chance.random() < 0.15:
            said["ttl_seconds"] = chance.choice([*_SHORT_LIVES, _HOUR])
        if chance.random() < 0.4:
            said["idempotency_key"] = mark
        return {"op": "store_memory", **said}

    def _change(self) -> Json:
        known = self._some(lambda one: one.settled)
        if known is None:
            return self._new()
        number = int(known.mark.rpartition("v")[2]) + 1
        said = texts.version(f"{texts.memory_of(known.mark)}v{number}", self._chance)
        expected = {"expected_rev": known.rev} if self._chance.random() < 0.5 else {}
        return {"op": "update_memory", "memory_id": known.memory_id, **said, **expected}

    def _deletion(self) -> Json:
        known = self._some(lambda one: one.settled)
        return {"op": "clear_memory", "memory_ids": [known.memory_id]} if known else self._new()

    def _reading(self) -> Json:
        if not self._book:
            return self._new()
        return {"op": "retrieve_memory", "memory_id": self._chance.choice(self._book[-500:]).memory_id}

    def _some(self, wanted: Callable[[Mine], bool]) -> Mine | None:
        """Choose one of its memories, mostly one of the newest."""
        for _ in range(8):
            recent = self._book[-60:] if self._chance.random() < 0.6 else self._book
            one = self._chance.choice(recent) if recent else None
            if one and not one.deleted and wanted(one):
                return one
        return None

    def _doubt(self, operation: Json) -> None:
        """Trust nothing about a memory while it is being changed."""
        for one in self._meant(operation):
            one.settled = False

    def _despair(self, operation: Json, code: str) -> None:
        """Learn that an operation was refused, or that nobody knows what became of it."""
        if code not in _UNSURE:
            for one in self._meant(operation):
                one.settled = True
        if operation["op"] == "store_memory" and "idempotency_key" in operation and code != "conflict":
            self._retries.append(operation)

    def _learn(self, operation: Json, answer: Json) -> None:
        if operation["op"] == "store_memory":
            self._load.acknowledged += 1
            mortal, archived = "ttl_seconds" in operation, operation["priority"] == "archive"
            content, mark, group = operation["content"], operation["tags"][0], operation["context"]
            self._book.append(Mine(answer["memory_id"], mark, content, group, mortal=mortal, archived=archived))
        for one in self._meant(operation):
            one.settled = True
            self._load.acknowledged += 1
            if operation["op"] == "update_memory":
                one.mark, one.content, one.rev = operation["tags"][0], operation["content"], answer["rev"]
            else:
                one.deleted = True

    def _meant(self, operation: Json) -> list[Mine]:
        if operation["op"] not in {"update_memory", "clear_memory"}:
            return []
        ids = operation.get("memory_ids") or [operation["memory_id"]]
        return [one for one in self._book if one.memory_id in ids]


def _is_sure(one: Mine) -> bool:
    return one.settled and not one.mortal and not one.deleted


def _one_for_each(operations: list[Json]) -> list[Json]:
    """Keep of the operations about one memory the first: what a batch says of it stays simple."""
    seen: set[str] = set()
    kept: list[Json] = []
    for operation in operations:
        ids = set(operation.get("memory_ids", ())) | {operation.get("memory_id", "")} - {""}
        if not ids & seen:
            kept.append(operation)
        seen |= ids
    return kept


def trimmed(op: str, answer: Json) -> Json:
    """Keep of an answer what the checks read."""
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
