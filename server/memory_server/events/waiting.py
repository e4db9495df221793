"""Waits for events: those after a cursor, then those that happen until the time runs out.

Entries of the hub and of the stream are checked against current permissions before they are returned. No entry is
lost in between: a call first listens, then reads the stream to its end, then takes the later entries of the hub.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any, cast

from memory_core.errors import EmbeddingUnavailable, InvalidArgument
from memory_core.records.keys import Keys
from memory_core.records.memory import Record
from memory_core.records.model import Model
from memory_core.records.scope import Principal
from memory_core.records.vectors import Matrix
from memory_core.redis_client import Client
from memory_core.store.streams import BadMessage
from memory_server.contract.arguments import WaitArguments
from memory_server.contract.events import Event, EventKind, EventsAnswer
from memory_server.contract.validation import check_text
from memory_server.engine.backend import Backend
from memory_server.engine.principals import resolve
from memory_server.engine.request import Caller, RequestContext
from memory_server.events.audience import Audience
from memory_server.events.entries import AGENT, DELETED, GRANT, MEMORY, START, TASK, Entry, Position, read_cursor
from memory_server.events.listeners import Waiter
from memory_server.events.services import EventServices
from memory_server.index import loader
from memory_server.index.loader import Ref
from memory_server.search.ranking import vector_scores

MATCH = "match"
KINDS: tuple[EventKind, ...] = ("task", "memory", "grant", "agent", "match")
MOST_EVENTS = 100
_PAGE = 1000
_SNIPPET = 160
_DROPPED = "events between the cursor and the first one here were dropped; look at what you depend on"
_Raw = tuple[bytes, dict[bytes, bytes]]
_CLOSING = "the server is stopping; call again with the cursor"


async def wait_for_events(service: EventServices, request: RequestContext, args: WaitArguments) -> EventsAnswer:
    """Return the events after the cursor: at once if there are any, else as soon as one happens.

    Raises:
        InvalidArgument: the cursor or the kinds are not valid.
        EmbeddingUnavailable: matches alone are wanted, and no sidecar gave the query's vector.
        StoreUnavailable: Redis does not answer.
    """
    deadline = time.monotonic() + args.timeout_seconds
    begin = None if args.cursor is None else read_cursor(args.cursor)
    kinds = _kinds(args)
    model = await service.models.current(request.caller.namespace)
    vector, reason = await _query_vector(service, request.caller, args.query, model, kinds)
    if begin:
        service.positions.note(request.caller.namespace, request.caller.agent, begin)
    end, quiet = await _end(service.backend, request.caller.namespace)
    waiter = Waiter(request.caller.agent, kinds, vector, args.min_score, model)
    wait = _Wait(service, request, waiter, begin or end, text=args.query or "")
    offering = (
        service.events.listening(request.caller.namespace, waiter, end) if args.timeout_seconds else nullcontext()
    )
    with offering as audience:
        events = await wait.catch_up(audience)
        while not events and audience and not waiter.closed and await _woken(request, waiter, deadline):
            events = await (wait.catch_up(audience) if waiter.overflown else wait.consider(waiter.queue, audience))
    if not wait.whole:
        reason = _DROPPED if reason is None else f"{_DROPPED}; {reason}"
    elif not events and waiter.closed:
        reason = _CLOSING if reason is None else f"{_CLOSING}; {reason}"
    cursor = wait.returned if events else max(begin or quiet, quiet)
    service.positions.note(request.caller.namespace, request.caller.agent, cursor)
    return EventsAnswer(events=events, cursor=cursor.id, partial=reason is not None, reason=reason)


async def unread(service: EventServices, request: RequestContext, cursor: str | None = None) -> int:
    """Count the events after a cursor that the caller may see, at most 100.

    Without a cursor it counts from the one the caller presented or was given last. An agent that has none gets
    one here, so that later events count.
    """
    cursor = cursor or await service.positions.get(request.caller.namespace, request.caller.agent)
    if cursor is None:
        service.positions.note(
            request.caller.namespace,
            request.caller.agent,
            await last_position(service.backend, request.caller.namespace),
        )
        return 0
    waiter = Waiter(request.caller.agent, frozenset({MEMORY, TASK, GRANT, AGENT}))
    wait = _Wait(service, request, waiter, read_cursor(cursor))
    found = 0
    while found < MOST_EVENTS and (events := await wait.catch_up(None)):
        found += len(events)
    return min(found, MOST_EVENTS)


async def _woken(request: RequestContext, waiter: Waiter, deadline: float) -> bool:
    """Wait for an event, without an admission slot; False if the time ran out."""
    with request.without_slot():
        return await waiter.wait(deadline - time.monotonic())


async def last_position(backend: Backend, namespace: str) -> Position:
    """Find the end of a namespace's stream."""
    key = Keys(namespace).events
    newest = await backend.read(lambda client: client.xrevrange(key, count=1))
    return Position.of(newest[0][0]) if newest else START


