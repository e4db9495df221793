"""A plain Python model of one namespace's memories, to compare the real stack with.

Each tool is a method of `Model` that takes an agent's arguments and the outcome: the structured answer, or the
code of an error. It asserts that this is what the contract promises and remembers what the call has changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any

from support.model_records import (
    DEFAULTS,
    FILTERS,
    LIFETIMES,
    Arguments,
    Memory,
    Moment,
    Outcome,
    Selected,
    accepts,
    is_backwards,
    seconds_of,
)


@dataclass(slots=True)
class Model:
    """The expected content of a namespace. `tally` counts calls by tool and outcome."""

    memories: dict[str, Memory] = field(default_factory=dict[str, Memory])
    tally: Counter[str] = field(default_factory=Counter[str])
    _orders: Counter[tuple[str, str | None]] = field(default_factory=Counter[tuple[str, str | None]])
    _unknown_seq: set[tuple[str, str | None]] = field(default_factory=set[tuple[str, str | None]])
    _keys: dict[tuple[str, str], tuple[Arguments, str, str | None]] = field(
        default_factory=dict[tuple[str, str], tuple[Arguments, str, str | None]]
    )

    def check(self, agent: str, tool: str, arguments: Arguments, outcome: Outcome, moment: Moment) -> None:
        """Check one call against the contract and apply it to the model."""
        getattr(self, tool)(agent, arguments, outcome, moment)
        self.tally[f"{tool}: {outcome if isinstance(outcome, str) else 'ok'}"] += 1

    def readable(self, agent: str, arguments: Arguments, moment: Moment) -> Selected:
        """Select what an agent may read within filters."""
        return Selected.by(
            (memory, memory.lives(moment))
            for memory in self.memories.values()
            if memory.is_readable_by(agent) and accepts(arguments, memory)
        )

    def store_memory(self, agent: str, arguments: Arguments, outcome: Outcome, moment: Moment) -> None:
        """Invalid, another agent's name, a replay, an idempotency conflict, or a new memory."""
        if refusal := _refused_store(agent, arguments):
            assert outcome == refusal
            return
        payload = {
            name: value for name, value in arguments.items() if name not in {"idempotency_key", "wait", "agent_id"}
        }
        payload = DEFAULTS | payload
        key = (agent, arguments.get("idempotency_key", ""))
        earlier = self._keys.get(key) if key[1] else None
        if earlier and self._is_kept(earlier[1], outcome):
            if earlier[0] != payload:
                assert outcome == "conflict"
                return
            answer = _answer(outcome)
            assert (answer["replayed"], answer["memory_id"]) == (True, earlier[1])
            assert answer.get("expires_at") == earlier[2]
            self.tally["replayed"] += 1
            return
        answer = _answer(outcome)
        self._add(agent, arguments, answer, moment)
        if key[1]:
            self._keys[key] = (payload, answer["memory_id"], answer.get("expires_at"))

    def _is_kept(self, memory_id: str, outcome: Outcome) -> bool:
        """Whether the memory stored under an idempotency key still exists; if undecided, the outcome decides."""
        removed = self.memories[memory_id].removed
        return not removed if removed is not None else outcome == "conflict" or _answer(outcome)["replayed"]

    def _add(self, agent: str, arguments: Arguments, answer: dict[str, Any], moment: Moment) -> None:
        memory_id = answer["memory_id"]
        assert memory_id not in self.memories
        assert not answer["replayed"]
        assert not answer["partial"]
        twins = Selected.by(
            (memory, memory.lives(moment))
            for memory in self.memories.values()
            if memory.owner == agent and memory.content == arguments["content"]
        )
        repeated = answer.get("duplicate_of")
        assert repeated in {memory.id for memory in twins.memories} if repeated else not twins.sure, "wrong duplicate"
        self.tally["repeated"] += repeated is not None
        occurred = Moment(*[seconds_of(arguments["occurred_at"])] * 2) if "occurred_at" in arguments else moment
        self.memories[memory_id] = Memory(
            id=memory_id,
            owner=agent,
            content=arguments["content"],
            type=arguments.get("memory_type", "context"),
            priority=arguments.get("priority", "medium"),
            visibility=arguments.get("visibility", "private"),
            tags=tuple(dict.fromkeys(arguments.get("tags", ()))),
            context=arguments.get("context"),
            source=arguments.get("source"),
            metadata=arguments.get("metadata") or None,
            occurred=occurred,
            expires_at=_expiry(
                answer, moment, arguments.get("ttl_seconds") or LIFETIMES[arguments.get("priority", "medium")]
            ),
            seq=self._next(agent, arguments.get("context")),
        )

    def retrieve_memory(self, agent: str, arguments: Arguments, outcome: Outcome, moment: Moment) -> None:
        """The whole memory, or not found."""
        if memory := self._reach(agent, arguments["memory_id"], outcome, moment):
            self.check_shown(memory, _answer(outcome)["memory"], whole=True)

    def _reach(self, agent: str, memory_id: str, outcome: Outcome, moment: Moment) -> Memory | None:
        """Return a memory that the agent may read, or assert that the outcome denies it."""
        memory = self.memories.get(memory_id)
        there = memory.lives(moment) if memory and memory.is_readable_by(agent) else False
        if there is None:
            there = outcome != "not_found"
        if not there:
            assert outcome == "not_found"
        return memory if there else None

    def update_memory(self, agent: str, arguments: Arguments, outcome: Outcome, moment: Moment) -> None:
        """Nothing to change, not found, forbidden, a stale revision, or the changed memory."""
        changes = {name: value for name, value in arguments.items() if name not in {"memory_id", "expected_rev"}}
        if not changes:
            assert outcome == "invalid_argument"
            return
        memory = self._reach(agent, arguments["memory_id"], outcome, moment)
        if memory is None:
            self._mark_seq_unknown(agent, arguments, moment)
            return
        refusal = _refused_update(agent, memory, arguments)
        if refusal:
            assert outcome == refusal
            return
        answer = _answer(outcome)
        assert not answer["partial"]
        self._change(memory, changes, answer, moment)
        self.check_shown(memory, answer["memory"], whole=True)

    def _mark_seq_unknown(self, agent: str, arguments: Arguments, moment: Moment) -> None:
        """A memory that expired during its move to a context may or may not have taken a sequence number there."""
        memory = self.memories.get(arguments["memory_id"])
        if memory and memory.lives(moment) is None and "context" in arguments:
            self._unknown_seq.add((agent, arguments["context"] or None))

    def _next(self, agent: str, context: str | None) -> int | None:
        self._orders[agent, context] += 1
        return None if (agent, context) in self._unknown_seq else self._orders[agent, context]

    def _change(self, memory: Memory, changes: Arguments, answer: dict[str, Any], moment: Moment) -> None:
        memory.rev += 1
        if "context" in changes and (changes["context"] or None) != memory.context:
            memory.context = changes["context"] or None
            memory.seq = self._next(memory.owner, memory.context)
        if changes.get("priority", memory.priority) != memory.priority:
            memory.priority = changes["priority"]
            memory.expires_at = _expiry(answer["memory"], moment, LIFETIMES[memory.priority])
        memory.content = changes.get("content", memory.content)
        memory.visibility = changes.get("visibility", memory.visibility)
        memory.tags = tuple(dict.fromkeys(changes.get("tags", memory.tags)))
        memory.metadata = changes.get("metadata", memory.metadata) or None

    def get_agent_memories(self, agent: str, arguments: Arguments, outcome: Outcome, moment: Moment) -> None:
        """The newest of the selection, with their total."""
        if ("agent_id" in arguments and "agent_ids" in arguments) or is_backwards(arguments):
            assert outcome == "invalid_argument"
            return
        answer = _answer(outcome)
        selected = self.readable(
            agent, {**arguments, "agent_ids": arguments.get("agent_ids") or [arguments.get("agent_id", agent)]}, moment
        )
        limit = arguments.get("limit", 20)
        assert selected.allows(answer["total"]), f"{answer['total']} of {len(selected.memories)}"
        assert not answer["partial"]
        self._check_all_shown(answer["memories"])
        selected.check_listed([shown["memory_id"] for shown in answer["memories"]], limit)
        if len(selected.sure) == len(selected.memories):
            assert ("next_cursor" in answer) is (len(selected.sure) > limit)

    def semantic_search(self, agent: str, arguments: Arguments, outcome: Outcome, moment: Moment) -> None:
        """Only readable memories within the filters, and all of them that contain a word of the query."""
        if is_backwards(arguments):
            assert outcome == "invalid_argument"
            return
        selected, mode = self.readable(agent, arguments, moment), arguments.get("mode", "hybrid")
        matching = {memory.id for memory in selected.memories if memory.holds_a_word_of(arguments["query"])}
        match mode:
            case "keyword":
                selected = selected.narrowed(matching)
                assert not _answer(outcome)["partial"]
            case "hybrid":
                selected = replace(selected, sure=selected.sure & matching)
            case _:
                selected = replace(selected, sure=set())
        self._check_hits(selected, _answer(outcome), arguments.get("limit", 10))

    def find_similar_memories(self, agent: str, arguments: Arguments, outcome: Outcome, moment: Moment) -> None:
        """Only other readable memories; an error if the memory has no vector yet."""
        if outcome == "embedding_unavailable":
            assert (self.memories[arguments["memory_id"]].lives(moment)) is not False
            return
        if self._reach(agent, arguments["memory_id"], outcome, moment) is None:
            return
        if is_backwards(arguments):
            assert outcome == "invalid_argument"
            return
        selected = self.readable(agent, arguments, moment)
        others = {memory.id for memory in selected.memories} - {arguments["memory_id"]}
        self._check_hits(replace(selected.narrowed(others), sure=set()), _answer(outcome), arguments.get("limit", 10))

    def _check_hits(self, selected: Selected, answer: dict[str, Any], limit: int) -> None:
        hits = answer["hits"]
        self._check_all_shown([hit["memory"] for hit in hits])
        scores = [hit["score"] for hit in hits]
        assert scores == sorted(scores, reverse=True)
        assert all(0 <= score <= 1 for score in scores)
        selected.check_found([hit["memory"]["memory_id"] for hit in hits], limit)

    def clear_memory(self, agent: str, arguments: Arguments, outcome: Outcome, moment: Moment) -> None:
        """Only the caller's own selected memories; several only with confirmation."""
        if refusal := _refused_clear(agent, arguments):
            assert outcome == refusal
            return
        selected = self._clearable(agent, arguments, moment)
        acts = arguments.get("confirm", False) or arguments.get("dry_run", False)
        if outcome == "confirmation_needed":
            assert not acts
            assert len(selected.memories) > 1
            return
        answer = _answer(outcome)
        assert selected.allows(answer["matched"]), f"{answer['matched']} of {len(selected.memories)}"
        assert acts or answer["matched"] <= 1
        assert answer["deleted"] == (0 if arguments.get("dry_run") else answer["matched"])
        if not arguments.get("dry_run"):
            for memory in selected.memories:
                memory.removed = True if memory.id in selected.sure or "memory_ids" in arguments else None
            self.tally["deleted"] += answer["deleted"]

    def _clearable(self, agent: str, arguments: Arguments, moment: Moment) -> Selected:
        own = [memory for memory in self.memories.values() if memory.owner == agent and memory.removed is not True]
        if "memory_ids" in arguments:
            named = [memory for memory in own if memory.id in arguments["memory_ids"]]
            return Selected.by((memory, memory.removed is False or None) for memory in named)
        within = [memory for memory in own if accepts(arguments, memory)]
        if arguments.get("expired_only"):
            return Selected.by((memory, memory.has_expired(moment)) for memory in within)
        return Selected.by((memory, memory.lives(moment)) for memory in within)

    def memory_stats(self, agent: str, arguments: Arguments, outcome: Outcome, moment: Moment) -> None:
        """Counts of what the caller may read."""
        answer = _answer(outcome)
        scope: Arguments = {"include_archive": True} | (
            {"agent_ids": [arguments["agent_id"]]} if "agent_id" in arguments else {}
        )
        selected = self.readable(agent, scope, moment)
        own = selected.narrowed(memory.id for memory in selected.memories if memory.owner == agent)
        assert selected.allows(answer["total"]), f"{answer['total']} of {len(selected.memories)}"
        assert own.allows(answer["own"])
        assert answer["created_last_hour"] == answer["total"]
        assert answer["index"]["failures"] == 0
        for attribute, name in (
            ("type", "type"),
            ("priority", "priority"),
            ("visibility", "visibility"),
            ("owner", "agent"),
        ):
            _check_groups(selected, attribute, answer[f"by_{name}"])
        lapsed = Selected.by(
            (memory, memory.has_expired(moment))
            for memory in self.memories.values()
            if memory.is_readable_by(agent) and accepts(scope, memory)
        )
        assert lapsed.allows(answer["retention"]["expired"])
        self.tally["expired"] = max(self.tally["expired"], answer["retention"]["expired"])

    def batch_operations(self, agent: str, arguments: Arguments, outcome: Outcome, moment: Moment) -> None:
        """Each operation like a separate call, in order; with stop_on_error none after a failed one."""
        results, stopped = _answer(outcome)["results"], False
        assert len(results) == len(arguments["operations"])
        for operation, result in zip(arguments["operations"], results, strict=True):
            code = None if result["ok"] else result["error"]["code"]
            if stopped:
                assert code == "skipped"
                continue
            rest = {name: value for name, value in operation.items() if name != "op"}
            self.check(agent, operation["op"], rest, code or result["result"], moment)
            stopped = arguments.get("stop_on_error", False) and not result["ok"]

    def _check_all_shown(self, shown: Iterable[dict[str, Any]]) -> None:
        for memory in shown:
            self.check_shown(self.memories[memory["memory_id"]], memory, whole=False)

    def check_shown(self, memory: Memory, shown: dict[str, Any], *, whole: bool) -> None:
        """A memory is shown with its current fields; a long one, unless whole, by one of its chunks."""
        seq = shown.get("seq") if memory.seq is None or shown["trust"] not in {"own", "received"} else memory.seq
        expected = {
            "memory_id": memory.id, "memory_type": memory.type, "priority": memory.priority,
            "visibility": memory.visibility, "writer": memory.owner, "tags": list(memory.tags),
            "context": memory.context, "source": memory.source, "metadata": memory.metadata,
            "rev": memory.rev, "seq": seq, "pieces": len(memory.pieces),
        }  # fmt: skip
        wrong = {name: shown.get(name) for name, value in expected.items() if shown.get(name) != value}
        assert not wrong, f"shown {wrong} of {memory}"
        assert shown["content"] == memory.content if whole else shown["content"] in memory.pieces
        assert memory.occurred.holds(seconds_of(shown["occurred_at"]))
        expires_at = seconds_of(shown["expires_at"]) if "expires_at" in shown else inf
        assert expires_at == memory.expires_at
        assert shown["created_at"] <= shown["updated_at"]


