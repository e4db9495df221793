"""What a batch answers."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from memory_server.contract.answer import Answer


class Outcome(BaseModel):
    """What became of one operation of a batch."""

    ok: bool
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None


class BatchAnswer(Answer):
    """One outcome for each operation, in order."""

    results: list[Outcome]
    succeeded: int
    failed: int

    def summary(self) -> str:
        failures = [f"{n}: {o.error}" for n, o in enumerate(self.results) if not o.ok][:5]
        return "\n".join([f"{self.succeeded} succeeded, {self.failed} failed.", *failures])
