"""Judges a run of memories: what was acknowledged is there, whole, once, as long as promised; answers are honest."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator

from chaos.evidence import Violation
from chaos.history import Json
from memory_core.settings.settings import LifetimeSettings

from . import texts
from .evidence import Evidence, Life, Op, Sight, mark_in
from .kept import Kept

_EXACT = 0.97
"""Cosine from which on two vectors are of the same text; batches of another size change the last digits."""
_GRACE = LifetimeSettings().grace
_DOUBT = 0.05
"""Seconds by which two readings of clocks may differ."""
_TYPED = {
    "store_unavailable",
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
    """Whatever was acknowledged, and neither deleted nor expired, its owner sees and lists when all is at rest."""
    for life in evidence.lives.values():
        if life.acknowledged and not life.may_be_deleted(float("inf")) and not _may_be_expired(evidence, life):
            last = [sight for sight in life.sights if sight.began >= evidence.rested and sight.memory]
            if not any(not sight.in_list for sight in last):
                yield Violation("acknowledged and lost", life.memory_id, f"stored by {life.acknowledged[0].agent}")
            elif not any(sight.in_list for sight in last) and not _may_be_expired(evidence, life, evidence.ended):
                yield Violation("not in the list", life.memory_id, f"of {life.acknowledged[0].agent}")
    for memory_id, kept in evidence.remains.memories.items():
        if kept.expires_at == "inf" and memory_id not in evidence.lives:
            yield Violation("a memory of nobody", memory_id, f"revision {kept.rev}")


def nothing_goes_early(evidence: Evidence) -> Iterator[Violation]:
    """Nobody is told that something is not there while it must be."""
    for life in evidence.lives.values():
        for sight in life.sights:
            told = any(op.ended < sight.began for op in life.acknowledged)
            gone = life.may_be_deleted(sight.ended) or _may_be_expired(evidence, life, sight.ended)
            if sight.memory is None and told and not gone:
                yield Violation("not found though it is there", life.memory_id, _when(sight, life))


def nothing_comes_back(evidence: Evidence) -> Iterator[Violation]:
    """After an acknowledged deletion, an expiry or a flush nothing is seen any more."""
    for life in evidence.lives.values():
        gone, expires = life.deleted_at, life.expires_at
        for sight in filter(lambda sight: sight.memory, life.sights):
            if gone is not None and sight.began > gone:
                yield Violation("resurrected", life.memory_id, f"deleted at {gone:.3f}, {_when(sight, life)}")
            if expires is not None and evidence.clock.earliest(sight.began, sight.ended) > expires + _DOUBT:
                yield Violation("outlived its lifetime", life.memory_id, _when(sight, life))
            if life.memory_id in evidence.forgotten:
                yield Violation("survived the flush", life.memory_id, _when(sight, life))
        kept = evidence.remains.memories.get(life.memory_id)
        if gone is not None and kept:
            yield Violation("resurrected", life.memory_id, f"in Redis at revision {kept.rev}")


def contents_are_those_written(evidence: Evidence) -> Iterator[Violation]:
    """Each look shows a version that some call wrote, to the byte, and all parts of it."""
    for life in evidence.lives.values():
        for sight in life.sights:
            if sight.memory:
                yield from _content(evidence, life, sight, sight.memory)


def _content(evidence: Evidence, life: Life, sight: Sight, memory: Json) -> Iterator[Violation]:
    mark = mark_in(memory)
    writes = [op for op in evidence.written.get(mark, ()) if op.began < sight.ended and _is_about(op, life.memory_id)]
    if not writes:
        yield Violation("never written", life.memory_id, f"shows {mark}")
        return
    is_piece = sight.in_list and memory.get("pieces", 1) > 1
    content, written = memory["content"], writes[0].said["content"]
    if (memory.get("metadata") or {}).get("mark") != mark or not (is_piece or texts.is_whole(memory)):
        yield Violation("half-applied", life.memory_id, f"tags say {mark}, the rest {memory.get('metadata')}")
    elif content != written and not (is_piece and content in written):
        yield Violation("altered", life.memory_id, f"{mark} reads otherwise than it was written")


def _is_about(op: Op, memory_id: str) -> bool:
    return not op.ids or memory_id in op.ids


def revisions_rise(evidence: Evidence) -> Iterator[Violation]:
    """A revision stands for one version for ever, and nobody sees an older one than somebody did before."""
    for life in evidence.lives.values():
        of_revision: dict[int, str] = {}
        moments: list[tuple[float, int, int]] = []
        for sight in life.sights:
            if sight.memory:
                rev, mark = sight.memory["rev"], mark_in(sight.memory)
                if of_revision.setdefault(rev, mark) != mark:
                    yield Violation(
                        "two versions of one revision", life.memory_id, f"{rev}: {mark}, {of_revision[rev]}"
                    )
                moments += [(sight.began, 0, rev), (sight.ended, 1, rev)]
        for op in life.updates:
            if op.is_ok and of_revision.get(op.answer["rev"]) != op.mark:
                yield Violation("acknowledged update lost", life.memory_id, f"{op.mark} at {op.answer['rev']}")
        newest = 0
        for at, is_end, rev in sorted(moments):
            if is_end:
                newest = max(newest, rev)
            elif rev < newest:
                yield Violation("went back", life.memory_id, f"revision {rev} at {at:.3f} after {newest}")


def stored_once(evidence: Evidence) -> Iterator[Violation]:
    """However often a store is tried again, there is one memory."""
    found: dict[str, set[str]] = defaultdict(set)
    for life in evidence.lives.values():
        if life.memory_id in evidence.remains.memories:
            for sight in filter(lambda sight: sight.memory, life.sights):
                assert sight.memory
                found[texts.memory_of(mark_in(sight.memory))].add(life.memory_id)
    for name, ids in found.items():
        if len(ids) > 1:
            yield Violation("stored twice", name, " ".join(sorted(ids)))


def vectors_are_current(evidence: Evidence) -> Iterator[Violation]:
    """Each piece has one vector, no piece is missing or left over, and exact search finds a memory by what it says."""
    remains = evidence.remains
    for what in remains.unfinished:
        yield Violation("not at rest", "all", what)
    for one in [*remains.memories.values(), *remains.pieces.values()]:
        if one.vectors != 1:
            yield Violation("not one vector", one.key, str(one.vectors))
    yield from _pieces(evidence)
    for op in evidence.ops:
        if op.name == "semantic_search" and op.said.get("exact") and op.is_ok:
            wanted = op.said["expected"][0]
            best = max((hit["vector"] or 0.0 for hit in op.answer["hits"] if hit["memory_id"] == wanted), default=0.0)
            if best < _EXACT:
                yield Violation("its vector is not of its content", wanted, f"cosine {best:.3f}")


def _pieces(evidence: Evidence) -> Iterator[Violation]:
    counted: Counter[str] = Counter()
    for key, one in evidence.remains.pieces.items():
        memory_id, _, piece = key.rpartition(":chunk:")[2].rpartition(":")
        counted[memory_id] += 1
        memory = evidence.remains.memories.get(memory_id)
        if _may_be_removed(evidence, one):
            continue
        if memory is None or not 0 < int(piece) < memory.pieces:
            yield Violation("a piece of nothing", memory_id, f"piece {piece}")
    for memory_id, memory in evidence.remains.memories.items():
        if counted[memory_id] != memory.pieces - 1 and not _may_be_removed(evidence, memory):
            yield Violation("pieces are missing", memory_id, f"{counted[memory_id]} of {memory.pieces - 1}")


def _may_be_removed(evidence: Evidence, one: Kept) -> bool:
    """Whether Redis may have begun to remove a memory, key by key, while its clock was ahead. Each goes in the end."""
    return evidence.clock.latest(evidence.rested) >= float(one.expires_at or "inf") + _GRACE


def lifetimes_are_kept(evidence: Evidence) -> Iterator[Violation]:
    """Critical memories never expire, and Redis removes nothing before its time."""
    for memory_id, kept in evidence.remains.memories.items():
        life = evidence.lives.get(memory_id)
        said = life.stores[0].said if life and life.stores else None
        if said is None:
            continue
        for_ever = texts.LIFETIMES[said["priority"]] is None and "ttl_seconds" not in said
        if for_ever != (kept.expires_at == "inf") or for_ever != (kept.expires_in is None):
            yield Violation("lives too long or too short", memory_id, f"{said['priority']}: {kept.expires_at}")
        told = life.expires_at if life and not for_ever else None
        if told is not None and abs(told - float(kept.expires_at)) > _DOUBT:
            yield Violation("expires at another time than promised", memory_id, kept.expires_at)


def audited_once(evidence: Evidence) -> Iterator[Violation]:
    """Each change that happened has one entry, each that did not has none, and the chain of entries holds."""
    changes, remains = evidence.remains.changes, evidence.remains
    for problem in remains.audit_problems:
        yield Violation("the audit is broken", "all", problem)
    for memory_id, life in evidence.lives.items():
        if memory_id in evidence.forgotten:
            continue
        kept = remains.memories.get(memory_id)
        if changes["store_memory", memory_id] != 1:
            yield Violation("audit of a store", memory_id, f"{changes['store_memory', memory_id]} entries")
        for op, done in (("update_memory", life.updates), ("clear_memory", life.deletions)):
            least = sum(one.is_ok and bool(one.answer.get("deleted", 1)) for one in done)
            most = least + sum(_may_be_noted(life, one) for one in done)
            if op == "update_memory" and kept:
                least = most = kept.rev - 1
            if not least <= changes[op, memory_id] <= min(most, 1 if op == "clear_memory" else most):
                what = f"{changes[op, memory_id]} entries, not {least} to {most}"
                yield Violation(f"audit of {op}", memory_id, what)


def _may_be_noted(life: Life, op: Op) -> bool:
    """Whether a change without success may have an entry: also one of what expired before it was read back."""
    return not op.is_ok and (op.may_have_worked or (op.code == "not_found" and life.expires_at is not None))


def answers_are_whole(evidence: Evidence) -> Iterator[Violation]:
    """An answer that lacks what must be in it says so; at rest none lacks anything; what was deleted is in none."""
    for op in evidence.ops:
        if op.name not in {"semantic_search", "get_agent_memories"} or not op.is_ok:
            continue
        shown = op.answer.get("hits", op.answer.get("memories", ()))
        found = {one["memory_id"] for one in shown}
        partial, more = op.answer.get("partial"), bool(op.answer.get("next_cursor"))
        if partial and op.began >= evidence.rested:
            yield Violation("partial at rest", op.agent, op.name)
        expected = op.said.get("expected", ())
        missing = [memory_id for memory_id in expected if memory_id not in found]
        if missing and not partial and (not more or op.answer["total"] < len(expected)):
            what = f"{op.name} {op.said.get('mode', '')} {op.began:.3f} to {op.ended:.3f}, {len(missing)} missing"
            yield Violation("silently partial", missing[0], what)
        for memory_id in found:
            gone = evidence.lives[memory_id].deleted_at if memory_id in evidence.lives else None
            if gone is not None and op.began > gone:
                yield Violation("resurrected", memory_id, f"in an answer of {op.name}")


def refusals_are_typed(evidence: Evidence) -> Iterator[Violation]:
    """Whatever is wrong has a name that says what to do, and a refusal had no effect."""
    for op in evidence.ops:
        if op.code and op.code not in _TYPED:
            yield Violation("untyped error", op.agent, f"{op.name}: {op.code}")
        if op.code == "conflict" and not _is_doubtful(evidence, op):
            yield Violation("conflict with nobody", op.agent, f"{op.name} {op.ids}")


def _is_doubtful(evidence: Evidence, op: Op) -> bool:
    """Whether a call of unknown outcome may have changed the memory before."""
    lives = [evidence.lives[memory_id] for memory_id in op.ids if memory_id in evidence.lives]
    return any(not other.is_ok and other.may_have_worked for life in lives for other in life.updates)


def _may_be_expired(evidence: Evidence, life: Life, at: float | None = None) -> bool:
    """Whether its lifetime may have been over by then, or when it was looked for last."""
    expires = life.expires_at
    until = max((sight.ended for sight in life.sights), default=0.0) if at is None else at
    return expires is not None and evidence.clock.latest(until) >= expires - _DOUBT


def _when(sight: Sight, life: Life) -> str:
    return f"seen from {sight.began:.3f} to {sight.ended:.3f}, expires {life.expires_at}"


RULES: tuple[Callable[[Evidence], Iterator[Violation]], ...] = (
    acknowledged_stores_are_kept,
    nothing_goes_early,
    nothing_comes_back,
    contents_are_those_written,
    revisions_rise,
    stored_once,
    vectors_are_current,
    lifetimes_are_kept,
    audited_once,
    answers_are_whole,
    refusals_are_typed,
)


def violations(evidence: Evidence) -> list[Violation]:
    """Give all that must not have happened; nothing for a run that kept the rules."""
    return [found for rule in RULES for found in rule(evidence)]
