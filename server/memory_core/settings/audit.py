"""Settings of the audit: how long its entries are kept."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class AuditSettings(BaseModel):
    """How much of the audit is kept. What is older goes, up to a seal, and the chain goes on from that seal."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    keep_days: int = Field(default=365, ge=0, le=36_500, description="days that an entry is kept; 0 is for ever")
    keep_entries: int = Field(
        default=1_000_000, ge=0, le=1_000_000_000, description="entries kept in a namespace, about; 0 is all"
    )
