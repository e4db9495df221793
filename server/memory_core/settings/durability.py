"""Settings of durability: what a store or an update waits for."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from memory_core.settings.group import SettingsGroup


class DurabilitySettings(SettingsGroup):
    """What a write waits for. Critical memories always wait for the disk."""

    level: Literal["default", "synced"] = Field(
        default="default", description="default: only critical memories wait for the disk; synced: all do"
    )
    replicas: int = Field(
        default=1, ge=0, le=16, description="replicas whose disks they also wait for, if there are so many"
    )
    wait_seconds: float = Field(
        default=3.0,
        ge=0,
        le=60,
        description="longest wait in seconds; after it the answer says that the sync is unknown; 0 never waits",
    )
