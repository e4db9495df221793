"""Random scripts for twin runs: calls of alice and dora, mixed with private calls of bob and carol.

A Ref among the arguments stands for an id known only at run time; each world fills in its own.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Arguments = dict[str, Any]
Who = Literal["alice", "dora", "bob", "carol"]
PRIVATE: frozenset[Who] = frozenset({"bob", "carol"})
"""The world without others skips their steps. Nothing they do is public or shared with alice or dora."""


@dataclass(frozen=True, slots=True)
class Ref:
    """Placeholder for an id an actor created, `back` positions before its newest; an unknown id if there is none."""

    who: Who
    what: Literal["memory", "task", "grant", "token", "cursor", "page", "since"]
    back: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """One call of one actor."""

    who: Who
    tool: str
    arguments: Arguments


SENTENCES = (
    "The lantern in the harbour burns all night.",
    "Boats are running late because of the storm.",
    "A boat ran aground near the lantern.",
    "The launch is planned for the first of May.",
    "The build breaks when the cache is cold.",
    "Tabs are preferred over spaces here.",
    "The summer menu has cold soup and melon.",
    "Die Straße zum Café führt über die Brücke.",
    "東京の会議は来週の火曜日です。",
    "Zeppelins land on the roof every Tuesday.",
)
NOTES = tuple(f"Note {number}: {text}" for number, text in enumerate(SENTENCES))
FLOODS = tuple(f"{text} {' '.join(text.split()[-3:] * 4)}" for text in SENTENCES[:6])
QUERIES = (
    "lantern in the harbour",
    "when is the launch",
    "cold",
    "boats",
    "会議",
    "what lands on the roof?",
    "nowhere",
)
SOURCES = (None, "Mel")
ALICES = (*SENTENCES, *NOTES)
BOBS = (*SENTENCES, *FLOODS)
EMBEDDED = (
    *QUERIES,
    *(text if source is None else f"{source}: {text}" for text in {*ALICES, *BOBS} for source in SOURCES),
    *("knots, ropes", "sums", "I tie knots. knots, ropes"),
)
"""All texts that are ever embedded, so that they are embedded once."""
TAGS, CONTEXTS = ("red", "green", "a,b"), ("here", "日本")
TYPES = ("context", "code", "task")
PRIORITIES = ("medium", "high", "archive", "critical")
MODES = ("hybrid", "vector", "keyword")


class _Writer:
    """Writes one script from one seed."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)

    def one(self, *values: Any) -> Any:
        return self.chance.choice(values)

    def maybe(self, **values: Callable[[], Any]) -> Arguments:
        return {name: value() for name, value in values.items() if self.chance.random() < 0.3}

    def labels(self) -> Arguments:
        return self.maybe(
            tags=lambda: [self.one(*TAGS)],
            context=lambda: self.one(*CONTEXTS),
            memory_type=lambda: self.one(*TYPES),
            priority=lambda: self.one(*PRIORITIES),
            source=lambda: "Mel",
            idempotency_key=lambda: self.one("key 0", "key 1"),
        )

    def filters(self) -> Arguments:
        return self.maybe(
            tags=lambda: [self.one(*TAGS)],
            context=lambda: self.one(*CONTEXTS),
            agent_ids=lambda: [self.one("alice", "bob", "dora")],
            source=lambda: "Mel",
            include_archive=lambda: True,
        )

    def memory(self) -> Ref:
        """Mostly alice's own; also dora's, and a guess at one of bob's."""
        return Ref(self.one("alice", "alice", "alice", "dora", "bob"), "memory", self.chance.randrange(4))

    def task(self) -> Ref:
        return Ref(self.one("alice", "alice", "bob"), "task", self.chance.randrange(3))

    def store(self, texts: tuple[str, ...], visibility: tuple[str, ...]) -> Arguments:
        vector = {"occurred_at": self.one("2020-01-01", "2024-06-01")}
        return {"content": self.one(*texts), "visibility": self.one(*visibility), **self.labels(), **vector}

    # -- steps of alice and dora -------------------------------------------------------------------------------------

    def alices(self) -> Step:
        tool, arguments = self.one(*_ALICES)(self)
        return Step("alice", tool, arguments)

    def doras(self) -> Step:
        tool, arguments = self.one(*_DORAS)(self)
        return Step("dora", tool, arguments)

    # -- steps only in the world with bob and carol ------------------------------------------------------------------

    def private(self) -> Step:
        who, tool, arguments = self.one(*_PRIVATE)(self)
        return Step(who, tool, arguments)

    def end(self) -> Arguments:
        return {"task_id": Ref("alice", "task"), "lease_token": Ref("alice", "token")}

    def share(self) -> Arguments:
        return self.one({"context": self.one(*CONTEXTS)}, {"tags": [self.one(*TAGS)]}, {"memory_types": ["code"]})

    def batch(self) -> Arguments:
        reads = [
            {"op": "semantic_search", "query": self.one(*QUERIES)},
            {"op": "retrieve_memory", "memory_id": self.memory()},
            {"op": "get_agent_memories", "agent_id": self.one("alice", "bob", "nobody")},
            {"op": "store_memory", "content": self.one(*ALICES)},
        ]
        return {"operations": self.chance.sample(reads, 3), "max_tokens": 0}


