"""Rules about what callers saw: tokens, leases and ends, compared with the times of calls and with Redis."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

from .evidence import LEASING, Effect, Evidence, Lease, Violation, fence_of, task_of
from .history import Call
from .task_records import Entry


def stale_tokens_have_no_effect(evidence: Evidence) -> Iterator[Violation]:
    """A token works only from its claim until another is given, or the task or the attempt has ended.

    A task may be completed after its agent reported a failure, while it waits for the next attempt.
    """
    for effect in evidence.effects:
        lease = evidence.leases.get(effect.token)
        if lease is None or lease.agent != effect.call.agent or lease.task != effect.task:
            yield Violation("forged token accepted", effect.task, f"{effect.op} by {effect.call.agent}")
        elif reason := _why_stale(evidence, effect, lease):
            yield Violation("stale token accepted", effect.task, f"{effect.op} with {lease.fence}: {reason}")


def _why_stale(evidence: Evidence, effect: Effect, lease: Lease) -> str | None:
    began = effect.call.began
    for other in evidence.leases_of[effect.task]:
        if other.fence > lease.fence and other.claim.ended < began:
            return f"{other.fence} was already given"
    for call in evidence.about[effect.task]:
        own = call.op == "cancel" or call.arguments["lease_token"] == effect.token
        if effect.op == "complete" and call.op == "fail":
            own = own and call.answer.get("state") == "dead"
        if own and call.is_ok and call is not effect.call and call.ended < began:
            return f"{call.op} ended it"
    return None


def one_lease_at_a_time(evidence: Evidence) -> Iterator[Violation]:
    """Until a lease ends, no other agent receives a lease of the task."""
    for task_id, leases in evidence.leases_of.items():
        for position, lease in enumerate(leases):
            end = _valid_until(evidence, lease)
            for other in leases[position + 1 :]:
                if other.claim.ended < end and other.token != lease.token:
                    what = f"{lease.fence} of {lease.agent} until {end:.3f}, {other.fence} of {other.agent} from"
                    yield Violation("two leases at once", task_id, f"{what} {other.claim.ended:.3f}")


def _valid_until(evidence: Evidence, lease: Lease) -> float:
    """The earliest monotonic time at which anything may have ended the lease."""
    ends = [evidence.clock.earliest(evidence.promised[lease.token])]
    for call in evidence.about[lease.task]:
        if call.op == "cancel" or call.arguments["lease_token"] == lease.token:
            ends.append(call.began)
    entry = _end_of(evidence, lease)
    if entry is not None and entry.op in {"lost", "dead", "resumed"}:
        ends.append(evidence.clock.earliest(entry.at))
    return min(ends)


def _end_of(evidence: Evidence, lease: Lease) -> Entry | None:
    """The history entry after the lease."""
    task = evidence.tasks.get(lease.task)
    entries = task.entries if task else ()
    for position, entry in enumerate(entries[:-1]):
        if entry.op in {"leased", "resumed"} and entry.fence == lease.fence:
            return entries[position + 1]
    return None


def leases_last_as_promised(evidence: Evidence) -> Iterator[Violation]:
    """A lease does not expire early, and is taken only from an agent that has left: silence takes none."""
    left = {call.agent for call in evidence.of("unregister")}
    for token, lease in evidence.leases.items():
        entry = _end_of(evidence, lease)
        if entry is None:
            continue
        if entry.op == "expired" and entry.at < evidence.promised[token]:
            early = evidence.promised[token] - entry.at
            yield Violation("lease ended too early", lease.task, f"{lease.fence}, {early:.3f} s before its time")
        if entry.op == "lost" and lease.agent not in left:
            yield Violation("lease taken from an agent", lease.task, f"{lease.fence} of {lease.agent}")


def completed_once(evidence: Evidence) -> Iterator[Violation]:
    """Callers, Redis's histories and the audit all count one completion."""
    acknowledged = Counter(call.arguments["task_id"] for call in evidence.of("complete") if call.is_ok)
    recorded = {task.id: sum(entry.op == "completed" for entry in task.entries) for task in evidence.tasks.values()}
    for task_id in {**acknowledged, **recorded}:
        counts = [acknowledged[task_id], recorded.get(task_id, 0)]
        if evidence.audit is not None:
            counts.append(evidence.audit["complete_task", task_id])
        if max(counts) > 1:
            yield Violation("completed twice", task_id, f"calls {counts[0]}, history {counts[1]}, audit {counts[2:]}")
        if counts[0] > min(counts[1:]):
            yield Violation("completion lost", task_id, f"calls {counts[0]}, history {counts[1]}, audit {counts[2:]}")


def nothing_after_cancellation(evidence: Evidence) -> Iterator[Violation]:
    """A cancelled task is never leased, failed or completed later."""
    for call in evidence.of("cancel"):
        if not call.is_ok:
            continue
        task_id = call.arguments["task_id"]
        for lease in evidence.leases_of.get(task_id, []):
            if lease.claim.began > call.ended:
                yield Violation("leased after it was cancelled", task_id, str(lease.fence))
        recorded = evidence.tasks.get(task_id)
        if recorded and (recorded.state != "cancelled" or recorded.entries[-1].op != "cancelled"):
            yield Violation("cancellation lost", task_id, f"state {recorded.state}")


def records_agree(evidence: Evidence) -> Iterator[Violation]:
    """Redis recorded what callers were answered, and every record has a possible cause."""
    recorded = {
        (_SAME_AS.get(entry.op, entry.op), task.id, entry.fence, entry.agent)
        for task in evidence.tasks.values()
        for entry in task.entries
        if entry.op in {"leased", "resumed", "completed", "failed"}
    }
    leases = evidence.leases.values()
    shown = {("leased", lease.task, lease.fence, lease.agent) for lease in leases if not lease.is_given}
    acknowledged = {("leased", lease.task, lease.fence, lease.agent) for lease in leases if lease.is_given}
    acknowledged |= {
        (_RECORDED_AS[effect.op], effect.task, fence_of(effect.token), effect.call.agent)
        for effect in evidence.effects
        if effect.op in _RECORDED_AS
    }
    for op, task_id, fence, agent in (acknowledged | shown) - recorded:
        yield Violation("acknowledged but not recorded", task_id, f"{op} {fence} of {agent}")
    unclear = _unclear_calls(evidence)
    for op, task_id, fence, agent in recorded - acknowledged:
        causes = unclear.get((op, agent, None if op == "leased" else f"{task_id}.{fence}"), [])
        if not causes:
            yield Violation("recorded but never requested", task_id, f"{op} {fence} of {agent}")


_SAME_AS = {"resumed": "leased"}
_RECORDED_AS = {"complete": "completed", "fail": "failed"}


def _unclear_calls(evidence: Evidence) -> dict[tuple[str, str | None, str | None], list[Call]]:
    """Calls that may have had an effect although the caller received no success."""
    found: dict[tuple[str, str | None, str | None], list[Call]] = defaultdict(list)
    for call in evidence.calls:
        if call.is_ok or not call.may_have_worked:
            continue
        if call.op in LEASING:
            found["leased", call.agent, None].append(call)
        elif call.op in _RECORDED_AS:
            token = call.arguments["lease_token"]
            found[_RECORDED_AS[call.op], call.agent, f"{task_of(token)}.{fence_of(token)}"].append(call)
    return found


def refusals_are_typed(evidence: Evidence) -> Iterator[Violation]:
    """Every error has a code other than `internal`."""
    for call in evidence.calls:
        if call.answer.get("code") in {"internal", ""}:
            yield Violation("untyped error", call.op, str(call.answer)[:200])
