"""Walks what grants show in the order in which it came to be seen, so that a cursor can say where one stopped.

A memory came to be seen when it was last changed, or when the first grant that shows it was given, whichever is
later. Redis knows the first alone, so the walk goes span by span: what lay there already when a grant was given
(all seen since that moment), then what changed until the next grant.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

from memory_core.errors import InvalidArgument, echo
from memory_core.records import redis_time
from memory_core.records.keys import Keys, digest
from memory_core.records.memory import Record, Visibility
from memory_core.records.scope import Grant, Part, Principal
from memory_core.records.times import parse_time
from memory_core.redis_client import Client
from memory_server.engine.request import RequestContext
from memory_server.index import loader, queries
from memory_server.index import query as build
from memory_server.index.filters import ResolvedFilters
from memory_server.search.services import SearchServices

_SLICE = 50
_MARK = "c1."


class ChangePosition(NamedTuple):
    """Where a memory stands: since when it is seen as it is now, and when it was last changed. No two share one."""

    seen: float
    changed: float


BEGINNING = ChangePosition(0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Told:
    """What is between two places was told already, under the grants that this digest stands for."""

    first: ChangePosition
    last: ChangePosition
    grants: str


@dataclass(frozen=True, slots=True)
class Cursor:
    """Everything up to a place was told, and perhaps a later stretch. `view` stands for the filters it was made by."""

    view: str
    place: ChangePosition
    told: Told | None = None

    def write(self) -> str:
        """Give it as callers keep it."""
        told = [*self.told.first, *self.told.last, self.told.grants] if self.told else []
        text = json.dumps([self.view, *self.place, *told], separators=(",", ":"))
        return _MARK + base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def read_cursor(text: str | float, view: str) -> Cursor:
    """Read a cursor, or a time as the cursor of that moment.

    Raises:
        InvalidArgument: it is neither, or the cursor was made by other filters.
    """
    if not isinstance(text, str) or not text.startswith(_MARK):
        moment = parse_time(text, "since")
        return Cursor(view, ChangePosition(moment, moment))
    cursor = _decoded(text)
    if cursor is None:
        raise InvalidArgument(f"cursor {echo(text)} is not one", hint="use next_cursor as it was given, or a time")
    if cursor.view != view:
        raise InvalidArgument(
            "this cursor is of a call with other filters", hint="keep agent_id and context, or start without since"
        )
    return cursor


def _decoded(text: str) -> Cursor | None:
    try:
        rest = text.removeprefix(_MARK)
        view, *numbers = json.loads(base64.urlsafe_b64decode(rest + "=" * (-len(rest) % 4)))
        grants = numbers.pop() if len(numbers) == 7 else None
        places = [float(number) for number in numbers]
        if not all(map(math.isfinite, places)) or len(places) != (2 if grants is None else 6):
            return None
    except (ValueError, TypeError, binascii.Error, RecursionError, OverflowError):
        return None
    told = None if grants is None else Told(ChangePosition(*places[2:4]), ChangePosition(*places[4:]), str(grants))
    return Cursor(str(view), ChangePosition(*places[:2]), told)


@dataclass(frozen=True, slots=True)
class _Span:
    """A stretch of places: what changed after `low` and until `high`, shown by the grants given at a moment or before.

    With `old` it is what those of that very moment found there, all of it seen since then.
    """

    given: float
    low: float
    high: float
    old: bool = False

    def within(self, start: ChangePosition, stop: ChangePosition) -> _Span | None:
        """Cut it to the places after `start` and up to `stop`."""
        low, high = self.low, self.high
        if not self.old:
            low, high = max(low, start.seen), min(high, stop.seen)
        elif not start.seen <= self.given <= stop.seen:
            return None
        else:
            low = max(low, start.changed) if self.given == start.seen else low
            high = min(high, stop.changed) if self.given == stop.seen else high
        return replace(self, low=low, high=high) if low < high else None


@dataclass(frozen=True)
class View:
    """What some grants show to a principal, within filters, as of a moment of Redis's clock."""

    principal: Principal
    grants: Sequence[Grant]
    filters: ResolvedFilters
    now: float
    warnings: list[str] = field(default_factory=list[str], compare=False)

    @cached_property
    def since(self) -> dict[str, float]:
        """All tokens that it shows, with the moment when each was first given."""
        given: dict[str, float] = {}
        for part in sorted(self._parts, key=lambda part: -part.at):
            given |= dict.fromkeys(part.tokens, part.at)
        return given

    @property
    def end(self) -> ChangePosition:
        """The place after all that there is at the moment."""
        return ChangePosition(self.now, self.now)

    @property
    def grants_digest(self) -> str:
        """Stand for the grants: while none goes, no memory moves to a later place unless it is changed."""
        return digest(json.dumps(sorted((grant.id, part.at) for grant in self.grants for part in grant.parts)))[:16]

    @property
    def _parts(self) -> list[Part]:
        return [part for grant in self.grants for part in grant.parts if part.at <= self.now]

    def place_of(self, record: Record) -> ChangePosition | None:
        """Say where a memory stands; None where it is not in view."""
        given = [self.since[token] for token in record.scope if token in self.since]
        hidden = record.visibility is Visibility.PUBLIC or self.principal.owns(record.owner)
        if not given or hidden:
            return None
        return ChangePosition(max(record.updated_at, min(given)), record.updated_at)

    def spans(self) -> list[_Span]:
        """Divide all places, in order."""
        moments = sorted(set(self.since.values()))
        return [
            span
            for given, following in pairwise([*moments, self.now])
            for span in (_Span(given, 0.0, given, old=True), _Span(given, given, following))
        ]

    def tokens_of(self, span: _Span) -> tuple[str, ...]:
        """Give the tokens that show what is in a span."""
        return tuple(token for token, at in self.since.items() if (at == span.given if span.old else at <= span.given))


