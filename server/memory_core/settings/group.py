"""The base of all groups of settings."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class SettingsGroup(BaseModel):
    """Refuses unknown settings, and quotes no value in errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)
