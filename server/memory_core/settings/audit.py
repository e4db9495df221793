"""Settings of the audit: how long entries are kept."""

from __future__ import annotations

from pydantic import Field

from memory_core.settings.group import SettingsGroup


class AuditSettings(SettingsGroup):
    """Retention of the audit. Older entries are deleted up to a seal; the chain continues from that seal."""

    keep_days: int = Field(default=365, ge=0, le=36_500, description="days that an entry is kept; 0 is forever")
    keep_entries: int = Field(
        default=1_000_000,
        ge=0,
        le=1_000_000_000,
        description="approximate number of entries kept in a namespace; 0 is all",
    )
