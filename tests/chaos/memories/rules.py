"""The rules of memories: what was acknowledged is stored, complete, once, for its lifetime, and answers are correct."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator

from chaos.evidence import Violation
from chaos.history import Json
from memory_core.settings.settings import LifetimeSettings

from . import contents
from .evidence import Evidence, Life, Op, View, mark_in
from .memory_records import MemoryRecord

_EXACT = 0.97
"""Cosine from which two vectors count as of the same text. Batch size changes the last digits."""
_GRACE = LifetimeSettings().grace
_CLOCK_ERROR = 0.05
"""Seconds by which two clock readings may differ."""
_TYPED = {
    "store_unavailable",
    "store_full",
    "outcome_unknown",
    "not_found",
    "conflict",
    "embedding_unavailable",
    "skipped",
    "refused",
    "rate_limited",
    "overloaded",
}


def acknowledged_stores_are_kept(evidence: Evidence) -> Iterator[Violation]:
    """At the end an owner sees and lists every acknowledged memory that is neither deleted nor expired."""
    for life in evidence.lives.values():
        if life.acknowledged and not life.may_be_deleted(float("inf")) and not _may_be_expired(evidence, life):
            last = [view for view in life.views if view.began >= evidence.rested and view.memory]
            if not any(not view.in_list for view in last):
                yield Violation("acknowledged and lost", life.memory_id, f"stored by {life.acknowledged[0].agent}")
            elif not any(view.in_list for view in last) and not _may_be_expired(evidence, life, evidence.ended):
                yield Violation("not in the list", life.memory_id, f"of {life.acknowledged[0].agent}")
    for memory_id, record in evidence.state.memories.items():
        if record.expires_at == "inf" and memory_id not in evidence.lives:
            yield Violation("memory was never stored", memory_id, f"revision {record.rev}")


def nothing_disappears_early(evidence: Evidence) -> Iterator[Violation]:
    """No answer says that a memory is missing while it must exist."""
    for life in evidence.lives.values():
        for view in life.views:
            stored = any(op.ended < view.began for op in life.acknowledged)
            gone = life.may_be_deleted(view.ended) or _may_be_expired(evidence, life, view.ended)
            if view.memory is None and stored and not gone:
                yield Violation("present but not found", life.memory_id, _when(view, life))


def nothing_comes_back(evidence: Evidence) -> Iterator[Violation]:
    """After an acknowledged deletion, an expiry or a flush the memory is never seen again."""
    for life in evidence.lives.values():
        gone, expires = life.deleted_at, life.expires_at
        for view in filter(lambda view: view.memory, life.views):
            if gone is not None and view.began > gone:
                yield Violation("resurrected", life.memory_id, f"deleted at {gone:.3f}, {_when(view, life)}")
            if expires is not None and evidence.clock.earliest(view.began, view.ended) > expires + _CLOCK_ERROR:
                yield Violation("seen after expiry", life.memory_id, _when(view, life))
            if life.memory_id in evidence.forgotten:
                yield Violation("survived the flush", life.memory_id, _when(view, life))
        record = evidence.state.memories.get(life.memory_id)
        if gone is not None and record:
            yield Violation("resurrected", life.memory_id, f"in Redis at revision {record.rev}")


def contents_are_those_written(evidence: Evidence) -> Iterator[Violation]:
    """Each view shows exactly one written version, complete and unchanged."""
    for life in evidence.lives.values():
        for view in life.views:
            if view.memory:
                yield from _content(evidence, life, view, view.memory)


def _content(evidence: Evidence, life: Life, view: View, memory: Json) -> Iterator[Violation]:
    mark = mark_in(memory)
    writes = [op for op in evidence.written.get(mark, ()) if op.began < view.ended and _is_about(op, life.memory_id)]
    if not writes:
        yield Violation("never written", life.memory_id, f"shows {mark}")
        return
    is_chunk = view.in_list and memory.get("pieces", 1) > 1
    content, written = memory["content"], writes[0].arguments["content"]
    if (memory.get("metadata") or {}).get("mark") != mark or not (is_chunk or contents.is_consistent(memory)):
        yield Violation("half-applied", life.memory_id, f"tags say {mark}, the rest {memory.get('metadata')}")
    elif content != written and not (is_chunk and content in written):
        yield Violation("altered", life.memory_id, f"{mark} differs from what was written")


def _is_about(op: Op, memory_id: str) -> bool:
    return not op.ids or memory_id in op.ids


def revisions_increase(evidence: Evidence) -> Iterator[Violation]:
    """A revision always means the same version, and no view shows an older one than an earlier view."""
    for life in evidence.lives.values():
        of_revision: dict[int, str] = {}
        moments: list[tuple[float, int, int]] = []
        for view in life.views:
            if view.memory:
                rev, mark = view.memory["rev"], mark_in(view.memory)
                if of_revision.setdefault(rev, mark) != mark:
                    yield Violation(
                        "two versions of one revision", life.memory_id, f"{rev}: {mark}, {of_revision[rev]}"
                    )
                moments += [(view.began, 0, rev), (view.ended, 1, rev)]
        for op in life.updates:
            if op.is_ok and of_revision.get(op.answer["rev"]) != op.mark:
                yield Violation("acknowledged update lost", life.memory_id, f"{op.mark} at {op.answer['rev']}")
        newest = 0
        for at, is_end, rev in sorted(moments):
            if is_end:
                newest = max(newest, rev)
            elif rev < newest:
                yield Violation("revision went back", life.memory_id, f"revision {rev} at {at:.3f} after {newest}")


def stored_once(evidence: Evidence) -> Iterator[Violation]:
    """A repeated store creates one memory."""
    found: dict[str, set[str]] = defaultdict(set)
    for life in evidence.lives.values():
        if life.memory_id in evidence.state.memories:
            for view in filter(lambda view: view.memory, life.views):
                assert view.memory
                found[contents.memory_of(mark_in(view.memory))].add(life.memory_id)
    for name, ids in found.items():
        if len(ids) > 1:
            yield Violation("stored twice", name, " ".join(sorted(ids)))


def vectors_are_current(evidence: Evidence) -> Iterator[Violation]:
    """Each chunk has one vector, no chunk is missing or surplus, and exact search finds a memory by its content."""
    state = evidence.state
    for what in state.unfinished:
        yield Violation("not at rest", "all", what)
    for one in [*state.memories.values(), *state.pieces.values()]:
        if one.vectors != 1:
            yield Violation("wrong number of vectors", one.key, str(one.vectors))
    yield from _chunks(evidence)
    for op in evidence.ops:
        if op.name == "semantic_search" and op.arguments.get("exact") and op.is_ok:
            memory_id = op.arguments["expected"][0]
            best = max(
                (hit["vector"] or 0.0 for hit in op.answer["hits"] if hit["memory_id"] == memory_id), default=0.0
            )
            if best < _EXACT:
                yield Violation("vector does not match content", memory_id, f"cosine {best:.3f}")


def _chunks(evidence: Evidence) -> Iterator[Violation]:
    counted: Counter[str] = Counter()
    for key, one in evidence.state.pieces.items():
        memory_id, _, piece = key.rpartition(":chunk:")[2].rpartition(":")
        counted[memory_id] += 1
        memory = evidence.state.memories.get(memory_id)
        if _may_be_removed(evidence, one):
            continue
        if memory is None or not 0 < int(piece) < memory.pieces:
            yield Violation("chunk without memory", memory_id, f"chunk {piece}")
    for memory_id, memory in evidence.state.memories.items():
        if counted[memory_id] != memory.pieces - 1 and not _may_be_removed(evidence, memory):
            yield Violation("chunks are missing", memory_id, f"{counted[memory_id]} of {memory.pieces - 1}")


def _may_be_removed(evidence: Evidence, one: MemoryRecord) -> bool:
    """Whether Redis may have started to remove a memory's keys while its clock was ahead."""
    return evidence.clock.latest(evidence.rested) >= float(one.expires_at or "inf") + _GRACE


