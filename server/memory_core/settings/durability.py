"""Settings of how far a store or an update goes on its way to the disk before it is answered."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class DurabilitySettings(BaseModel):
    """What is waited for after a memory was written. Critical ones always wait for the disk."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    level: Literal["default", "synced"] = Field(
        default="default", description="default: only critical memories wait for the disk; synced: all do"
    )
    replicas: int = Field(
        default=1, ge=0, le=16, description="replicas whose disks they wait for too, as far as there are so many"
    )
    wait_seconds: float = Field(
        default=3.0,
        ge=0,
        le=60,
        description="longest such wait; then the answer says that it is not known to be synced; 0 never waits",
    )
