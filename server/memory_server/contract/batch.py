"""The answer of a batch: one outcome for each operation, and a text of bounded length that holds each one's text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from pydantic import BaseModel, Field
from pydantic.json_schema import SkipJsonSchema

from memory_server.contract.answer import Answer
from memory_server.contract.untrusted_text import MARK, NOTE, counted

_TOKENS, _LEAST = 7_000, 40
"""About how long the text may be, and what an operation gets at least if it is in the text at all."""
_FAILURES_NAMED = 20
_ID = re.compile(r"\b[0-9a-z]{26}\b")
_ID_TOKENS = 18
_CUT = "(cut; call it alone for the rest)"


class Outcome(BaseModel):
    """The outcome of one operation of a batch."""

    ok: bool
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    said: SkipJsonSchema[list[str]] = Field(default_factory=list[str], exclude=True)
    """The lines of its own text, which are those of an `Answer` and so escaped."""

    @property
    def id(self) -> str | None:
        """The id that its text names once, such as that of a stored memory."""
        named = (self.result or {}).get("memory_id") or (self.result or {}).get("task_id")
        return named if isinstance(named, str) and " ".join(self.said).count(f"[{named}]") == 1 else None

    def lines(self) -> list[str]:
        if self.error is None:
            lines = (line if line.startswith(MARK) else line.removesuffix(NOTE).rstrip() for line in self.said)
            return [line for line in lines if line] or ["Done."]
        hint = f" ({self.error['hint']})" if self.error.get("hint") else ""
        return [f"{self.error.get('code', 'internal')}: {self.error.get('message', '')}{hint}"]


@dataclass(frozen=True, slots=True)
class _Run:
    """Outcomes in a row that say the same of different ids; most are one outcome alone."""

    first: int
    outcomes: list[Outcome]

    @property
    def last(self) -> int:
        return self.first + len(self.outcomes) - 1

    def tokens(self) -> int:
        return _tokens(self.outcomes[0].lines()) + (len(self.outcomes) - 1) * _ID_TOKENS

    def lines(self, room: float) -> list[str]:
        """Return its numbered lines, cut to about `room` tokens."""
        number = str(self.first) if self.first == self.last else f"{self.first}-{self.last}"
        own = self.outcomes[0].id
        kept = self.outcomes[: max(1, int((room - _LEAST) // _ID_TOKENS))]
        first, *others = _within(self.outcomes[0].lines(), room)
        if own and len(self.outcomes) > 1:
            first = first.replace(f"[{own}]", ", ".join(f"[{one.id}]" for one in kept), 1)
            left = len(self.outcomes) - len(kept)
            ids = counted(
                left, "id is left out: get_agent_memories lists it", "ids are left out: get_agent_memories lists them"
            )
            first += f" {ids}." if left else ""
        start = [f"{number}.", first] if first.startswith(MARK) else [f"{number}. {first}"]
        return [*start, *others]


class BatchAnswer(Answer):
    """One outcome for each operation, in order."""

    results: list[Outcome]
    succeeded: int
    failed: int

    def lines(self) -> list[str]:
        runs = list(_runs(self.results))
        limit, room, lines = _limit([run.tokens() for run in runs]), _TOKENS * 1.1, list[str]()
        for run in runs:
            part = run.lines(limit)
            room -= _tokens(part)
            if room < 0 and lines:
                lines += _left_out(run.first, self.results)
                break
            lines += part
        note = [NOTE] if any(line.startswith(MARK) for line in lines) else []
        return [f"{self.succeeded} succeeded, {self.failed} failed.", *note, *lines]


def _runs(outcomes: Sequence[Outcome]) -> Iterator[_Run]:
    run, said = _Run(1, []), None
    for number, outcome in enumerate(outcomes, 1):
        lines = outcome.lines()
        same = lines[0].replace(f"[{outcome.id}]", "[]") if len(lines) == 1 and (outcome.id or outcome.error) else None
        if run.outcomes and (same is None or same != said):
            yield run
            run = _Run(number, [])
        run.outcomes.append(outcome)
        said = same
    if run.outcomes:
        yield run


def _tokens(lines: Sequence[str]) -> int:
    """Estimate tokens: four bytes each, and more for ids, which no tokenizer knows."""
    return sum(len(line.encode()) // 4 + 1 + 11 * len(_ID.findall(line)) for line in lines)


def _limit(costs: Sequence[int]) -> float:
    """Return the most tokens of one part with which all fit: short parts leave their share to long ones."""
    room = float(_TOKENS)
    for left, cost in zip(range(len(costs), 0, -1), sorted(costs), strict=True):
        if cost * left > room:
            return max(room / left, _LEAST)
        room -= cost
    return room + max(costs, default=0)


def _within(lines: Sequence[str], room: float) -> list[str]:
    """Cut lines to about `room` tokens. Only a framed line is cut in its middle: a quote must keep its end."""
    kept = list[str]()
    for line in lines:
        tokens = _tokens([line])
        if tokens <= room:
            kept.append(line)
            room -= tokens
            continue
        if line.startswith(MARK) and room > 1:
            kept.append(line[: len(MARK) + int(room * 4 * len(line) / len(line.encode()))])
        return [*kept, _CUT]
    return kept


def _left_out(first: int, results: Sequence[Outcome]) -> list[str]:
    left = results[first - 1 :]
    failed = [f"{n} ({one.error.get('code')})" for n, one in enumerate(left, first) if one.error is not None]
    more = f" and {len(failed) - _FAILURES_NAMED} more" if len(failed) > _FAILURES_NAMED else ""
    failures = f" Failed among them: {', '.join(failed[:_FAILURES_NAMED])}{more}." if failed else ""
    return [
        f"The texts of {counted(len(left), 'operation')} from {first} on are left out.{failures} get_agent_memories "
        "lists what was stored; send reads again in smaller batches."
    ]


def lines_of(texts: Sequence[str]) -> list[str]:
    """Return the lines of an operation's texts."""
    return list(chain.from_iterable(text.split("\n") for text in texts))
