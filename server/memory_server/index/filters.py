"""Names filters the way callers do and turns them into what queries understand."""

from __future__ import annotations

from memory_core.errors import InvalidArgument
from memory_core.records.names import check_label
from memory_core.records.scope import Principal
from memory_core.records.times import parse_time
from memory_server.contract.selection import Selection
from memory_server.contract.validation import check_tags
from memory_server.engine.backend import Backend
from memory_server.engine.principals import owners_of
from memory_server.index.query import Filters

_MAX_AGENTS = 64


async def to_filters(backend: Backend, principal: Principal, selection: Selection) -> Filters:
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
        owners=await owners_of(backend, principal, selection.agent_ids),
        types=tuple(dict.fromkeys(selection.memory_types)),
        priorities=tuple(dict.fromkeys(selection.priorities)),
        tags=check_tags(selection.tags, backend.settings),
        tag_match=selection.tag_match,
        context=check_label(selection.context, "context") if selection.context is not None else None,
        source=check_label(selection.source, "source") if selection.source is not None else None,
        since=since,
        until=until,
        include_archive=selection.include_archive,
    )
