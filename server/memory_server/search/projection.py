"""A map of memories: projects their vectors onto two axes. Positions are cached; permission is always checked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from cachetools import LRUCache

from memory_core.records import redis_time
from memory_core.records.keys import Keys
from memory_core.records.memory import Record
from memory_core.records.model import Model
from memory_core.records.scope import Principal
from memory_core.records.times import to_iso
from memory_core.records.vectors import Matrix
from memory_core.redis_client import Client
from memory_server.contract.answer import partial_reason
from memory_server.contract.dashboard import MapAnswer, MapArguments, Snippet, SnippetsAnswer
from memory_server.contract.validation import check_ids
from memory_server.engine.inflight_reads import reads
from memory_server.engine.principals import resolve
from memory_server.engine.redis_backend import Backend
from memory_server.engine.request_context import RequestContext
from memory_server.index import loader, queries
from memory_server.index import query_builder as build
from memory_server.index.filters import resolve_filters
from memory_server.index.loader import Ref
from memory_server.index.queries import vector_of
from memory_server.search.services import SearchServices

_SNIPPET = 240
_SLICE = 250
_FRESH_SECONDS = 300.0
_REMEMBERED = 16
_SPREAD = 99.0  # percentile of the distances from the middle that is scaled to 1


class Point(NamedTuple):
    """The position of a memory, and what colours it."""

    x: float
    y: float
    writer: str
    type: str
    stored: int


@dataclass(slots=True)
class _Layout:
    """Axes, shape (dimension, 2), around a middle, and the positions of memories on them."""

    middle: Matrix
    axes: Matrix
    explained: float
    made_at: float
    points: dict[str, Point] = field(default_factory=dict[str, Point])

    def place(self, records: Sequence[Record]) -> None:
        if not records:
            return
        places = (np.stack([vector_of(record) for record in records]) - self.middle) @ self.axes
        for record, (x, y) in zip(records, places.tolist(), strict=True):
            stored = int(record.created_at)
            self.points[record.id] = Point(round(x, 4), round(y, 4), record.writer, record.type, stored)


class Maps:
    """The layouts of one process."""

    def __init__(self) -> None:
        self._layouts: LRUCache[tuple[str, str, str], _Layout] = LRUCache(_REMEMBERED)
        self._drawing: LRUCache[tuple[str, str], asyncio.Lock] = LRUCache(_REMEMBERED)

    async def draw(self, service: SearchServices, request: RequestContext, args: MapArguments) -> MapAnswer:
        """Show the newest readable memories that have a clear vector. Raises InvalidArgument or StoreUnavailable."""
        who = (request.caller.namespace, request.caller.agent)
        async with self._drawing.setdefault(who, asyncio.Lock()):
            return await _draw(service, request, self._layouts, args)


@reads
async def _draw(
    service: SearchServices,
    request: RequestContext,
    layouts: LRUCache[tuple[str, str, str], _Layout],
    args: MapArguments,
) -> MapAnswer:
    principal = await resolve(service.backend, request)
    filters = await resolve_filters(service.backend, principal, args)
    if not await service.namespaces.knows(request.caller.namespace):
        return _answer([], 0, None, None)
    pieces = build.readable(principal, filters, redis_time.now())
    model = await service.models.current(request.caller.namespace)
    selected = build.without_sensitive(build.with_vector(build.memories(pieces), model))
    keys, timeout = Keys(request.caller.namespace), service.settings.search_timeout_ms
    prepared = await service.namespaces.get(request.caller.namespace)

    async def fetch(client: Client) -> tuple[int, tuple[list[Ref], list[str]]]:
        total = await queries.count(client, keys, selected, timeout, request.cache)
        return total, await queries.page(client, keys, selected, offset=0, limit=args.limit, timeout_ms=timeout)

    total, (refs, warnings) = await service.namespaces.search(request.caller.namespace, fetch)
    who = (request.caller.namespace, request.caller.agent, model.name)
    layout = layouts.get(who)
    new = [ref for ref in refs if layout is None or ref.memory_id not in layout.points]
    if layout is None or time.monotonic() - layout.made_at > _FRESH_SECONDS or 2 * len(new) > len(layout.points):
        records = await _with_vectors(service.backend, request, principal, model, refs)
        layout = await asyncio.to_thread(_lay_out, records) if records else None
    elif new:
        layout.place(await _with_vectors(service.backend, request, principal, model, new))
    if layout:
        layouts[who] = layout
    reason = partial_reason(await service.namespaces.covered(prepared), warnings)
    return _answer([ref.memory_id for ref in refs], total, layout, reason)


@reads
async def snippets(service: SearchServices, request: RequestContext, memory_ids: Sequence[str]) -> SnippetsAnswer:
    """Show the beginnings of memories that the caller may read. Raises InvalidArgument (bad ids, or too many)."""
    principal = await resolve(service.backend, request)
    refs = [Ref(memory_id) for memory_id in check_ids(memory_ids, service.settings)]
    keys, integrity = Keys(request.caller.namespace), service.backend.integrity
    records = await service.backend.read(
        lambda client: loader.load_readable(client, keys, refs, request, principal, integrity)
    )
    opened = await service.vault.open_all(keys.namespace, records)
    reason = partial_reason(1.0, opened.warnings)
    shown = [
        Snippet(
            memory_id=record.id,
            writer=record.writer,
            memory_type=record.type,
            priority=record.priority,
            created_at=to_iso(record.created_at) or "",
            text=" ".join(record.content[: 2 * _SNIPPET].split())[:_SNIPPET],
        )
        for record in opened.records
    ]
    return SnippetsAnswer(memories=shown, partial=bool(reason), reason=reason)


async def _with_vectors(
    backend: Backend, request: RequestContext, principal: Principal, model: Model, refs: Sequence[Ref]
) -> list[Record]:
    """Load readable memories with vectors, in slices so that other commands can run in between."""
    keys, integrity, found = Keys(principal.namespace), backend.integrity, list[Record]()
    for start in range(0, len(refs), _SLICE):
        part = refs[start : start + _SLICE]
        loaded = await backend.read(
            lambda client, part=part: loader.load_readable(
                client, keys, part, request, principal, integrity, model=model
            )
        )
        found += [record for record in loaded if len(record.vector or b"") == 4 * model.dimension]
    return found


def _lay_out(records: Sequence[Record]) -> _Layout:
    """Find the two axes of most variance (principal components), with a stable sign."""
    vectors = np.stack([vector_of(record) for record in records]).astype(np.float32)
    middle = vectors.mean(axis=0)
    centred = vectors - middle
    variances, directions = np.linalg.eigh(centred.T @ centred)
    axes = directions[:, ::-1][:, :2]
    axes = axes * np.where(axes[np.abs(axes).argmax(axis=0), [0, 1]] < 0, -1.0, 1.0)
    reach = np.percentile(np.abs(centred @ axes), _SPREAD)
    total = float(variances.sum())
    explained = round(float(variances[-2:].sum()) / total, 4) if total > 0 else 0.0
    layout = _Layout(middle, (axes / max(float(reach), 1e-6)).astype(np.float32), explained, time.monotonic())
    layout.place(records)
    return layout


def _answer(ids: Sequence[str], total: int, layout: _Layout | None, reason: str | None) -> MapAnswer:
    known = layout.points if layout else {}
    shown = [memory_id for memory_id in ids if memory_id in known]
    points = [known[memory_id] for memory_id in shown]
    agents, types = ({name: number for number, name in enumerate(dict.fromkeys(column))} for column in (
        (point.writer for point in points), (point.type for point in points)
    ))  # fmt: skip
    return MapAnswer(
        total=total,
        ids=shown,
        x=[point.x for point in points],
        y=[point.y for point in points],
        agent=[agents[point.writer] for point in points],
        type=[types[point.type] for point in points],
        stored=[point.stored for point in points],
        agents=list(agents),
        types=list(types),
        explained=layout.explained if layout else None,
        partial=bool(reason),
        reason=reason,
    )
