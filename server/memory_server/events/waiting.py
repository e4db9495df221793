"""Waiting for events: returns those after a cursor, or waits for the next ones until the time runs out.

All entries are checked against current permissions. None is lost: a call first starts to listen, then reads the
stream to its end, then takes the later entries from the hub.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, cast

from memory_core.errors import EmbeddingUnavailable, InvalidArgument
from memory_core.records import owners
from memory_core.records.damage import or_none
from memory_core.records.keys import Keys, digest
from memory_core.records.memory import Record
from memory_core.records.model import Model
from memory_core.records.names import SEPARATOR
from memory_core.records.scope import Principal
from memory_core.records.times import to_iso
from memory_core.records.vectors import Matrix
from memory_core.redis_client import Client
from memory_server.contract.answer import most_fitting
from memory_server.contract.arguments import WaitArguments
from memory_server.contract.events import Event, EventKind, EventsAnswer
from memory_server.contract.tokens import DEFAULT_MAX_TOKENS
from memory_server.contract.validation import check_text
from memory_server.engine.principals import resolve
from memory_server.engine.redis_backend import Backend
from memory_server.engine.request_context import Caller, RequestContext
from memory_server.events.entries import (
    DELETED,
    KINDS,
    LOST,
    MEMORY,
    START,
    EventEntry,
    Position,
    parse_entries,
    read_cursor,
)
from memory_server.events.listeners import Audience, Waiter
from memory_server.events.matching import is_match, lowest_cosine, score_records
from memory_server.events.services import EventServices
from memory_server.events.wording import Subjects, load_subjects
from memory_server.index import loader
from memory_server.index.loader import Ref
from memory_server.search.ranking import ScoredRecord

_MATCH = "match"
_MAX_EVENTS = 50
_MOST_TOKENS = DEFAULT_MAX_TOKENS - 200
"""Events of one answer, and the tokens that they take at most."""
_MAX_UNREAD = 100
_PAGE = 1000
_SNIPPET = 160
_Raw = tuple[bytes, dict[bytes, bytes]]
_DROPPED = "events between the cursor and the first one here were dropped; check what you depend on"
_CLOSING = "the server is stopping; call again with the cursor"


async def wait_for_events(service: EventServices, request: RequestContext, args: WaitArguments) -> EventsAnswer:
    """Return the events after the cursor: at once if there are any, else as soon as one happens.

    Raises:
        InvalidArgument: the cursor or the kinds are not valid.
        EmbeddingUnavailable: only matches are requested, and no sidecar embedded the query.
        StoreUnavailable: Redis does not answer. QuotaExceeded: the agent waits too often at a time.
    """
    caller = request.caller
    deadline = time.monotonic() + args.timeout_seconds
    sent = None if args.cursor is None else read_cursor(args.cursor)
    kinds = _kinds(args)
    model = await service.models.current(caller.namespace)
    vector, reason = await _query_vector(service, caller, args.query, model, kinds)
    end, quiet, since, registered = await _end(service.backend, caller)
    own = await _own_position(service, caller, registered)
    begin = sent or own or end
    waiter = Waiter(caller.agent, kinds, vector, lowest_cosine(args.min_score), model, since)
    listening = service.events.listening(caller.namespace, waiter, end)
    with listening if args.timeout_seconds else nullcontext(Audience(end)) as audience:
        wait = _Wait(service, request, waiter, audience, begin, text=args.query or "", min_score=args.min_score)
        events = await wait.catch_up()
        while not events and args.timeout_seconds and not waiter.closed and await _woken(request, waiter, deadline):
            events = await (wait.catch_up() if waiter.overflown else wait.consider(waiter.queue))
    problem = _DROPPED if wait.has_gap else _CLOSING if not events and waiter.closed else None
    reason = "; ".join(filter(None, [problem, reason])) or None
    cursor = wait.returned if events else max(begin, quiet)
    service.positions.note(caller.namespace, caller.agent, max(own or cursor, cursor))  # never backwards
    return EventsAnswer(events=events, cursor=cursor.id, more=wait.has_more, partial=reason is not None, reason=reason)


async def unread(service: EventServices, request: RequestContext) -> int:
    """Count the events that `wait_for_events` without a cursor gives the caller now, at most 100.

    A caller that is not registered and never waited gets a position here, so that later events count.
    """
    caller = request.caller
    end, quiet, since, registered = await _end(service.backend, caller)
    begin = await _own_position(service, caller, registered)
    if begin is None:
        service.positions.note(caller.namespace, caller.agent, quiet)
        return 0
    wait = _Wait(service, request, Waiter(caller.agent, KINDS, since=since), Audience(end), begin)
    found = 0
    while found < _MAX_UNREAD and (events := await wait.catch_up()):
        found += len(events)
    return min(found, _MAX_UNREAD)


async def _own_position(service: EventServices, caller: Caller, registered: Position | None) -> Position | None:
    """Return where the agent's last call ended; for a first call its registration, None without one.

    All sessions of an agent share the position: an event goes to the first of them that asks without a cursor.
    """
    cursor = await service.positions.get(caller.namespace, caller.agent)
    return read_cursor(cursor) if cursor else registered


async def _woken(request: RequestContext, waiter: Waiter, deadline: float) -> bool:
    """Wait for an event without the admission slot; False if the time ran out."""
    async with request.waiting():
        return await waiter.wait(deadline - time.monotonic())


async def last_position(backend: Backend, namespace: str) -> Position:
    key = Keys(namespace).events
    newest = await backend.read(lambda client: client.xrevrange(key, count=1))
    return Position.of(newest[0][0]) if newest else START


async def _end(backend: Backend, caller: Caller) -> tuple[Position, Position, float, Position | None]:
    """Return the end of the stream, a position up to which no entry will be added, since when the name is held, and the
    position of the agent's registration.

    The second position comes from the clock: a cursor at the last entry would reveal when other agents are active.
    """
    keys = Keys(caller.namespace)

    async def fetch(client: Client) -> list[Any]:
        pipe = client.pipeline(transaction=False)
        pipe.time()
        pipe.xrevrange(keys.events, count=1)
        pipe.hmget(keys.agent(caller.agent), owners.FIELDS)
        pipe.hget(keys.agent(caller.agent), "registered_at")
        return await pipe.execute()

    (seconds, microseconds), newest, row, registered_at = await backend.read(fetch)
    since = float(owners.read(backend.integrity, caller.namespace, caller.agent, row).since or 0)
    end = Position.of(newest[0][0]) if newest else START
    past = Position(seconds * 1000 + microseconds // 1000 - 1, 0)
    first = or_none(lambda: float(registered_at)) if registered_at else None
    return end, max(end, past), since, Position(int(max(first, since) * 1000), 0) if first else None


async def readable(
    backend: Backend, request: RequestContext, principal: Principal, entries: Sequence[EventEntry]
) -> list[EventEntry]:
    """Keep the entries that a principal may see now, and deletions of memories that it could read."""
    return (await _readable(backend, request, principal, entries))[0]


async def _readable(
    backend: Backend, request: RequestContext, principal: Principal, entries: Sequence[EventEntry]
) -> tuple[list[EventEntry], list[Record]]:
    """Like `readable`, with the memories."""

    def may_see(entry: EventEntry) -> bool:
        if entry.kind != MEMORY:
            return entry.is_for(principal.agent)
        if entry.op != DELETED:
            return principal.may_read(entry.scope)
        until = (entry.position.milliseconds + 1) / 1000
        return entry.by not in principal.mistrusted and principal.could_read(entry.scope, until)

    allowed = [entry for entry in entries if may_see(entry)]
    ids = {entry.subject for entry in allowed if entry.kind == MEMORY and entry.op != DELETED}
    records = await _load(backend, request, principal, [Ref(memory_id) for memory_id in ids])
    living = {record.id for record in records}
    return [
        entry for entry in allowed if entry.kind != MEMORY or entry.op == DELETED or entry.subject in living
    ], records


@dataclass(slots=True)
class _Wait:
    """One call: `begin` is its cursor, `position` the last entry considered, `returned` the last one returned."""

    service: EventServices
    request: RequestContext
    waiter: Waiter
    audience: Audience
    begin: Position
    text: str = ""
    min_score: float | None = None
    position: Position = field(init=False)
    returned: Position = START
    has_gap: bool = False
    has_more: bool = False

    def __post_init__(self) -> None:
        self.position = self.begin

    async def catch_up(self) -> list[Event]:
        """Read the stream from the position until there is an event to return, or to its end."""
        self.waiter.overflown = False
        if self.waiter.is_stale:
            await self._principal()
        while True:
            page = await self._read_page()
            entries = parse_entries(page)
            await self._note_gap([entry for entry in entries if entry.kind == LOST and entry.lost_to > self.begin])
            events = await self.consider(deque(entries))
            if events or len(page) < _PAGE:
                self.has_more = self.has_more or (len(events) >= _MAX_EVENTS // 2 and len(page) == _PAGE)
                return events
            self.position = max(self.position, Position.of(page[-1][0]))

    async def consider(self, entries: deque[EventEntry]) -> list[Event]:
        """Take entries until there are events to return. The others come after the cursor, for the next call."""
        limit = _MAX_EVENTS if self.waiter.query is None else _MAX_EVENTS // 2
        while entries:
            chunk: list[EventEntry] = []
            while entries and len(chunk) < limit:
                entry = entries.popleft()
                if entry.position > self.position:
                    self.position = entry.position
                    self.waiter.doubt(entry)
                    if self.waiter.concerns(entry):
                        chunk.append(entry)
            if chunk and (found := await self._events(chunk)):
                events = self._fitting(found)
                is_cut = len(events) < len(found)
                self.has_more = is_cut or any(self.waiter.concerns(entry) for entry in entries)
                return events
        return []

    def _fitting(self, found: Sequence[tuple[Position, Event]]) -> list[Event]:
        """Return the first events, as many as an answer can hold. The next call begins with those left out.

        The events of one entry stay together.
        """
        events = [event for _, event in found]

        def tokens_of(number: int) -> int:
            return EventsAnswer(events=events[:number], cursor="").tokens(_MOST_TOKENS)

        number = most_fitting(len(events), _MOST_TOKENS, tokens_of)
        ends = [end for end in range(1, len(found)) if found[end - 1][0] != found[end][0]] + [len(found)]
        end = max([end for end in ends if end <= number], default=ends[0])
        self.returned = found[end - 1][0]
        if end < len(found):
            self.position = self.returned
        return events[:end]

    async def _events(self, entries: Sequence[EventEntry]) -> list[tuple[Position, Event]]:
        """Build events of the entries that the caller may see now. Entries addressed by name need no lookup."""
        if all(entry.kind != MEMORY for entry in entries):
            subjects = await self._subjects(entries, [])
            return [(entry.position, event_of(entry, subjects)) for entry in entries]
        with self.service.inflight_reads.reading(self.request.caller.namespace, self.request.caller.agent):
            principal = await self._principal()
            news = [entry for entry in entries if entry.is_news and entry.kind in self.waiter.kinds]
            shown, records = await _readable(self.service.backend, self.request, principal, news)
            allowed = {entry.position for entry in shown}
            matches = await self._matches(principal, entries)
            subjects = await self._subjects(shown, records)
        events: list[tuple[Position, Event]] = []
        for entry in entries:
            if entry.position in allowed:
                events.append((entry.position, event_of(entry, subjects)))
            if entry.position in matches:
                events.append((entry.position, _match(entry, subjects, *matches[entry.position])))
        return events

    async def _subjects(self, entries: Sequence[EventEntry], records: Sequence[Record]) -> Subjects:
        """Load what the events are about."""
        keys, agent, since = Keys(self.request.caller.namespace), self.request.caller.agent, self.waiter.since
        return await self.service.backend.read(
            lambda client: load_subjects(client, keys, agent, since, entries, records)
        )

    async def _matches(
        self, principal: Principal, entries: Sequence[EventEntry]
    ) -> dict[Position, tuple[Record, float]]:
        """Find the entries whose chunk is the first of its memory that matches the query, each with the best chunk."""
        if self.waiter.query is None:
            return {}
        candidates = {
            Ref(entry.subject, entry.piece): entry
            for entry in entries
            if entry.kind == MEMORY and entry.has_vector and principal.may_read(entry.scope)
        }
        records = await self._load_with_vectors(principal, list(candidates))
        others = [record for record in records if record.vector and not self._is_own(record, candidates)]
        matching: defaultdict[str, list[ScoredRecord]] = defaultdict(list)
        for scored in await self._scored(principal, others):
            if is_match(scored, self.min_score):
                matching[scored.record.id].append(scored)
        found: dict[Position, tuple[Record, float]] = {}
        for memory_id, chunks in matching.items():
            best = max(chunks, key=lambda one: one.score)
            first = min(candidates[Ref(memory_id, one.record.part)].position for one in chunks)
            if self.service.matches.is_first(self._question, memory_id, best.record.rev, first):
                found[first] = best.record, best.score
        return found

    @property
    def _question(self) -> str:
        """Identifies the standing query of its agent."""
        caller = self.request.caller
        return digest(SEPARATOR.join([caller.namespace, caller.agent, str(self.min_score), self.text]))

    def _is_own(self, record: Record, candidates: Mapping[Ref, EventEntry]) -> bool:
        """Whether a vector that arrived is of a memory that the caller stored."""
        by = candidates[Ref(record.id, record.part)].by
        return not by and record.rev == 1 and record.writer == self.request.caller.agent

    async def _scored(self, principal: Principal, records: Sequence[Record]) -> list[ScoredRecord]:
        query, model = self.waiter.query, self.waiter.model
        if query is None or model is None or not records:
            return []
        return await score_records(self.service, self.request, principal, self.text, query, model, records)

    async def _load_with_vectors(self, principal: Principal, refs: Sequence[Ref]) -> list[Record]:
        """Load chunks with vectors of the query's model. If the model has changed, embed the query again first."""
        service = self.service
        loaded = await _load(service.backend, self.request, principal, refs, self.waiter.model)
        if any(record.vector is None and not record.is_sensitive for record in loaded):
            model = (await service.models.get(principal.namespace, afresh=True)).current
        else:
            model = await service.models.current(principal.namespace)
        if loaded and model != self.waiter.model:
            with suppress(EmbeddingUnavailable):
                (query,) = await service.embeddings.embed([self.text], self.request.caller, model=model)
                self.audience.ask(self.waiter, query, model)
                loaded = await _load(service.backend, self.request, principal, refs, model)
        return (await service.vault.open_all(principal.namespace, loaded)).records

    async def _principal(self) -> Principal:
        doubts = self.waiter.doubts
        principal = await resolve(self.service.backend, self.request)
        self.audience.trust(self.waiter, principal.tokens, doubts)
        return principal

    async def _note_gap(self, losses: Sequence[EventEntry]) -> None:
        """Note whether the caller could have seen one of the events that were dropped."""
        if losses and not self.has_gap:
            principal = await self._principal()
            self.has_gap = any(principal.agent in loss.to or principal.may_read_some(loss.scope) for loss in losses)

    async def _read_page(self) -> list[_Raw]:
        """Read the next page of the stream."""
        key = Keys(self.request.caller.namespace).events
        return await self.service.backend.read(
            lambda client: client.xrange(key, min=f"({self.position.id}", count=_PAGE)
        )


