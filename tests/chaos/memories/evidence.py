"""The evidence of a memory run: single operations from the recorded calls, what was seen, and what Redis stores."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

from chaos.history import Call, Json, Outcome
from memory_core.records.times import parse_time

from .clock import RedisClock
from .memory_records import State

_BATCH = "batch_operations"


@dataclass(frozen=True, slots=True)
class Op:
    """One operation, alone or from a batch, whose times it takes. `code` is the reason of a failure."""

    name: str
    agent: str
    arguments: Json
    outcome: Outcome
    answer: Json
    code: str
    began: float
    ended: float

    @property
    def is_ok(self) -> bool:
        """Whether the operation was acknowledged."""
        return self.outcome is Outcome.OK

    @property
    def may_have_worked(self) -> bool:
        """Whether the operation had, or may have had, its effect."""
        return self.outcome is not Outcome.FAIL

    @property
    def mark(self) -> str:
        """The mark of the version that it writes."""
        return self.arguments["tags"][0]

    @property
    def ids(self) -> list[str]:
        """The memories that it names or created."""
        if "memory_ids" in self.arguments:
            return self.arguments["memory_ids"]
        named = self.arguments.get("memory_id") or self.answer.get("memory_id")
        return [named] if named else []


@dataclass(frozen=True, slots=True)
class View:
    """One view of a memory: its content, or None if it was not found. A list shows one chunk of a long memory."""

    memory_id: str
    memory: Json | None
    began: float
    ended: float
    in_list: bool = False


def operations(calls: Iterable[Call]) -> Iterator[Op]:
    """Split batches into operations."""
    for call in calls:
        if call.op != _BATCH:
            code = call.answer.get("code", "") if not call.is_ok else ""
            answer = call.answer if call.is_ok else {}
            yield Op(call.op, call.agent, call.arguments, call.outcome, answer, code, call.began, call.ended)
            continue
        arguments = call.arguments["operations"]
        for one, result in zip(arguments, call.answer.get("results") or [None] * len(arguments), strict=True):
            yield _of_batch(call, one, result)


def _of_batch(call: Call, arguments: Json, result: Json | None) -> Op:
    where = (call.began, call.ended)
    if result is None:
        return Op(arguments["op"], call.agent, arguments, call.outcome, {}, call.answer.get("code", ""), *where)
    if result["ok"]:
        return Op(arguments["op"], call.agent, arguments, Outcome.OK, result["result"], "", *where)
    code = result["error"]["code"]
    outcome = Outcome.UNKNOWN if code == "outcome_unknown" else Outcome.FAIL
    return Op(arguments["op"], call.agent, arguments, outcome, {}, code, *where)


@dataclass(slots=True)
class Life:
    """All operations on one memory, and all views of it."""

    memory_id: str
    stores: list[Op] = field(default_factory=list[Op])
    updates: list[Op] = field(default_factory=list[Op])
    deletions: list[Op] = field(default_factory=list[Op])
    views: list[View] = field(default_factory=list[View])

    @property
    def acknowledged(self) -> list[Op]:
        """Its acknowledged stores. Repeated idempotency keys give several."""
        return [op for op in self.stores if op.is_ok]

    @property
    def deleted_at(self) -> float | None:
        """When the first acknowledged deletion ended."""
        return min((op.ended for op in self.deletions if op.is_ok and op.answer["deleted"]), default=None)

    def may_be_deleted(self, before: float) -> bool:
        """Whether a deletion that may have worked began before a time."""
        return any(op.may_have_worked and op.began < before for op in self.deletions)

    @property
    def expires_at(self) -> float | None:
        """The promised expiry by Redis's clock; None for never, or without an acknowledged store."""
        promised = [op.answer["expires_at"] for op in self.acknowledged if op.answer.get("expires_at")]
        return parse_time(promised[0], "expires_at") if promised else None


@dataclass(frozen=True)
class Evidence:
    """Everything known about a run. From `rested` on, all faults were healed and nothing was pending."""

    calls: list[Call] = field(default_factory=list[Call])
    state: State = State()  # noqa: RUF009 it is frozen
    clock: RedisClock = field(default_factory=RedisClock)
    rested: float = 0.0
    forgotten: frozenset[str] = frozenset()
    """Flushed memories, which must not be seen again."""

    @cached_property
    def ops(self) -> list[Op]:
        """Every operation."""
        return list(operations(self.calls))

    @cached_property
    def ended(self) -> float:
        """When the last answered call ended."""
        return max((op.ended for op in self.ops if op.is_ok), default=0.0)

    @cached_property
    def written(self) -> dict[str, list[Op]]:
        """The stores and updates that may have written each version, by its mark."""
        found: dict[str, list[Op]] = defaultdict(list)
        for op in self.ops:
            if op.name in {"store_memory", "update_memory"} and op.may_have_worked:
                found[op.mark].append(op)
        return found

    @cached_property
    def lives(self) -> dict[str, Life]:
        """All memories that any answer named or showed."""
        found: dict[str, Life] = {}

        def life(memory_id: str) -> Life:
            return found.setdefault(memory_id, Life(memory_id))

        for op in self.ops:
            for view in _views(op):
                life(view.memory_id).views.append(view)
            for memory_id in op.ids if op.name in _OF_LIVES else ():
                getattr(life(memory_id), _OF_LIVES[op.name]).append(op)
        self._add_unanswered_stores(found)
        return found

    def _add_unanswered_stores(self, lives: dict[str, Life]) -> None:
        """Find stores without an answer through later views of what they wrote."""
        for life in lives.values():
            marks = {mark_in(view.memory) for view in life.views if view.memory}
            for mark in marks:
                for op in self.written.get(mark, ()):
                    if op.name == "store_memory" and not op.is_ok:
                        life.stores.append(op)


_OF_LIVES = {"store_memory": "stores", "update_memory": "updates", "clear_memory": "deletions"}


def mark_in(memory: Json) -> str:
    """The mark in a memory's tags."""
    return (memory.get("tags") or [""])[0]


def _views(op: Op) -> Iterator[View]:
    if op.name in {"retrieve_memory", "update_memory"}:
        if op.is_ok:
            yield View(op.ids[0], op.answer, op.began, op.ended)
        elif op.code == "not_found":
            yield View(op.ids[0], None, op.began, op.ended)
    elif op.name == "clear_memory" and op.is_ok and not op.answer["matched"]:
        yield View(op.ids[0], None, op.began, op.ended)
    elif op.name == "get_agent_memories" and op.is_ok:
        for memory in op.answer["memories"]:
            yield View(memory["memory_id"], memory, op.began, op.ended, in_list=True)
