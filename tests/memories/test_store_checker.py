"""The checker of memory histories accepts valid histories and reports every violation."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from chaos.history import Call, Json, Outcome
from chaos.memories import rules
from chaos.memories.clock import RedisClock
from chaos.memories.evidence import Evidence
from chaos.memories.memory_records import MemoryRecord, State

M, N = "01memory", "01another"
V1, V2 = "markalice1v1", "markalice1v2"
LONG_AGO = "1970-01-01T00:00:05Z"
RESTED = 100.0


def content_of(mark: str, **more: Any) -> Json:
    return {"content": f"{mark} lantern", "tags": [mark], "metadata": {"mark": mark}, **more}


def call(op: str, at: float, arguments: Json, answer: Json | None = None, agent: str = "alice") -> Call:
    outcome = Outcome.OK if answer is not None else Outcome.UNKNOWN
    ended = at + 0.5 if answer is not None else math.inf
    return Call("agents", op, agent, arguments, outcome, answer or {}, at, ended)


def refused(made: Call, code: str = "store_unavailable") -> Call:
    return replace(made, outcome=Outcome.FAIL, answer={"code": code}, ended=made.began + 0.5)


def store(at: float = 1, mark: str = V1, memory_id: str = M, expires: str | None = None, **more: Any) -> Call:
    answer = {"memory_id": memory_id, "durability": "aof"} | ({"expires_at": expires} if expires else {})
    return call("store_memory", at, content_of(mark, **{"priority": "critical", **more}), answer)


def memory(mark: str, rev: int, memory_id: str = M, **more: Any) -> Json:
    return content_of(mark, memory_id=memory_id, rev=rev, **more)


def update(at: float, mark: str = V2, rev: int = 2) -> Call:
    return call("update_memory", at, {"memory_id": M, **content_of(mark)}, memory(mark, rev))


def delete(at: float) -> Call:
    return call("clear_memory", at, {"memory_ids": [M]}, {"matched": 1, "deleted": 1})


def seen(at: float, mark: str = V1, rev: int = 1, memory_id: str = M, **more: Any) -> Call:
    return call("retrieve_memory", at, {"memory_id": memory_id}, memory(mark, rev, memory_id, **more))


def missed(at: float) -> Call:
    return refused(call("retrieve_memory", at, {"memory_id": M}), "not_found")


def listed(at: float, *memories: Json, **more: Any) -> Call:
    answer = {"memories": list(memories), "total": len(memories), "next_cursor": None} | more
    return call("get_agent_memories", at, {"agent_id": "alice"}, answer)


def search(at: float, expected: str = M, *found: str, extra: Json | None = None, **more: Any) -> Call:
    hits = [{"memory_id": one, "vector": 0.999} for one in found]
    return call("semantic_search", at, {"query": V1, "expected": [expected], **(extra or {})}, {"hits": hits, **more})


def batch(at: float, operations: list[Json], results: list[Json] | None) -> Call:
    return call("batch_operations", at, {"operations": operations}, None if results is None else {"results": results})


def unknown(made: Call) -> Call:
    return replace(made, outcome=Outcome.UNKNOWN, answer={"code": "outcome_unknown"}, ended=math.inf)


def record(rev: int = 1, **more: Any) -> MemoryRecord:
    return MemoryRecord(f"rm:{{chaos}}:mem:{M}", rev=rev, model="m", expires_at="inf", **more)


def audit(store: int = 1, update: int = 0, clear: int = 0, memory_id: str = M) -> Counter[tuple[str, str]]:
    return Counter(
        {("store_memory", memory_id): store, ("update_memory", memory_id): update, ("clear_memory", memory_id): clear}
    )


def state(memory: MemoryRecord | None = None, changes: Counter[tuple[str, str]] | None = None, **more: Any) -> State:
    return State({M: memory or record()}, changes=audit() if changes is None else changes, **more)


def last(mark: str = V1, rev: int = 1, memory_id: str = M) -> list[Call]:
    return [seen(110, mark, rev, memory_id), listed(111, memory(mark, rev, memory_id))]


GONE = [missed(110), listed(111)]
CHANGED = [store(), update(2), *last(V2, 2)]


def evidence(calls: list[Call], left: State, **more: Any) -> Evidence:
    return Evidence(calls, left, RedisClock(), RESTED, **more)


def names(found: Evidence) -> set[str]:
    return {violation.rule for violation in rules.violations(found)}


GOOD: dict[str, Callable[[], Evidence]] = {
    "stored": lambda: evidence([store(), *last()], state()),
    "changed": lambda: evidence(CHANGED, state(record(2), audit(update=1))),
    "deleted": lambda: evidence([store(), delete(2), missed(3), *GONE], State(changes=audit(clear=1))),
    "stored in a batch": lambda: evidence(
        [batch(1, [{"op": "store_memory", **store().arguments}], [{"ok": True, "result": store().answer}]), *last()],
        state(),
    ),
    "a store of unknown outcome without effect": lambda: evidence([unknown(store())], State()),
    "a store of unknown outcome with effect": lambda: evidence([unknown(store()), *last()], state()),
    "an update of unknown outcome with effect": lambda: evidence(
        [store(), unknown(update(2)), *last(V2, 2)], state(record(2), audit(update=1))
    ),
    "a deletion of unknown outcome with effect": lambda: evidence(
        [store(), unknown(delete(2)), missed(3), *GONE], State(changes=audit(clear=1))
    ),
    "an expired memory": lambda: evidence(
        [store(expires=LONG_AGO, priority="low", ttl_seconds=4), seen(2), missed(6), *GONE], State(changes=audit())
    ),
    "a memory that expired between a read and a list": lambda: evidence(
        [store(expires="1970-01-01T00:01:50.7Z", priority="low", ttl_seconds=109), seen(110), listed(111)],
        State(changes=audit()),
    ),
    "a partial answer": lambda: evidence([store(), search(2, M, partial=True), *last()], state()),
    "a search during the store": lambda: evidence([store(), search(1.2, M, M), *last()], state()),
    "a conflict with an update of unknown outcome": lambda: evidence(
        [store(), unknown(update(2)), refused(update(3, "markalice1v3"), "conflict"), *last(V2, 2)],
        state(record(2), audit(update=1)),
    ),
}


@pytest.mark.parametrize("history_of", GOOD)
def test_valid_history_is_accepted(history_of: str) -> None:
    assert rules.violations(GOOD[history_of]()) == []


BAD: dict[str, tuple[str, Callable[[], Evidence]]] = {
    "an acknowledged store that is gone": (
        "acknowledged and lost",
        lambda: evidence([store(), *GONE], State(changes=audit())),
    ),
    "an acknowledged store missing from the list": (
        "not in the list",
        lambda: evidence([store(), seen(110), listed(111)], state()),
    ),
    "a memory missing from one list and read later": (
        "not in the list",
        lambda: evidence(
            [store(expires="1970-01-01T00:05:00Z", priority="low", ttl_seconds=299), seen(110), listed(111)],
            state(replace(record(), expires_at="300.0", expires_in=100.0)),
        ),
    ),
    "a memory that was never stored": (
        "memory was never stored",
        lambda: evidence([], state()),
    ),
    "not found for a moment": (
        "present but not found",
        lambda: evidence([store(), missed(2), *last()], state()),
    ),
    "an early expiry": (
        "present but not found",
        lambda: evidence(
            [store(expires=LONG_AGO, priority="low", ttl_seconds=4), missed(3), *GONE], State(changes=audit())
        ),
    ),
    "seen after its deletion was acknowledged": (
        "resurrected",
        lambda: evidence([store(), delete(2), seen(3), *GONE], State(changes=audit(clear=1))),
    ),
    "in Redis after its deletion was acknowledged": (
        "resurrected",
        lambda: evidence([store(), delete(2), *GONE], state(changes=audit(clear=1))),
    ),
    "found by a search after its deletion was acknowledged": (
        "resurrected",
        lambda: evidence([store(), delete(2), search(3, N, M, partial=True), *GONE], State(changes=audit(clear=1))),
    ),
    "seen after its expiry": (
        "seen after expiry",
        lambda: evidence([store(expires=LONG_AGO, priority="low", ttl_seconds=4), seen(8)], State(changes=audit())),
    ),
    "seen after the flush": (
        "survived the flush",
        lambda: evidence([seen(3), *last()], state(), forgotten=frozenset([M])),
    ),
    "content that was never stored": (
        "never written",
        lambda: evidence([store(), seen(2, "markbob1v1"), *last()], state()),
    ),
    "a refused store that took effect": (
        "never written",
        lambda: evidence([refused(store()), *last()], state()),
    ),
    "a refused update that took effect": (
        "never written",
        lambda: evidence([store(), refused(update(2)), *last(V2, 2)], state(record(2), audit(update=1))),
    ),
    "new tags on an old content": (
        "half-applied",
        lambda: evidence(
            [store(), unknown(update(2)), seen(3, V2, 2, content=f"{V1} lantern"), *last(V2, 2)],
            state(record(2), audit(update=1)),
        ),
    ),
    "a changed byte": (
        "altered",
        lambda: evidence([store(), seen(2, content=f"{V1} lantern "), *last()], state()),
    ),
    "one revision with two contents": (
        "two versions of one revision",
        lambda: evidence([*CHANGED, seen(4, V1, 2)], state(record(2), audit(update=1))),
    ),
    "an acknowledged update without effect": (
        "acknowledged update lost",
        lambda: evidence(
            [store(), replace(update(2), answer=memory(V1, 2)), *last()], state(record(), audit(update=1))
        ),
    ),
    "an acknowledged update that was undone": (
        "revision went back",
        lambda: evidence([store(), update(2), seen(3, V1, 1), *last(V2, 2)], state(record(2), audit(update=1))),
    ),
    "one store that created two memories": (
        "stored twice",
        lambda: evidence(
            [store(idempotency_key="k"), store(2, memory_id=N, idempotency_key="k"), *last(), *last(memory_id=N)],
            State({M: record(), N: record()}, changes=audit() + audit(memory_id=N)),
        ),
    ),
    "a job that was never done": (
        "not at rest",
        lambda: evidence([store(), *last()], state(unfinished=("1 jobs are left",))),
    ),
    "two vectors": (
        "wrong number of vectors",
        lambda: evidence([store(), *last()], state(record(vectors=2))),
    ),
    "no vector": (
        "wrong number of vectors",
        lambda: evidence([store(), *last()], state(record(vectors=0))),
    ),
    "the vector of an older content": (
        "vector does not match content",
        lambda: evidence(
            [
                store(),
                *last(),
                replace(search(112, M, M, extra={"exact": True}), answer={"hits": [{"memory_id": M, "vector": 0.6}]}),
            ],
            state(),
        ),
    ),
    "a chunk of a deleted memory": (
        "chunk without memory",
        lambda: evidence([store(), *last()], state(pieces={f"rm:{{chaos}}:chunk:{N}:1": record()})),
    ),
    "a missing chunk": (
        "chunks are missing",
        lambda: evidence([store(), *last()], state(record(pieces=2))),
    ),
    "a critical memory that will expire": (
        "wrong lifetime",
        lambda: evidence([store(), *last()], state(record(expires_in=60.0))),
    ),
    "a memory without its promised expiry": (
        "wrong lifetime",
        lambda: evidence([store(priority="low"), *last()], state()),
    ),
    "a lifetime other than promised": (
        "expiry differs from the answer",
        lambda: evidence(
            [store(priority="low", expires="2100-01-01T00:00:00Z"), *last()],
            state(replace(record(), expires_at="4102444000.0", expires_in=1e9)),
        ),
    ),
    "a store missing from the audit": (
        "audit of a store",
        lambda: evidence([store(), *last()], state(changes=audit(store=0))),
    ),
    "a store that is in the audit twice": (
        "audit of a store",
        lambda: evidence([store(), *last()], state(changes=audit(store=2))),
    ),
    "an update missing from the audit": (
        "audit of update_memory",
        lambda: evidence(CHANGED, state(record(2), audit(update=0))),
    ),
    "a deletion that is in the audit twice": (
        "audit of clear_memory",
        lambda: evidence([store(), delete(2), *GONE], State(changes=audit(clear=2))),
    ),
    "a broken audit chain": (
        "broken audit chain",
        lambda: evidence([store(), *last()], state(audit_problems=("forged",))),
    ),
    "a search without the expected memory": (
        "silently partial",
        lambda: evidence([store(), search(2, M, N), *last()], state()),
    ),
    "a partial answer after recovery": (
        "partial at rest",
        lambda: evidence([store(), *last(), search(112, M, M, partial=True)], state()),
    ),
    "an unexpected error": (
        "untyped error",
        lambda: evidence([store(), refused(search(2), "internal"), *last()], state()),
    ),
    "a conflict without a concurrent writer": (
        "conflict without another writer",
        lambda: evidence([store(), refused(update(2), "conflict"), *last()], state()),
    ),
}


@pytest.mark.parametrize("history_of", BAD)
def test_invalid_history_is_reported(history_of: str) -> None:
    rule, made = BAD[history_of]
    assert rule in names(made())


def test_every_rule_is_broken_by_some_history() -> None:
    bad = [made() for _, made in BAD.values()]
    assert [rule.__name__ for rule in rules.RULES if not any(list(rule(found)) for found in bad)] == []


def test_clock_jump_widens_expiry_bounds_only_as_needed() -> None:
    clock = RedisClock()
    clock.jump(10.0, 7200.0)
    clock.jump(20.0, 0.0)
    assert clock.latest(9.0) == 9.0
    assert clock.latest(30.0) == 26.0 + 7200.0
    assert clock.earliest(8.0, 9.0) == 8.0
    assert clock.earliest(11.0, 12.0) == 11.0
    assert clock.earliest(17.0, 18.0) == 7217.0
    assert clock.earliest(40.0, 41.0) == 40.0
