"""Settings of the bulk engine, which keeps whole namespaces' vectors in a sidecar's memory."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class BulkSettings(BaseModel):
    """The bulk engine of a sidecar: exact searches, many searches at once, and reports over all of an agent's."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    memory_bytes: int = Field(
        default=1 << 30,
        ge=0,
        le=1 << 44,
        description="memory for mirrors of namespaces, 2 kB a vector; the least used leave first; 0 switches it off",
    )
