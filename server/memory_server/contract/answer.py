"""What every tool's answer has: whether it is whole, and a short text form for models to read."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel


class Answer(BaseModel):
    """Base of all answers. `partial` says that something is missing from it and `reason` what."""

    partial: bool = False
    reason: str | None = None

    def text(self) -> str:
        """Give the short text form."""
        note = f"\nPARTIAL: {self.reason}" if self.partial else ""
        return self.summary() + note

    def shown(self) -> Iterable[str]:
        """Give the ids of the memories and tasks whose contents it shows, for the audit."""
        return ()

    def shown_besides(self) -> Iterable[str]:
        """Give those that an entry of the change itself could not name yet."""
        return ()

    def summary(self) -> str:
        """Give the text form without the note on completeness."""
        return self.model_dump_json(exclude_defaults=True)