def _answer(outcome: Outcome) -> dict[str, Any]:
    assert not isinstance(outcome, str), f"refused: {outcome}"
    return outcome


def _expiry(shown: dict[str, Any], moment: Moment, lifetime: float) -> float:
    """Return the expiry shown, which must be one lifetime after the moment."""
    if lifetime == inf:
        assert "expires_at" not in shown
        return inf
    expires_at = seconds_of(shown["expires_at"])
    assert moment.holds(expires_at, lifetime)
    return expires_at


def _refused_store(agent: str, arguments: Arguments) -> str | None:
    if arguments.get("agent_id", agent) != agent:
        return "forbidden"
    if arguments.get("sensitive") and arguments.get("visibility") == "public":
        return "invalid_argument"
    return None if arguments["content"].strip() else "invalid_argument"


def _refused_update(agent: str, memory: Memory, arguments: Arguments) -> str | None:
    if memory.owner != agent:
        return "forbidden"
    if arguments.get("expected_rev", memory.rev) != memory.rev:
        return "conflict"
    return None if arguments.get("content", "-").strip() else "invalid_argument"


def _refused_clear(agent: str, arguments: Arguments) -> str | None:
    filters = {name for name in FILTERS if arguments.get(name)} - {"tag_match", "include_archive"}
    chosen = bool(filters) or arguments.get("expired_only", False)
    if chosen == bool(arguments.get("memory_ids")):
        return "invalid_argument"
    if any(name != agent for name in arguments.get("agent_ids") or ()):
        return "forbidden"
    return "invalid_argument" if is_backwards(arguments) else None


def _check_groups(selected: Selected, attribute: str, counts: dict[str, int]) -> None:
    values = {getattr(memory, attribute) for memory in selected.memories} | set(counts)
    for value in values:
        group = selected.narrowed(memory.id for memory in selected.memories if getattr(memory, attribute) == value)
        assert group.allows(counts.get(value, 0)), f"{counts.get(value, 0)} of {attribute} {value}"
