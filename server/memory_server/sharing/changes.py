"""Lists granted memories in the order in which they became visible, so that a cursor can mark a position.

A memory becomes visible when it is changed, or when the first grant that covers it is given, whichever is later.
Redis can sort by change only, so the walk goes span by span: first the memories that were there when a grant was
given (all visible since then), then those that changed before the next grant.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

from memory_core.errors import InvalidArgument, echo
from memory_core.records import redis_time
from memory_core.records.bounded_json import parse_json
from memory_core.records.keys import Keys, digest
from memory_core.records.memory import Record, Visibility
from memory_core.records.scope import Grant, Principal
from memory_core.records.times import parse_time
from memory_core.redis_client import Client
from memory_server.engine.request_context import RequestContext
from memory_server.index import loader, queries
from memory_server.index import query_builder as build
from memory_server.index.filters import ResolvedFilters
from memory_server.search.services import SearchServices

_SLICE = 50
_PREFIX = "c1."
_LONGEST = 1000


class ChangePosition(NamedTuple):
    """When a memory became visible as it is now, and when it was last changed. Each memory has its own position."""

    seen: float
    changed: float


BEGINNING = ChangePosition(0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Delivered:
    """A range of positions that was already returned, under the grants that this digest stands for."""

    first: ChangePosition
    last: ChangePosition
    grants: str


@dataclass(frozen=True, slots=True)
class Cursor:
    """All up to a position was returned, and perhaps a later range. `view` is a digest of the call's filters."""

    view: str
    position: ChangePosition
    delivered: Delivered | None = None

    def write(self) -> str:
        """Encode it for callers."""
        later = self.delivered
        rest = [*later.first, *later.last, later.grants] if later else []
        text = json.dumps([self.view, *self.position, *rest], separators=(",", ":"))
        return _PREFIX + base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def read_cursor(text: str | float, view: str) -> Cursor:
    """Decode a cursor, or make one of a time.

    Raises:
        InvalidArgument: it is neither, or the cursor is of a call with other filters.
    """
    if not isinstance(text, str) or not text.startswith(_PREFIX):
        moment = parse_time(text, "since")
        return Cursor(view, ChangePosition(moment, moment))
    try:
        cursor = _decode(text[:_LONGEST].removeprefix(_PREFIX))
    except (ValueError, TypeError, OverflowError):
        raise InvalidArgument(f"unknown cursor {echo(text)}", hint="use next_cursor unchanged, or a time") from None
    if cursor.view != view:
        hint = "keep agent_id and context, or start without since"
        raise InvalidArgument("this cursor is of a call with other filters", hint=hint)
    return cursor


def _decode(text: str) -> Cursor:
    view, *numbers = parse_json(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    grants = numbers.pop() if len(numbers) == 7 else None
    times = [float(number) for number in numbers]
    if not all(map(math.isfinite, times)) or len(times) != (2 if grants is None else 6):
        raise ValueError("malformed cursor")
    position, *later = (ChangePosition(*pair) for pair in zip(times[::2], times[1::2], strict=True))
    return Cursor(str(view), position, Delivered(later[0], later[1], str(grants)) if later else None)


@dataclass(frozen=True, slots=True)
class _Span:
    """Memories changed after `low` and up to `high`, visible through grants given at `given` or before.

    With `old`: memories that were there when the grants of exactly that moment were given, visible since then.
    """

    given: float
    low: float
    high: float
    old: bool = False

    def within(self, start: ChangePosition, stop: ChangePosition) -> _Span | None:
        """Restrict it to positions after `start` and up to `stop`."""
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
    """The memories that some grants show to a principal, within filters, at a moment of Redis's clock."""

    service: SearchServices
    request: RequestContext
    principal: Principal
    grants: Sequence[Grant]
    filters: ResolvedFilters
    now: float
    warnings: list[str] = field(default_factory=list[str], compare=False)

    @cached_property
    def since(self) -> dict[str, float]:
        """All tokens that it shows, and when each was first granted."""
        given: dict[str, float] = {}
        parts = [part for grant in self.grants for part in grant.parts if part.at <= self.now]
        for part in sorted(parts, key=lambda part: -part.at):
            given |= dict.fromkeys(part.tokens, part.at)
        return given

    @property
    def end(self) -> ChangePosition:
        """The position after everything in view."""
        return ChangePosition(self.now, self.now)

    @property
    def grants_digest(self) -> str:
        """Identifies the grants. While all of them last, a memory moves to a later position only when it is changed."""
        return digest(json.dumps(sorted((grant.id, part.at) for grant in self.grants for part in grant.parts)))[:16]

    def position_of(self, record: Record) -> ChangePosition | None:
        """Return a memory's position; None if it is not in view."""
        given = [self.since[token] for token in record.scope if token in self.since]
        hidden = record.visibility is Visibility.PUBLIC or self.principal.owns(record.owner)
        if not given or hidden:
            return None
        return ChangePosition(max(record.updated_at, min(given)), record.updated_at)

    async def walk(
        self, start: ChangePosition, stop: ChangePosition, *, newest_first: bool = False
    ) -> AsyncGenerator[tuple[ChangePosition, Record]]:
        """Give the memories after `start` and up to `stop` in order, loaded a slice at a time.

        Raises:
            StoreUnavailable: Redis does not answer, or a search was cut short.
        """
        moments = sorted(set(self.since.values()))
        spans = [
            cut
            for given, following in pairwise([*moments, self.now])
            for span in (_Span(given, 0.0, given, old=True), _Span(given, given, following))
            if (cut := span.within(start, stop))
        ]
        for span in reversed(spans) if newest_first else spans:
            async for position, record in self._walk_span(span, newest_first):
                if start < position <= stop:
                    yield position, record

    async def _walk_span(self, span: _Span, newest_first: bool) -> AsyncGenerator[tuple[ChangePosition, Record]]:
        """Give the memories of one span, without those that moved on meanwhile or belong to another span."""
        low, high, offset = span.low, span.high, 0
        tokens = tuple(
            token for token, at in self.since.items() if (at == span.given if span.old else at <= span.given)
        )
        while True:
            selected = build.memories(build.shared(self.principal, tokens, self.filters, redis_time.now()))
            selected = build.updated_between(selected, low, high)
            found, records = await self._load_slice(selected, newest_first, offset)
            there = [record for record in records if low < record.updated_at <= high]
            for record in there:
                position = self.position_of(record)
                if position and position.seen == (span.given if span.old else position.changed):
                    yield position, record
            if found < _SLICE:
                return
            if not there:
                offset += found
            elif newest_first:
                # Redis compares whole microseconds and returns the last memory again, which then is above `high`.
                high, offset = math.nextafter(there[-1].updated_at, 0), 0
            else:
                low, offset = there[-1].updated_at, 0

    async def _load_slice(self, selected: build.Query, newest_first: bool, offset: int) -> tuple[int, list[Record]]:
        """Load the next memories of a query; return how many Redis named and those that are readable."""
        service, keys = self.service, Keys(self.principal.namespace)
        timeout = service.settings.search_timeout_ms

        async def fetch(client: Client) -> tuple[int, list[Record]]:
            refs = await queries.by_change(
                client, keys, selected, newest_first=newest_first, offset=offset, limit=_SLICE, timeout_ms=timeout
            )
            integrity = service.backend.integrity
            return len(refs), await loader.load_readable(client, keys, refs, self.request, self.principal, integrity)

        found, records = await service.namespaces.search(keys.namespace, fetch)
        opened = await service.vault.open_all(keys.namespace, records)
        self.warnings.extend(opened.warnings)
        return found, opened.records
