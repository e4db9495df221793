"""The arguments of the dashboard's own tools."""

from __future__ import annotations

from pydantic import Field

from memory_server.contract.arguments import Arguments, Filters, ListOf
from memory_server.contract.dashboard import MOST_POINTS


class MapArguments(Filters):
    """dashboard_map"""

    limit: int = Field(default=MOST_POINTS, ge=1, le=MOST_POINTS)
    include_archive: bool = True


class SnippetArguments(Arguments):
    """dashboard_snippets"""

    memory_ids: ListOf[str]


class AuditArguments(Arguments):
    """dashboard_audit"""

    who: str | None = None
    op: str | None = None
    outcome: str | None = None
    names: str | None = None
    limit: int = Field(default=50, ge=1, le=500)
    cursor: str | None = None
