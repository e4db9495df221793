"""Settings of how much one agent may keep in a namespace, so that none can fill it for all."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class QuotaSettings(BaseModel):
    """What one agent may keep in a namespace; 0 is no limit."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    memories: int = Field(default=1_000_000, ge=0, description="unexpired memories of one agent; 0 is any number")
    pieces: int = Field(
        default=5_000_000, ge=0, description="pieces of them, each with a vector; long contents have many; 0 is any"
    )
    open_tasks: int = Field(default=10_000, ge=0, description="open tasks that one agent submitted; 0 is any number")
