"""Filters with owner ids instead of names and epoch seconds instead of texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from memory_core.errors import InvalidArgument
from memory_core.records.memory import MemoryType, Priority
from memory_core.records.names import check_label
from memory_core.records.scope import Principal
from memory_core.records.times import parse_time, to_iso
from memory_server.contract.arguments import Filters
from memory_server.contract.validation import check_tags
from memory_server.engine.principals import owners_of
from memory_server.engine.redis_backend import Backend

_MAX_AGENTS = 64


@dataclass(frozen=True, slots=True)
class ResolvedFilters:
    """Filters of a search or list. Any value of a field matches; all fields must match. Times are epoch seconds."""

    owners: tuple[str, ...] = ()
    types: tuple[MemoryType, ...] = ()
    priorities: tuple[Priority, ...] = ()
    tags: tuple[str, ...] = ()
    tag_match: Literal["any", "all"] = "any"
    context: str | None = None
    source: str | None = None
    since: float | None = None
    until: float | None = None
    include_archive: bool = False

    @property
    def period(self) -> dict[str, Any]:
        """`since` and `until` as answers echo them."""
        return {"since": to_iso(self.since), "until": to_iso(self.until)}

    @property
    def chosen(self) -> list[tuple[str, Sequence[str]]]:
        """The TAG fields to match, each with its values: any of them matches."""
        fields: list[tuple[str, Sequence[str]]] = [
            ("owner", self.owners),
            ("type", self.types),
            ("priority", self.priorities),
            ("context", (self.context,) if self.context else ()),
            ("source", (self.source,) if self.source else ()),
        ]
        fields += [("tags", (tag,)) for tag in self.tags] if self.tag_match == "all" else [("tags", self.tags)]
        return [(name, values) for name, values in fields if values]


async def resolve_filters(
    backend: Backend, principal: Principal, filters: Filters, *, owners: Sequence[str] | None = None
) -> ResolvedFilters:
    """Check filters and look up the owner ids of their agents; `owners` replaces these. Raises InvalidArgument."""
    agents = filters.agent_ids or []
    if len(agents) > _MAX_AGENTS:
        raise InvalidArgument(f"{len(agents)} agent_ids; at most {_MAX_AGENTS} are allowed")
    since = None if filters.since is None else parse_time(filters.since, "since")
    until = None if filters.until is None else parse_time(filters.until, "until")
    if since is not None and until is not None and since > until:
        raise InvalidArgument("since is later than until", hint="swap them")
    return ResolvedFilters(
        owners=await owners_of(backend, principal, agents) if owners is None else tuple(owners),
        types=tuple(dict.fromkeys(filters.memory_types or ())),
        priorities=tuple(dict.fromkeys(filters.priorities or ())),
        tags=check_tags(filters.tags or (), backend.settings),
        tag_match=filters.tag_match,
        context=check_label(filters.context, "context") if filters.context is not None else None,
        source=check_label(filters.source, "source") if filters.source is not None else None,
        since=since,
        until=until,
        include_archive=filters.include_archive,
    )