async def walk(
    service: SearchServices,
    request: RequestContext,
    view: View,
    start: ChangePosition,
    stop: ChangePosition,
    *,
    newest_first: bool = False,
) -> AsyncGenerator[tuple[ChangePosition, Record]]:
    """Give what stands after `start` and up to `stop`, in order, a slice at a time.

    Raises:
        StoreUnavailable: Redis does not answer, or a search was cut short.
    """
    spans = [cut for span in view.spans() if (cut := span.within(start, stop))]
    for span in reversed(spans) if newest_first else spans:
        async for place, record in _walk_span(service, request, view, span, newest_first):
            if start < place <= stop:
                yield place, record


async def _walk_span(
    service: SearchServices, request: RequestContext, view: View, span: _Span, newest_first: bool
) -> AsyncGenerator[tuple[ChangePosition, Record]]:
    """Give what stands in one span. What moved on since, or belongs to another, is not in it."""
    low, high, offset = span.low, span.high, 0
    while True:
        selected = build.memories(build.shared(view.principal, view.tokens_of(span), view.filters, redis_time.now()))
        selected = build.updated_between(selected, low, high)
        found, records = await _slice(service, request, view, selected, newest_first, offset)
        there = [record for record in records if low < record.updated_at <= high]
        for record in there:
            place = view.place_of(record)
            if place and place.seen == (span.given if span.old else place.changed):
                yield place, record
        if found < _SLICE:
            return
        if not there:
            offset += found
        elif newest_first:
            # Redis is asked in whole microseconds and gives the last one again, which then is above `high`.
            high, offset = math.nextafter(there[-1].updated_at, 0), 0
        else:
            low, offset = there[-1].updated_at, 0


async def _slice(
    service: SearchServices, request: RequestContext, view: View, selected: build.Query, newest_first: bool, offset: int
) -> tuple[int, list[Record]]:
    """Load the next few that a query selects; give how many it named and what is still there to be read."""
    keys = Keys(view.principal.namespace)
    timeout = service.settings.search_timeout_ms

    async def fetch(client: Client) -> tuple[int, list[Record]]:
        refs = await queries.by_change(
            client, keys, selected, newest_first=newest_first, offset=offset, limit=_SLICE, timeout_ms=timeout
        )
        return len(refs), await loader.load_readable(
            client, keys, refs, request, view.principal, service.backend.integrity
        )

    found, records = await service.namespaces.search(view.principal.namespace, fetch)
    opened = await service.vault.open_all(keys.namespace, records)
    view.warnings.extend(opened.warnings)
    return found, opened.records