def lifetimes_are_kept(evidence: Evidence) -> Iterator[Violation]:
    """Critical memories never expire, and nothing is removed early."""
    for memory_id, record in evidence.state.memories.items():
        life = evidence.lives.get(memory_id)
        arguments = life.stores[0].arguments if life and life.stores else None
        if arguments is None:
            continue
        forever = contents.LIFETIMES[arguments["priority"]] is None and "ttl_seconds" not in arguments
        if forever != (record.expires_at == "inf") or forever != (record.expires_in is None):
            yield Violation("wrong lifetime", memory_id, f"{arguments['priority']}: {record.expires_at}")
        promised = life.expires_at if life and not forever else None
        if promised is not None and abs(promised - float(record.expires_at)) > _CLOCK_ERROR:
            yield Violation("expiry differs from the answer", memory_id, record.expires_at)


def audited_once(evidence: Evidence) -> Iterator[Violation]:
    """Each change has one audit entry, a failed one has none, and the audit chain is valid."""
    changes, state = evidence.state.changes, evidence.state
    for problem in state.audit_problems:
        yield Violation("broken audit chain", "all", problem)
    for memory_id, life in evidence.lives.items():
        if memory_id in evidence.forgotten:
            continue
        record = state.memories.get(memory_id)
        if changes["store_memory", memory_id] != 1:
            yield Violation("audit of a store", memory_id, f"{changes['store_memory', memory_id]} entries")
        for op, done in (("update_memory", life.updates), ("clear_memory", life.deletions)):
            least = sum(one.is_ok and bool(one.answer.get("deleted", 1)) for one in done)
            most = least + sum(_may_be_audited(life, one) for one in done)
            if op == "update_memory" and record:
                least = most = record.rev - 1
            if not least <= changes[op, memory_id] <= min(most, 1 if op == "clear_memory" else most):
                what = f"{changes[op, memory_id]} entries, not {least} to {most}"
                yield Violation(f"audit of {op}", memory_id, what)


