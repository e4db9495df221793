"""The base of all tools' answers: whether it is complete, and a short text for models."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar, cast

from pydantic import BaseModel
from pydantic_core import to_json

from memory_core.errors import plain_line
from memory_server.contract import tokens
from memory_server.contract.untrusted_text import counted

_OWN_WORDS = 60
"""Tokens of the words that say what was left out."""
_WHOLE = ("tasks", "held")
"""Lists of leased tasks, which keep all items: each has a lease_token."""
_FEW_ITEMS, _FEW_CHARS = 4, 100
"""A list or a text of this size is not shortened further."""


class Answer(BaseModel):
    """Base of all answers. `partial`: something is missing; `reason` says what. `names`: what given names became.

    `note`: how the call was understood, if not as given.
    """

    has_own_limit: ClassVar[bool] = False
    """Whether the use case fits it to its limit; others are shortened by `shorten`."""

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

    def tokens(self, enough: int | None = None) -> int:
        """Estimate the tokens of its two forms together, as most connections send both; stop counting at `enough`."""
        structured = to_json(self.model_dump(mode="json", exclude_none=True)).decode()
        found = tokens.count(structured, enough)
        return found if enough is not None and found > enough else found + tokens.count(self.text(), enough)

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


A = TypeVar("A", bound=Answer)


@dataclass(frozen=True, slots=True)
class _Part:
    """A list, a map or a text in an answer, which can be shortened."""

    owner: Any
    key: Any
    field: str
    size: int

    def halve(self) -> None:
        value: Any = getattr(self.owner, self.key) if isinstance(self.owner, BaseModel) else self.owner[self.key]
        half = len(value) // 2
        if isinstance(value, str):
            value = value[:half] + "…"
        elif isinstance(value, list):
            value = cast(list[Any], value)[:half]
        else:
            value = dict(list(cast(dict[Any, Any], value).items())[:half])
        if isinstance(self.owner, BaseModel):
            setattr(self.owner, self.key, value)
        else:
            self.owner[self.key] = value


def shorten(answer: A, most: int) -> A:
    """Halve the longest part of an answer until it takes at most so many tokens."""
    if answer.tokens(most) <= most:
        return answer
    answer, cut = answer.model_copy(deep=True), dict[str, None]()
    while answer.tokens(most) > most - _OWN_WORDS:
        longest = max(_parts(answer), key=lambda part: part.size, default=None)
        if longest is None:
            break
        longest.halve()
        cut[longest.field] = None
    answer.partial = True
    answer.reason = "; ".join(filter(None, [answer.reason, f"too long for one answer, cut: {', '.join(cut)}"]))
    return answer


def _parts(owner: Any, field: str = "") -> Iterator[_Part]:
    if isinstance(owner, BaseModel):
        fields = type(owner).model_fields
        items = [(name, getattr(owner, name)) for name, info in fields.items() if not info.exclude]
    elif isinstance(owner, dict):
        items = list(cast(dict[Any, Any], owner).items())
    else:
        items = list(enumerate(cast(list[Any], owner)))
    for key, value in items:
        name = str(key) if isinstance(owner, BaseModel) else field
        if isinstance(value, str) and len(value) > _FEW_CHARS:
            yield _Part(owner, key, name, len(value))
        elif isinstance(value, list | dict | BaseModel):
            inner = cast(Any, value)
            if not isinstance(inner, BaseModel) and len(inner) > _FEW_ITEMS and name not in _WHOLE:
                yield _Part(owner, key, name, len(to_json(inner)))
            yield from _parts(inner, name)


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
