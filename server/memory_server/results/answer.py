"""What every tool's answer has: whether it is whole, and a short text form for models to read."""

from __future__ import annotations

from pydantic import BaseModel


class Answer(BaseModel):
    """Base of all answers. `partial` says that something is missing from it and `reason` what."""

    partial: bool = False
    reason: str | None = None

    def text(self) -> str:
        """Give the short text form."""
        note = f"\nPARTIAL: {self.reason}" if self.partial else ""
        return self.summary() + note

    def summary(self) -> str:
        """Give the text form without the note on completeness."""
        return self.model_dump_json(exclude_defaults=True)
