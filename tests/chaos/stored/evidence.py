"""What the rules judge: single operations out of the recorded calls, what was seen of each memory, what Redis keeps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

from chaos.history import Call, Json, Outcome
from memory_core.records.times import parse_time

from .clock import RedisClock
from .kept import Remains

_BATCH = "batch_operations"


@dataclass(frozen=True, slots=True)
class Op:
    """One operation, alone or of a batch, which lends it its times. `code` says why it failed."""

    name: str
    agent: str
    said: Json
    outcome: Outcome
    answer: Json
    code: str
    began: float
    ended: float

    @property
    def is_ok(self) -> bool:
        """Whether it was acknowledged."""
        return self.outcome is Outcome.OK

    @property
    def may_have_worked(self) -> bool:
        """Whether it had, or may have had, its effect."""
        return self.outcome is not Outcome.FAIL

    @property
    def mark(self) -> str:
        """The mark of the version that it writes."""
        return self.said["tags"][0]

    @property
    def ids(self) -> list[str]:
        """The memories that it names or made."""
        if "memory_ids" in self.said:
            return self.said["memory_ids"]
        named = self.said.get("memory_id") or self.answer.get("memory_id")
        return [named] if named else []


@dataclass(frozen=True, slots=True)
class Sight:
    """One look at a memory: what it was, or None if it was not found. A list shows a long one by a piece of it."""

    memory_id: str
    memory: Json | None
    began: float
    ended: float
    in_list: bool = False


def operations(calls: Iterable[Call]) -> Iterator[Op]:
    """Take batches apart."""
    for call in calls:
        if call.op != _BATCH:
            code = call.answer.get("code", "") if not call.is_ok else ""
            answer = call.answer if call.is_ok else {}
            yield Op(call.op, call.agent, call.arguments, call.outcome, answer, code, call.began, call.ended)
            continue
        said = call.arguments["operations"]
        for one, result in zip(said, call.answer.get("results") or [None] * len(said), strict=True):
            yield _of_batch(call, one, result)


def _of_batch(call: Call, said: Json, result: Json | None) -> Op:
    where = (call.began, call.ended)
    if result is None:
        return Op(said["op"], call.agent, said, call.outcome, {}, call.answer.get("code", ""), *where)
    if result["ok"]:
        return Op(said["op"], call.agent, said, Outcome.OK, result["result"], "", *where)
    code = result["error"]["code"]
    outcome = Outcome.UNKNOWN if code == "outcome_unknown" else Outcome.FAIL
    return Op(said["op"], call.agent, said, outcome, {}, code, *where)


@dataclass(slots=True)
class Life:
    """All that was done to one memory, and all that was seen of it."""

    memory_id: str
    stores: list[Op] = field(default_factory=list[Op])
    updates: list[Op] = field(default_factory=list[Op])
    deletions: list[Op] = field(default_factory=list[Op])
    sights: list[Sight] = field(default_factory=list[Sight])

    @property
    def acknowledged(self) -> list[Op]:
        """Its acknowledged stores: more than one where an idempotency key was used again."""
        return [op for op in self.stores if op.is_ok]

    @property
    def deleted_at(self) -> float | None:
        """When the first acknowledged deletion ended."""
        return min((op.ended for op in self.deletions if op.is_ok and op.answer["deleted"]), default=None)

    def may_be_deleted(self, before: float) -> bool:
        """Whether any deletion began before a time that may have worked."""
        return any(op.may_have_worked and op.began < before for op in self.deletions)

    @property
    def expires_at(self) -> float | None:
        """When it expires by Redis's clock, as its store was answered; None for never, or where nobody was told."""
        told = [op.answer["expires_at"] for op in self.acknowledged if op.answer.get("expires_at")]
        return parse_time(told[0], "expires_at") if told else None


@dataclass(frozen=True)
class Evidence:
    """All that is known of a run. From `rested` on all faults were healed and all work was done."""

    calls: list[Call] = field(default_factory=list[Call])
    remains: Remains = Remains()  # noqa: RUF009 it is frozen
    clock: RedisClock = field(default_factory=RedisClock)
    rested: float = 0.0
    forgotten: frozenset[str] = frozenset()
    """Memories that an operator flushed: nothing of them may be seen any more."""

    @cached_property
    def ops(self) -> list[Op]:
        """Every operation."""
        return list(operations(self.calls))

    @cached_property
    def ended(self) -> float:
        """When the last call ended that was answered."""
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
        """All memories that anybody was told of or saw."""
        found: dict[str, Life] = {}

        def life(memory_id: str) -> Life:
            return found.setdefault(memory_id, Life(memory_id))

        for op in self.ops:
            for sight in _sights(op):
                life(sight.memory_id).sights.append(sight)
            for memory_id in op.ids if op.name in _OF_LIVES else ():
                getattr(life(memory_id), _OF_LIVES[op.name]).append(op)
        self._add_unanswered_stores(found)
        return found

    def _add_unanswered_stores(self, lives: dict[str, Life]) -> None:
        """Find the stores that nobody was told of by what was seen of what they wrote."""
        for life in lives.values():
            marks = {mark_in(sight.memory) for sight in life.sights if sight.memory}
            for mark in marks:
                for op in self.written.get(mark, ()):
                    if op.name == "store_memory" and not op.is_ok:
                        life.stores.append(op)


_OF_LIVES = {"store_memory": "stores", "update_memory": "updates", "clear_memory": "deletions"}


def mark_in(memory: Json) -> str:
    """Give the mark that a memory has by its tags."""
    return (memory.get("tags") or [""])[0]


def _sights(op: Op) -> Iterator[Sight]:
    if op.name in {"retrieve_memory", "update_memory"}:
        if op.is_ok:
            yield Sight(op.ids[0], op.answer, op.began, op.ended)
        elif op.code == "not_found":
            yield Sight(op.ids[0], None, op.began, op.ended)
    elif op.name == "clear_memory" and op.is_ok and not op.answer["matched"]:
        yield Sight(op.ids[0], None, op.began, op.ended)
    elif op.name == "get_agent_memories" and op.is_ok:
        for memory in op.answer["memories"]:
            yield Sight(memory["memory_id"], memory, op.began, op.ended, in_list=True)
