"""Says to the bulk engine what `query.readable` says to the Query Engine: which records a search may consider."""

from __future__ import annotations

from memory_core.records.memory import Priority
from memory_core.records.scope import Principal
from memory_core.store.bulk_messages import Clause, Selection
from memory_server.index.query import Filters


def readable(principal: Principal, filters: Filters) -> Selection:
    """Select what the principal may read within `filters`; the engine leaves out by itself what has expired."""
    every: list[Clause] = [("scope", principal.tokens)]
    none: list[Clause] = []
    if principal.hidden:
        none.append(("scope", sorted(principal.hidden)))
    every += [
        (name, values)
        for name, values in (
            ("owner", filters.owners),
            ("type", filters.types),
            ("priority", filters.priorities),
            ("context", (filters.context,) if filters.context else ()),
            ("source", (filters.source,) if filters.source else ()),
        )
        if values
    ]
    if filters.tag_match == "all":
        every += [("tags", (tag,)) for tag in filters.tags]
    elif filters.tags:
        every.append(("tags", filters.tags))
    if not filters.include_archive and Priority.ARCHIVE not in filters.priorities:
        none.append(("priority", (Priority.ARCHIVE,)))
    return Selection(every=every, none=none, mistrusted=mistrusted(principal), since=filters.since, until=filters.until)


def mistrusted(principal: Principal) -> list[tuple[str, float]]:
    """Name the agents under quarantine, and since when what they wrote is left out."""
    return list(principal.mistrusted.items())
