"""Checks of what callers saw: tokens, leases and ends, with the real-time order of calls and what Redis remembers."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator

from .evidence import Effect, Evidence, Lease, Violation, fence_of, task_of
from .history import Call
from .kept import Entry

_HEARTBEATS_MISSED = 2
_MILLISECOND = 0.001
"""Answers give times in whole milliseconds, cut off."""


def stale_tokens_have_no_effect(evidence: Evidence) -> Iterator[Violation]:
    """A token works only between the claim that gave it and the end of its lease."""
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
            return f"{other.fence} had been given"
    for call in evidence.about[effect.task]:
        own = call.op == "cancel" or call.arguments["lease_token"] == effect.token
        if own and call.is_ok and call is not effect.call and call.ended < began:
            return f"{call.op} had ended it"
    promised = evidence.promised[effect.token]
    if effect.until is None and effect.token not in evidence.perhaps_renewed:
        late = began - evidence.clock.latest(promised + _MILLISECOND)
        if late > 0:
            return f"its lease had ended {late:.3f} s before"
    return None


def one_lease_at_a_time(evidence: Evidence) -> Iterator[Violation]:
    """From the claim's answer until it is given up or runs out, nobody else is given a lease of the task."""
    for task_id, leases in evidence.leases_of.items():
        for position, lease in enumerate(leases):
            end = _valid_until(evidence, lease)
            for other in leases[position + 1 :]:
                if other.claim.ended < end and other.token != lease.token:
                    what = f"{lease.fence} of {lease.agent} until {end:.3f}, {other.fence} of {other.agent} from"
                    yield Violation("two leases at once", task_id, f"{what} {other.claim.ended:.3f}")


def _valid_until(evidence: Evidence, lease: Lease) -> float:
    """The earliest monotonic time at which a lease may have ended, by whatever may rightly end it."""
    ends = [evidence.clock.earliest(evidence.promised[lease.token])]
    for call in evidence.about[lease.task]:
        if call.op == "cancel" or call.arguments["lease_token"] == lease.token:
            ends.append(call.began)
    entry = _end_of(evidence, lease)
    if entry is not None and entry.op in {"lost", "dead"}:
        ends.append(evidence.clock.earliest(entry.at))
    return min(ends)


def _end_of(evidence: Evidence, lease: Lease) -> Entry | None:
    """What Redis remembers as the end of a lease: the entry after it."""
    task = evidence.tasks.get(lease.task)
    entries = task.entries if task else ()
    for position, entry in enumerate(entries[:-1]):
        if entry.op == "leased" and entry.fence == lease.fence:
            return entries[position + 1]
    return None


def leases_last_as_promised(evidence: Evidence) -> Iterator[Violation]:
    """A lease runs out no earlier than promised, and is taken only from an agent that fell silent or left."""
    signs = _signs_of_life(evidence)
    for token, lease in evidence.leases.items():
        entry = _end_of(evidence, lease)
        if entry is None:
            continue
        if entry.op == "expired" and entry.at < evidence.promised[token]:
            early = evidence.promised[token] - entry.at
            yield Violation("lease ended too early", lease.task, f"{lease.fence}, {early:.3f} s before its time")
        if entry.op == "lost" and any(began < entry.at < until for began, until in signs[lease.agent]):
            yield Violation("lease taken from a living agent", lease.task, f"{lease.fence} of {lease.agent}")


def _signs_of_life(evidence: Evidence) -> dict[str, list[tuple[float, float]]]:
    """For each agent, when it surely had to be taken for alive, on Redis's clock; nothing for those that left."""
    clock, seconds = evidence.clock, {}
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    left = {call.agent for call in evidence.of("unregister")}
    for call in evidence.calls:
        if call.op == "register":
            seconds[call.agent] = min(call.arguments["heartbeat_seconds"], seconds.get(call.agent, math.inf))
        if call.is_ok and call.agent in seconds and call.agent not in left and call.op in _SIGNS:
            until = call.began + clock.least + _HEARTBEATS_MISSED * seconds[call.agent]
            found[call.agent].append((call.ended + clock.most, until))
    return found


