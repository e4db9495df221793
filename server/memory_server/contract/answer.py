"""The base of all tools' answers: whether it is complete, and a short text for models."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence

from pydantic import BaseModel
from pydantic_core import to_json

from memory_core.errors import plain_line
from memory_server.contract import tokens
from memory_server.contract.untrusted_text import counted


class Answer(BaseModel):
    """Base of all answers. `partial`: something is missing; `reason` says what. `names`: what given names became.

    `note`: how the call was understood, if not as given.
    """

    partial: bool = False
    reason: str | None = None
    names: str | None = None
    note: str | None = None

    def text(self) -> str:
        """Return the short text form. The one place where lines become text: no line can begin another."""
        partial = [f"PARTIAL: {self.reason}"] if self.partial else []
        names = [f"Names: {self.names}."] if self.names else []
        note = [f"Note: {self.note}."] if self.note else []
        return "\n".join(map(plain_line, [*self.lines(), *names, *note, *partial]))

    def tokens(self) -> int:
        """Estimate the tokens of its longer form."""
        structured = to_json(self.model_dump(mode="json", exclude_none=True)).decode()
        return max(tokens.count(self.text()), tokens.count(structured))

    def shown(self) -> Iterable[str]:
        """Return the ids of the memories and tasks whose contents it shows, for the audit."""
        return ()

    def shown_besides(self) -> Iterable[str]:
        """Return the shown ids that are unknown when the change writes its audit entry."""
        return ()

    def lines(self) -> Iterable[str]:
        """Return the lines of the text form. `untrusted_text` quotes or frames what agents wrote."""
        return [self.model_dump_json(exclude_defaults=True)]


def most_fitting(number: int, most: int, tokens_of: Callable[[int], int]) -> int:
    """Return how many of `number` items, at least one, an answer of at most so many tokens can hold."""
    if not number or tokens_of(number) <= most:
        return number
    return max(bisect_right(range(1, number + 1), most, key=tokens_of), 1)


def partial_reason(
    progress: float, warnings: Sequence[str] = (), *, failure: str | None = None, waiting: int = 0, failed: int = 0
) -> str | None:
    """Say what an answer lacks; None if it is complete."""
    reasons = list(dict.fromkeys(warnings))
    if progress < 1:
        reasons.append(f"the index is being built ({progress:.0%}); some memories cannot be found yet")
    if failure:
        reasons.append(f"by words only: {failure}")
    elif waiting:
        texts = counted(
            waiting, "text still waits for its vector and was", "texts still wait for their vectors and were"
        )
        reasons.append(f"{texts} searched by words only")
    if failed and not failure:
        texts = counted(failed, "text could not be embedded and was", "texts could not be embedded and were")
        reasons.append(f"{texts} searched by words only")
    return "; ".join(reasons) or None