def _may_be_audited(life: Life, op: Op) -> bool:
    """Whether a change without success may have an entry, such as one of a memory that expired before it was read."""
    return not op.is_ok and (op.may_have_worked or (op.code == "not_found" and life.expires_at is not None))


def answers_are_complete(evidence: Evidence) -> Iterator[Violation]:
    """An incomplete answer says so, none is incomplete at the end, and none contains deleted memories."""
    for op in evidence.ops:
        if op.name not in {"semantic_search", "get_agent_memories"} or not op.is_ok:
            continue
        shown = op.answer.get("hits", op.answer.get("memories", ()))
        found = {one["memory_id"] for one in shown}
        partial, more = op.answer.get("partial"), bool(op.answer.get("next_cursor"))
        if partial and op.began >= evidence.rested:
            yield Violation("partial at rest", op.agent, op.name)
        expected = op.arguments.get("expected", ())
        missing = [memory_id for memory_id in expected if memory_id not in found]
        if missing and not partial and (not more or op.answer["total"] < len(expected)):
            what = f"{op.name} {op.arguments.get('mode', '')} {op.began:.3f} to {op.ended:.3f}, {len(missing)} missing"
            yield Violation("silently partial", missing[0], what)
        for memory_id in found:
            gone = evidence.lives[memory_id].deleted_at if memory_id in evidence.lives else None
            if gone is not None and op.began > gone:
                yield Violation("resurrected", memory_id, f"in an answer of {op.name}")


def refusals_are_typed(evidence: Evidence) -> Iterator[Violation]:
    """Every error has a known code, and a refused call had no effect."""
    for op in evidence.ops:
        if op.code and op.code not in _TYPED:
            yield Violation("untyped error", op.agent, f"{op.name}: {op.code}")
        if op.code == "conflict" and not _may_conflict(evidence, op):
            yield Violation("conflict without another writer", op.agent, f"{op.name} {op.ids}")


def _may_conflict(evidence: Evidence, op: Op) -> bool:
    """Whether a call with an unknown outcome may have changed the memory before."""
    lives = [evidence.lives[memory_id] for memory_id in op.ids if memory_id in evidence.lives]
    return any(not other.is_ok and other.may_have_worked for life in lives for other in life.updates)


def _may_be_expired(evidence: Evidence, life: Life, at: float | None = None) -> bool:
    """Whether the memory may have expired by a time, by default the last view."""
    expires = life.expires_at
    until = max((view.ended for view in life.views), default=0.0) if at is None else at
    return expires is not None and evidence.clock.latest(until) >= expires - _CLOCK_ERROR


def _when(view: View, life: Life) -> str:
    return f"seen from {view.began:.3f} to {view.ended:.3f}, expires {life.expires_at}"


RULES: tuple[Callable[[Evidence], Iterator[Violation]], ...] = (
    acknowledged_stores_are_kept,
    nothing_disappears_early,
    nothing_comes_back,
    contents_are_those_written,
    revisions_increase,
    stored_once,
    vectors_are_current,
    lifetimes_are_kept,
    audited_once,
    answers_are_complete,
    refusals_are_typed,
)


def violations(evidence: Evidence) -> list[Violation]:
    """All broken rules, in detail."""
    return [found for rule in RULES for found in rule(evidence)]
