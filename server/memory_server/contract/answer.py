"""What every tool's answer has: whether it is whole, and a short text form for models to read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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


def partial_reason(
    progress: float, warnings: Sequence[str] = (), *, failure: str | None = None, waiting: int = 0
) -> str | None:
    """Say what an answer lacks, or None when it is whole."""
    reasons = list(dict.fromkeys(warnings))
    if progress < 1:
        reasons.append(f"the index is being built ({progress:.0%}); some memories cannot be found yet")
    if failure:
        reasons.append(f"by words only: {failure}")
    elif waiting:
        reasons.append(f"{waiting} texts still wait for their vectors and were searched by words only")
    return "; ".join(reasons) or None
