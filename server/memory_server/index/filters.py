"""Names filters the way callers do and turns them into what queries understand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from memory_core.errors import InvalidArgument
from memory_core.records.memory import MemoryType, Priority
from memory_core.records.names import check_label
from memory_core.records.scope import Principal
from memory_core.records.times import parse_time
from memory_server.engine.principals import owners_of
from memory_server.engine.validation import check_tags
from memory_server.index.query import Filters
from memory_server.service import Service

_MAX_AGENTS = 64


@dataclass(frozen=True, slots=True)
class Selection:
    """The filters that search and list tools share, as callers give them."""

    agent_ids: Sequence[str] = ()
    memory_types: Sequence[MemoryType] = ()
    priorities: Sequence[Priority] = ()
    tags: Sequence[str] = ()
    tag_match: Literal["any", "all"] = "any"
    context: str | None = None
    source: str | None = None
    since: str | float | None = None
    until: str | float | None = None
    include_archive: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether nothing is narrowed down."""
        named = (self.agent_ids, self.memory_types, self.priorities, self.tags, self.context, self.source)
        return not any(named) and self.since is None and self.until is None


async def to_filters(service: Service, principal: Principal, selection: Selection) -> Filters:
    """Check a selection and look up the agents it names.

    Raises:
        InvalidArgument: a value is not valid, or `since` lies after `until`.
    """
    if len(selection.agent_ids) > _MAX_AGENTS:
        raise InvalidArgument(f"{len(selection.agent_ids)} agent_ids; at most {_MAX_AGENTS} are allowed")
    since = None if selection.since is None else parse_time(selection.since, "since")
    until = None if selection.until is None else parse_time(selection.until, "until")
    if since is not None and until is not None and since > until:
        raise InvalidArgument("since lies after until", hint="swap them")
    return Filters(
        owners=await owners_of(service.backend, principal, selection.agent_ids),
        types=tuple(dict.fromkeys(selection.memory_types)),
        priorities=tuple(dict.fromkeys(selection.priorities)),
        tags=check_tags(selection.tags, service.settings),
        tag_match=selection.tag_match,
        context=check_label(selection.context, "context") if selection.context is not None else None,
        source=check_label(selection.source, "source") if selection.source is not None else None,
        since=since,
        until=until,
        include_archive=selection.include_archive,
    )