async def _load(
    backend: Backend, request: RequestContext, principal: Principal, refs: Sequence[Ref], model: Model | None = None
) -> list[Record]:
    """Load the chunks that are live and readable."""
    if not refs:
        return []
    keys, integrity = Keys(principal.namespace), backend.integrity
    return await backend.read(
        lambda client: loader.load_readable(client, keys, refs, request, principal, integrity, model=model)
    )


def event_of(entry: EventEntry, subjects: Subjects | None = None) -> Event:
    return Event(
        kind=cast(EventKind, entry.kind),
        op=entry.op,
        id=entry.subject,
        by=entry.by or None,
        at=to_iso(entry.position.milliseconds / 1000) or "",
        what=subjects.say(entry) if subjects else "",
        uri=None if entry.op == DELETED else entry.uri,
    )


def _match(entry: EventEntry, subjects: Subjects, record: Record, score: float) -> Event:
    details = {
        "by": entry.by or record.writer,
        "what": subjects.say_match(entry, record.writer),
        "score": round(score, 4),
        "snippet": " ".join(record.content.split())[:_SNIPPET],
        "kind": _MATCH,
    }
    return event_of(entry).model_copy(update=details)


def _kinds(args: WaitArguments) -> frozenset[str]:
    if args.query is not None:
        return frozenset(args.kinds or KINDS) | {_MATCH}
    if _MATCH in (args.kinds or ()):
        raise InvalidArgument("kinds has match, but there is no query", hint="give query, or leave match out")
    return frozenset(args.kinds or KINDS)


async def _query_vector(
    service: EventServices, caller: Caller, query: str | None, model: Model, kinds: frozenset[str]
) -> tuple[Matrix | None, str | None]:
    """Embed the standing query; without a sidecar, return why the call waits for other kinds only."""
    if query is None:
        return None, None
    check_text(query, "query", service.settings.limits.query_bytes)
    try:
        return (await service.embeddings.embed([query], caller, model=model))[0], None
    except EmbeddingUnavailable as error:
        if kinds == frozenset({_MATCH}):
            raise
        return None, f"the query was not matched: {error.message}"
