"""Settings of the bulk engine, which keeps all vectors of a namespace in a sidecar's memory."""

from __future__ import annotations

from pydantic import Field

from memory_core.settings.group import SettingsGroup


class BulkSettings(SettingsGroup):
    """The bulk engine of a sidecar: exact searches, many searches at once, and reports on an agent's memories."""

    memory_bytes: int = Field(
        default=1 << 30,
        ge=0,
        le=1 << 44,
        description="memory for mirrors of namespaces, 2 kB a vector; the least used is evicted; 0 turns it off",
    )