_KNOTS = {"required_capabilities": ["knots"]}
"""A capability that bob and carol lack, so that they get no such task when its agent leaves."""
_STORES: list[Callable[[_Writer], tuple[str, Arguments]]] = [
    lambda w: ("store_memory", w.store(ALICES, ("private", "private", "shared", "public")))
]
_SEARCHES: list[Callable[[_Writer], tuple[str, Arguments]]] = [
    lambda w: ("semantic_search", {"query": w.one(*QUERIES), "mode": w.one(*MODES), "limit": w.one(3, 10)}),
    lambda w: ("semantic_search", {"query": w.one(*QUERIES), "rerank": True, **w.filters()}),
    lambda w: ("semantic_search", {"query": w.one(*QUERIES), "max_tokens": 30, "priority_weight": 0.3}),
    lambda w: ("find_similar_memories", {"memory_id": w.memory(), "exact": w.one(True, False)}),
]
_ALICES: tuple[Callable[[_Writer], tuple[str, Arguments]], ...] = (
    *_STORES * 8,
    *_SEARCHES * 2,
    lambda w: ("retrieve_memory", {"memory_id": w.memory()}),
    lambda w: ("get_agent_memories", {"limit": 3, **w.filters()}),
    lambda w: ("get_agent_memories", {"agent_id": w.one("alice", "bob", "dora", "nobody"), "limit": 2}),
    lambda w: ("get_agent_memories", {"limit": 2, "cursor": Ref("alice", "page")}),
    lambda w: ("update_memory", {"memory_id": w.memory(), "content": w.one(*ALICES)}),
    lambda w: ("update_memory", {"memory_id": w.memory(), "tags": [w.one(*TAGS)], "context": w.one(*CONTEXTS)}),
    lambda w: ("clear_memory", {"memory_ids": [w.memory(), w.memory()], "confirm": w.one(True, False)}),
    lambda w: ("clear_memory", {"tags": [w.one(*TAGS)], "dry_run": w.one(True, False), "confirm": w.one(True, False)}),
    lambda w: ("share_context_with_agent", {"target_agent": "dora", **w.share()}),
    lambda w: ("share_context_with_agent", {"target_agent": "dora", "memory_ids": [w.memory()]}),
    lambda w: ("revoke_shared_context", {"grant_id": Ref(w.one("alice", "bob"), "grant")}),
    lambda w: ("answer_offer", {"offer_id": Ref(w.one("alice", "bob"), "grant"), "accept": w.one(True, False)}),
    lambda w: ("get_shared_context", {"query": w.one(*QUERIES)}),
    lambda w: ("get_shared_context", {"max_tokens": w.one(20, 4000)}),
    lambda w: ("get_shared_context", {"since": Ref("alice", "since"), "max_tokens": w.one(20, 4000)}),
    lambda w: ("distribute_task", {"description": w.one(*SENTENCES), **_KNOTS}),
    lambda w: (
        "distribute_task",
        {"description": w.one(*SENTENCES), "assign_to": "alice", "priority": "high", **_KNOTS},
    ),
    lambda w: (
        "distribute_task",
        {"description": w.one(*SENTENCES), "depends_on": [w.task()], "assign_to": "dora", **_KNOTS},
    ),
    lambda w: (
        "distribute_task",
        {"description": w.one(*SENTENCES), "idempotency_key": "k", "assign_to": "alice", **_KNOTS},
    ),
    lambda w: ("get_pending_tasks", {"limit": 2, "with_memories": w.one(0, 3)}),
    lambda w: ("get_pending_tasks", {"claim": False}),
    lambda w: ("complete_task", {**w.end(), "result": {"sum": 4}, "store_result": False}),
    lambda w: ("fail_task", {**w.end(), "error": "It broke.", "retry": w.one(True, False)}),
    lambda w: ("get_task", {"task_id": w.task()}),
    lambda w: ("list_tasks", {}),
    lambda w: ("cancel_task", {"task_id": w.task()}),
    lambda w: ("requeue_task", {"task_id": w.task()}),
    lambda w: ("update_agent_heartbeat", {"lease_tokens": [Ref("alice", "token")]}),
    lambda w: ("list_agents", {}),
    lambda w: ("wait_for_events", {"timeout_seconds": 0, "cursor": Ref("alice", "cursor")}),
    lambda w: (
        "wait_for_events",
        {"timeout_seconds": 0, "cursor": Ref("alice", "cursor"), "query": w.one(*QUERIES), "min_score": 0.2},
    ),
    lambda w: ("memory_stats", w.maybe(agent_id=lambda: w.one("alice", "bob", "dora", "nobody"))),
    lambda w: ("gpu_status", {}),
    lambda w: ("batch_operations", w.batch()),
)
_DORAS: tuple[Callable[[_Writer], tuple[str, Arguments]], ...] = (
    lambda w: ("store_memory", w.store(ALICES, ("private", "public"))),
    lambda w: (
        "share_context_with_agent",
        {"target_agent": "alice", **w.share(), "permission": w.one("read", "write")},
    ),
    lambda w: ("share_context_with_agent", {"target_agent": "alice", "memory_ids": [Ref("dora", "memory")]}),
    lambda w: ("revoke_shared_context", {"grant_id": Ref("dora", "grant")}),
    lambda w: ("update_memory", {"memory_id": Ref("dora", "memory"), "content": w.one(*ALICES)}),
    lambda w: ("get_pending_tasks", {"with_memories": 0}),
)
_SUMS = {"required_capabilities": ["sums"]}
"""A capability that alice lacks: otherwise a task pinned to carol would reach alice when carol leaves."""
_SECRETS: list[Callable[[_Writer], tuple[Who, str, Arguments]]] = [
    lambda w: ("bob", "store_memory", w.store(BOBS, ("private", "shared")))
]
_PRIVATE: tuple[Callable[[_Writer], tuple[Who, str, Arguments]], ...] = (
    *_SECRETS * 4,
    lambda w: ("carol", "store_memory", w.store(BOBS, ("private", "shared"))),
    lambda w: (
        "bob",
        "batch_operations",
        {"operations": [{"op": "store_memory", **w.store(BOBS, ("private",))} for _ in range(10)]},
    ),
    lambda w: ("bob", "update_memory", {"memory_id": Ref("bob", "memory", w.one(0, 1)), "content": w.one(*BOBS)}),
    lambda w: ("bob", "update_memory", {"memory_id": Ref("alice", "memory"), "content": w.one(*BOBS)}),
    lambda w: ("bob", "clear_memory", {"memory_ids": [Ref("bob", "memory"), Ref("alice", "memory")], "confirm": True}),
    lambda w: ("bob", "semantic_search", {"query": w.one(*QUERIES), "agent_ids": ["bob"]}),
    lambda w: ("bob", "share_context_with_agent", {"target_agent": "carol", **w.share(), "permission": "write"}),
    lambda w: ("bob", "share_context_with_agent", {"target_agent": "carol", "tags": ["red"], "bidirectional": True}),
    lambda w: ("carol", "share_context_with_agent", {"target_agent": "bob", "tags": ["red"]}),
    lambda w: ("bob", "revoke_shared_context", {"grant_id": Ref("bob", "grant")}),
    lambda w: ("bob", "distribute_task", {"description": w.one(*SENTENCES), "assign_to": "carol", **_SUMS}),
    lambda w: (
        "bob",
        "batch_operations",
        {
            "operations": [
                {"op": "distribute_task", "description": w.one(*SENTENCES), "assign_to": w.one("bob", "carol"), **_SUMS}
                for _ in range(8)
            ]
        },
    ),
    lambda w: ("bob", "distribute_task", {"description": w.one(*SENTENCES), **_SUMS}),
    lambda w: ("bob", "distribute_task", {"description": "x", "assign_to": "carol", "idempotency_key": "k", **_SUMS}),
    lambda w: ("carol", "get_pending_tasks", {"limit": 3, "with_memories": 1}),
    lambda w: (
        "carol",
        "complete_task",
        {"task_id": Ref("carol", "task"), "lease_token": Ref("carol", "token"), "result": "done"},
    ),
    lambda w: ("bob", "cancel_task", {"task_id": Ref("bob", "task")}),
    lambda w: ("carol", "update_agent_heartbeat", {"status": "busy", "load": 0.9}),
    lambda w: ("bob", "wait_for_events", {"timeout_seconds": 0}),
)


def script(seed: int, length: int) -> list[Step]:
    """Write a script with `length` calls of alice."""
    writer = _Writer(seed)
    steps = [writer.private() for _ in range(writer.chance.randrange(3))]
    for _ in range(length):
        if writer.chance.random() < 0.25:
            steps.append(writer.doras())
        steps += [writer.private() for _ in range(writer.one(0, 0, 1, 1, 2))]
        steps.append(writer.alices())
    return steps
