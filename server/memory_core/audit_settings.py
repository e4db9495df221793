"""Settings of the audit: how long entries are kept."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class AuditSettings(BaseModel):
    """Retention of the audit. Older entries are deleted up to a seal; the chain continues from that seal."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    keep_days: int = Field(default=365, ge=0, le=36_500, description="days that an entry is kept; 0 is forever")
    keep_entries: int = Field(
        default=1_000_000,
        ge=0,
        le=1_000_000_000,
        description="approximate number of entries kept in a namespace; 0 is all",
    )