_SIGNS = {"register", "heartbeat", "claim", "complete", "fail"}


def completed_once(evidence: Evidence) -> Iterator[Violation]:
    """By every witness: callers, Redis's histories and the audit."""
    told = Counter(call.arguments["task_id"] for call in evidence.of("complete") if call.is_ok)
    kept = {task.id: sum(entry.op == "completed" for entry in task.entries) for task in evidence.tasks.values()}
    for task_id in {**told, **kept}:
        counts = [told[task_id], kept.get(task_id, 0)]
        if evidence.audit is not None:
            counts.append(evidence.audit["complete_task", task_id])
        if max(counts) > 1:
            yield Violation("completed twice", task_id, f"calls {counts[0]}, history {counts[1]}, audit {counts[2:]}")
        if counts[0] > min(counts[1:]):
            yield Violation("completion lost", task_id, f"calls {counts[0]}, history {counts[1]}, audit {counts[2:]}")


def nothing_after_cancellation(evidence: Evidence) -> Iterator[Violation]:
    """No task that was cancelled is leased, failed or completed later."""
    for call in evidence.of("cancel"):
        if not call.is_ok:
            continue
        task_id = call.arguments["task_id"]
        for lease in evidence.leases_of.get(task_id, []):
            if lease.claim.began > call.ended:
                yield Violation("leased after it was cancelled", task_id, str(lease.fence))
        kept = evidence.tasks.get(task_id)
        if kept and (kept.state != "cancelled" or kept.entries[-1].op != "cancelled"):
            yield Violation("not cancelled after all", task_id, f"state {kept.state}")


def memories_agree(evidence: Evidence) -> Iterator[Violation]:
    """What callers were told is what Redis remembers, and whatever Redis remembers somebody may have caused."""
    kept = {
        (entry.op, task.id, entry.fence, entry.agent)
        for task in evidence.tasks.values()
        for entry in task.entries
        if entry.op in {"leased", "completed", "failed"}
    }
    told = {("leased", lease.task, lease.fence, lease.agent) for lease in evidence.leases.values()}
    told |= {
        (_REMEMBERED[effect.op], effect.task, fence_of(effect.token), effect.call.agent)
        for effect in evidence.effects
        if effect.op in _REMEMBERED
    }
    for op, task_id, fence, agent in told - kept:
        yield Violation("acknowledged and not remembered", task_id, f"{op} {fence} of {agent}")
    unsure = _unsure(evidence)
    for op, task_id, fence, agent in kept - told:
        causes = unsure.get((op, agent, None if op == "leased" else f"{task_id}.{fence}"), [])
        if not causes:
            yield Violation("remembered and never asked for", task_id, f"{op} {fence} of {agent}")


_REMEMBERED = {"complete": "completed", "fail": "failed"}


def _unsure(evidence: Evidence) -> dict[tuple[str, str | None, str | None], list[Call]]:
    """Calls that may have had an effect without anybody having been told."""
    found: dict[tuple[str, str | None, str | None], list[Call]] = defaultdict(list)
    for call in evidence.calls:
        if call.is_ok or not call.may_have_worked:
            continue
        if call.op == "claim":
            found["leased", call.agent, None].append(call)
        elif call.op in _REMEMBERED:
            token = call.arguments["lease_token"]
            found[_REMEMBERED[call.op], call.agent, f"{task_of(token)}.{fence_of(token)}"].append(call)
    return found


def refusals_are_typed(evidence: Evidence) -> Iterator[Violation]:
    """No call ends with an error that nobody foresaw."""
    for call in evidence.calls:
        if call.answer.get("code") in {"internal", ""}:
            yield Violation("untyped error", call.op, str(call.answer)[:200])