async def _end(backend: Backend, namespace: str) -> tuple[Position, Position]:
    """Find the end of a namespace's stream, and a position up to which nothing will be added to it.

    The second comes from the clock: a cursor at the last entry would reveal when other agents did something.
    """
    key = Keys(namespace).events

    async def fetch(client: Client) -> list[Any]:
        pipe = client.pipeline(transaction=False)
        pipe.time()
        pipe.xrevrange(key, count=1)
        return await pipe.execute()

    (seconds, microseconds), newest = await backend.read(fetch)
    end = Position.of(newest[0][0]) if newest else START
    past = Position(seconds * 1000 + microseconds // 1000 - 1, 0)
    return end, max(end, past)


async def readable(
    backend: Backend, request: RequestContext, principal: Principal, entries: Sequence[Entry]
) -> list[Entry]:
    """Keep the entries that a principal may see now; of deleted memories, those it could read."""
    allowed = [
        entry
        for entry in entries
        if (principal.may_read(entry.scope) if entry.kind == MEMORY else entry.is_for(principal.agent))
        and not (entry.op == DELETED and entry.by in principal.mistrusted)
    ]
    ids = {entry.subject for entry in allowed if entry.kind == MEMORY and entry.op != DELETED}
    records = await _load(backend, request, principal, [Ref(memory_id) for memory_id in ids])
    living = {record.id for record in records}
    return [entry for entry in allowed if entry.kind != MEMORY or entry.op == DELETED or entry.subject in living]


@dataclass(slots=True)
class _Wait:
    """One call under way: the positions up to which entries were considered and returned, and whether any were lost."""

    service: EventServices
    request: RequestContext
    waiter: Waiter
    position: Position
    returned: Position = START
    whole: bool = True
    text: str = ""

    async def catch_up(self, audience: Audience | None) -> list[Event]:
        """Read the stream on from the position until there is an event to return, or it ends."""
        self.waiter.overflown = False
        if self.waiter.is_stale:
            await self._principal(audience)
        while True:
            page, oldest = await self._read_page()
            if oldest > self.position and await self._was_trimmed():
                self.whole = False
            events = await self.consider(deque(_parse(page)), audience)
            if events or len(page) < _PAGE:
                return events
            self.position = max(self.position, Position.of(page[-1][0]))

    async def consider(self, entries: deque[Entry], audience: Audience | None) -> list[Event]:
        """Take entries until there are events to return; the rest is after the cursor, for the next call."""
        most = MOST_EVENTS if self.waiter.query is None else MOST_EVENTS // 2
        while entries:
            chunk: list[Entry] = []
            while entries and len(chunk) < most:
                entry = entries.popleft()
                if entry.position > self.position:
                    self.position = entry.position
                    self.waiter.notice(entry)
                    if self.waiter.concerns(entry):
                        chunk.append(entry)
            if chunk and (events := await self._tell(chunk, audience)):
                return events
        return []

    async def _tell(self, entries: Sequence[Entry], audience: Audience | None) -> list[Event]:
        """Make events of the entries that the caller may see now. Entries addressed by name need no look-up."""
        if all(entry.kind != MEMORY for entry in entries):
            self.returned = entries[-1].position
            return [event_of(entry) for entry in entries]
        with self.service.inflight_reads.reading(self.request.caller.namespace, self.request.caller.agent):
            principal = await self._principal(audience)
            wanted = [entry for entry in entries if entry.is_news and entry.kind in self.waiter.kinds]
            shown = {entry.position for entry in await readable(self.service.backend, self.request, principal, wanted)}
            matches = await self._matches(principal, entries, audience)
        events: list[Event] = []
        for entry in entries:
            if entry.position in shown:
                events.append(event_of(entry))
            if entry.position in matches:
                events.append(_match(entry, *matches[entry.position]))
            if entry.position in shown or entry.position in matches:
                self.returned = entry.position
        return events

    async def _matches(
        self, principal: Principal, entries: Sequence[Entry], audience: Audience | None
    ) -> dict[Position, tuple[Record, float]]:
        """Find the entries whose piece is close to the standing query, each memory once by its best piece."""
        if self.waiter.query is None:
            return {}
        asked = {
            Ref(entry.subject, entry.piece): entry
            for entry in entries
            if entry.kind == MEMORY and entry.has_vector and principal.may_read(entry.scope)
        }
        records = await self._embedded(principal, list(asked), audience)
        query = self.waiter.query
        best: dict[str, tuple[float, Record]] = {}
        for record, score in zip(records, vector_scores(records, query), strict=True):
            own = (
                not asked[Ref(record.id, record.part)].by
                and record.rev == 1
                and record.writer == self.request.caller.agent
            )
            known = best.get(record.id, (self.waiter.min_score, None))
            if score is not None and not own and (score > known[0] or (known[1] is None and score == known[0])):
                best[record.id] = score, record
        return {asked[Ref(record.id, record.part)].position: (record, score) for score, record in best.values()}

    async def _embedded(self, principal: Principal, refs: Sequence[Ref], audience: Audience | None) -> list[Record]:
        """Load pieces with vectors of the query's model. Where one lacks that, another model may answer by now, which
        the query is then embedded by.
        """
        loaded = await _load(self.service.backend, self.request, principal, refs, self.waiter.model)
        if any(record.vector is None and not record.is_sensitive for record in loaded):
            model = (await self.service.models.get(principal.namespace, afresh=True)).current
        else:
            model = await self.service.models.current(principal.namespace)
        if loaded and model != self.waiter.model:
            with suppress(EmbeddingUnavailable):
                (query,) = await self.service.embeddings.embed([self.text], self.request.caller, model=model)
                (audience or Audience(self.position)).ask(self.waiter, query, model)
                loaded = await _load(self.service.backend, self.request, principal, refs, model)
        return (await self.service.vault.open_all(principal.namespace, loaded)).records

    async def _principal(self, audience: Audience | None) -> Principal:
        doubts = self.waiter.doubts
        principal = await resolve(self.service.backend, self.request)
        if audience is None:
            self.waiter.trust(principal.tokens, doubts)
        else:
            audience.trust(self.waiter, principal.tokens, doubts)
        return principal

    async def _read_page(self) -> tuple[list[_Raw], Position]:
        """Read on in the stream; gives the oldest position that it still holds too."""
        key = Keys(self.request.caller.namespace).events

        async def fetch(client: Client) -> list[list[_Raw]]:
            pipe = client.pipeline(transaction=False)
            pipe.xrange(key, min=f"({self.position.id}", count=_PAGE)
            pipe.xrange(key, count=1)
            return await pipe.execute()

        page, oldest = await self.service.backend.read(fetch)
        return page, Position.of(oldest[0][0]) if oldest else START

    async def _was_trimmed(self) -> bool:
        """Whether entries were trimmed from the stream."""
        key = Keys(self.request.caller.namespace).events
        state = await self.service.backend.read(lambda client: client.xinfo_stream(key))
        return int(state["entries-added"]) > int(state["length"])


def _parse(page: Sequence[_Raw]) -> list[Entry]:
    parsed: list[Entry] = []
    for entry, fields in page:
        with suppress(BadMessage):
            parsed.append(Entry.parse(entry, fields))
    return parsed


async def _load(
    backend: Backend,
    request: RequestContext,
    principal: Principal,
    refs: Sequence[Ref],
    model: Model | None = None,
) -> list[Record]:
    """Load what is live and readable of some pieces."""
    if not refs:
        return []
    keys = Keys(principal.namespace)

    async def fetch(client: Client) -> list[Record]:
        return await loader.load_readable(client, keys, refs, request, principal, backend.integrity, model=model)

    return await backend.read(fetch)


def event_of(entry: Entry) -> Event:
    """Make the event of an entry."""
    return Event(
        kind=cast(EventKind, entry.kind),
        op=entry.op,
        id=entry.subject,
        by=entry.by or None,
        at=entry.position.at,
        uri=None if entry.op == DELETED else entry.uri,
    )


def _match(entry: Entry, record: Record, score: float) -> Event:
    snippet = " ".join(record.content.split())[:_SNIPPET]
    details = {"by": entry.by or record.writer, "score": round(score, 4), "snippet": snippet, "kind": MATCH}
    return event_of(entry).model_copy(update=details)


def _kinds(args: WaitArguments) -> frozenset[str]:
    if MATCH in (args.kinds or ()) and args.query is None:
        raise InvalidArgument("kinds has match, and there is no query to match", hint="give query, or leave match out")
    kinds = frozenset(args.kinds or KINDS)
    return kinds - {MATCH} if args.query is None else kinds | {MATCH}


async def _query_vector(
    service: EventServices, caller: Caller, query: str | None, model: Model, kinds: frozenset[str]
) -> tuple[Matrix | None, str | None]:
    """Get the vector of the standing query, or why the call waits for other kinds only."""
    if query is None:
        return None, None
    check_text(query, "query", service.settings.limits.query_bytes)
    try:
        return (await service.embeddings.embed([query], caller, model=model))[0], None
    except EmbeddingUnavailable as error:
        if kinds == frozenset({MATCH}):
            raise
        return None, f"nothing was matched with the query: {error.message}"
