"""Storage quotas of one agent in a namespace."""

from __future__ import annotations

from pydantic import Field

from memory_core.settings.group import SettingsGroup


class QuotaSettings(SettingsGroup):
    """What one agent may store in a namespace; 0 is no limit."""

    memories: int = Field(default=1_000_000, ge=0, description="unexpired memories of one agent; 0 is any number")
    pieces: int = Field(
        default=5_000_000,
        ge=0,
        description="chunks of them, each with a vector; long contents have many; 0 is any number",
    )
    open_tasks: int = Field(default=10_000, ge=0, description="open tasks that one agent submitted; 0 is any number")
