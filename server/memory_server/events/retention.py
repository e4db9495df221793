"""Drops old events. Agents have equal shares of the stream, so a busy agent drops only its own events."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from memory_core.records import redis_time
from memory_core.records.keys import Keys
from memory_core.records.scope import PUBLIC
from memory_core.slices import slices
from memory_server.engine.damage import discard
from memory_server.engine.redis_backend import Backend
from memory_server.events.entries import LOST, MEMORY, EventEntry, Position, parse_entries

KEPT = 10_000
"""Events kept of a namespace."""
_TRIMMED_FROM = KEPT + KEPT // 4
_MOST = 100_000
"""The Functions keep no more even if nothing is swept."""
_PAGE = 500
_LOSS_SECONDS = 30 * 86_400
"""As long as the cursor of an agent is kept."""
_START = "-"


@dataclass(slots=True)
class _Stream:
    """The positions of all events by the agent or owner that caused them, and those of earlier losses by whom they
    concern."""

    by_cause: defaultdict[str, list[EventEntry]] = field(default_factory=lambda: defaultdict(list))
    losses: dict[str, EventEntry] = field(default_factory=dict[str, EventEntry])
    length: int = 0


async def trim_events(backend: Backend, namespace: str, kept: int = KEPT, trimmed_from: int = _TRIMMED_FROM) -> int:
    """Drop the oldest events of the agents that have most of them; return how many."""
    key = Keys(namespace).events
    if await backend.read(lambda client: client.xlen(key)) <= trimmed_from:
        return 0
    stream = await _read(backend, key)
    share = _share([len(entries) for entries in stream.by_cause.values()], kept)
    dropped = [entry for entries in stream.by_cause.values() for entry in entries[: max(len(entries) - share, 0)]]
    last: dict[str, Position] = {}
    for entry in dropped:
        for concerned in _concerned(entry):
            last[concerned] = max(last.get(concerned, entry.position), entry.position)
    if stream.length >= _MOST:
        last[PUBLIC] = max(entries[0].position for entries in stream.by_cause.values())
    outdated = [entry for concerned, entry in stream.losses.items() if concerned in last or _is_old(entry)]
    losses = [_loss(concerned, position) for concerned, position in last.items()]
    await _drop(backend, key, [entry.position.id for entry in (*dropped, *outdated)], losses)
    return len(dropped)


async def _read(backend: Backend, key: str) -> _Stream:
    stream, start = _Stream(), _START
    while True:
        page = await backend.read(lambda client, start=start: client.xrange(key, min=start, count=_PAGE))
        entries = parse_entries(page)
        if len(entries) < len(page):
            good = {entry.position.id for entry in entries}
            await discard(backend, key, [entry for entry, _ in page if entry.decode() not in good], "a malformed event")
        for entry in entries:
            if entry.kind == LOST:
                stream.losses[next(iter(entry.to | entry.scope), "")] = entry
            else:
                stream.by_cause[_cause(entry)].append(entry)
        stream.length += len(page)
        if len(page) < _PAGE:
            return stream
        start = f"({page[-1][0].decode()}"


def _cause(entry: EventEntry) -> str:
    """Who caused an event: an agent, the owner of an embedded memory, or the submitter of a task."""
    return entry.by or _owner(entry.scope) or min(entry.to, default=entry.subject)


def _concerned(entry: EventEntry) -> Iterable[str]:
    """Whom a loss concerns: the addressed agents, the readers of an owner, or all."""
    if entry.kind != MEMORY:
        return entry.to or (PUBLIC,)
    return (PUBLIC if PUBLIC in entry.scope else _owner(entry.scope),)


def _owner(scope: frozenset[str]) -> str:
    return next((token for token in scope if token.startswith("o:")), "")


def _share(numbers: Sequence[int], kept: int) -> int:
    """The most that each may keep, so that all together keep no more than `kept`."""
    share, left = 0, kept
    for position, number in enumerate(sorted(numbers)):
        share = left // (len(numbers) - position)
        if number > share:
            return share
        left -= number
    return max(numbers, default=0)


def _loss(concerned: str, position: Position) -> dict[str, Any]:
    is_scope = concerned == PUBLIC or ":" in concerned
    return {"id": position.id, "scope": concerned if is_scope else "", "to": "" if is_scope else concerned}


def _is_old(entry: EventEntry) -> bool:
    return entry.position.milliseconds < (redis_time.now() - _LOSS_SECONDS) * 1000


async def _drop(backend: Backend, key: str, ids: Sequence[str], losses: Sequence[dict[str, Any]]) -> None:
    """Drop events in slices; the losses are written first."""
    for position, part in enumerate(slices(ids, _PAGE)):
        lost = losses if not position else []
        await backend.write("rm1_drop_events", [key], repeatable=True, drop=part, lost=lost)
