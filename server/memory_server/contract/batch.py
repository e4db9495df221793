"""The answer of a batch: one outcome for each operation, and a text of bounded length that holds each one's text."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from pydantic import BaseModel, Field
from pydantic.json_schema import SkipJsonSchema

from memory_server.contract import tokens
from memory_server.contract.answer import Answer
from memory_server.contract.untrusted_text import MARK, NOTE, counted

_ALL, _LEAST = 1 << 40, 40
"""Tokens of a text without a limit, and what an operation gets at least if it is in the text at all."""
_OWN_WORDS = 300
"""Tokens of the answer's own words, in both forms."""
_NAMING = ("memory_id", "task_id", "grant_id", "offer_id", "state", "deleted", "lease_token")
"""What is left of a result that does not fit."""
_ERROR_CHARS, _MOST_CHARACTERS = 160, 16
_CUT_RESULTS = "results of {cut} are cut to their ids or left out; max_tokens=0 gives all"
_FEW = 32
"""Long texts whose tokens are counted one by one."""
_FAILURES_NAMED = 20
_ID_TOKENS = 20
_CUT_READ = "(cut; call it alone for the rest)"
_CUT_CHANGE = "(done: do not repeat it; {left})"


class Outcome(BaseModel):
    """The outcome of one operation of a batch."""

    ok: bool
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    said: SkipJsonSchema[list[str]] = Field(default_factory=list[str], exclude=True)
    """The lines of its own text, which are those of an `Answer` and so escaped."""
    is_change: SkipJsonSchema[bool] = Field(default=False, exclude=True)
    """Whether a repetition would do it again."""

    def brief(self) -> Outcome:
        """Return it with the ids and the state of its result, and the beginning of its error."""
        result = {name: value for name, value in (self.result or {}).items() if name in _NAMING} or None
        error = self.error and {
            "code": self.error.get("code"),
            "message": str(self.error.get("message"))[:_ERROR_CHARS],
        }
        return Outcome(ok=self.ok, result=result, error=error)

    def bare(self) -> Outcome:
        """Return whether it succeeded, and the code of its error."""
        return Outcome(ok=self.ok, error=self.error and {"code": self.error.get("code")})

    def tokens(self, enough: int) -> int:
        return tokens.count(self.model_dump_json(exclude_none=True) + ",", enough)

    @property
    def id(self) -> str | None:
        """The id that its text names once, such as that of a stored memory."""
        named = (self.result or {}).get("memory_id") or (self.result or {}).get("task_id")
        return named if isinstance(named, str) and " ".join(self.said).count(f"[{named}]") == 1 else None

    def when_cut(self) -> str:
        """Return what stands for the rest of its text."""
        if not self.is_change:
            return _CUT_READ
        ids = [f"{name}={value}" for name, value in (self.brief().result or {}).items() if name != "state"]
        left = ", ".join(ids) or ("get_pending_tasks shows what you hold" if self._has_leases() else "its text is cut")
        return _CUT_CHANGE.format(left=left)

    def _has_leases(self) -> bool:
        return bool((self.result or {}).get("tasks"))

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

    def tokens(self, enough: float) -> int:
        return _tokens(self.outcomes[0].lines(), enough) + (len(self.outcomes) - 1) * _ID_TOKENS

    def about(self) -> int:
        """Estimate its tokens in no time: one for four bytes."""
        return sum(len(line.encode()) // 4 + 1 for line in self.outcomes[0].lines()) + len(self.outcomes) * _ID_TOKENS

    def lines(self, room: float) -> list[str]:
        """Return its numbered lines, cut to about `room` tokens."""
        number = str(self.first) if self.first == self.last else f"{self.first}-{self.last}"
        own = self.outcomes[0].id
        kept = self.outcomes[: max(1, int((room - _LEAST) // _ID_TOKENS))]
        first, *others = _within(self.outcomes[0].lines(), room, self.outcomes[0].when_cut())
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

    has_own_limit = True

    results: list[Outcome]
    succeeded: int
    failed: int
    said: SkipJsonSchema[list[str] | None] = Field(default=None, exclude=True)
    """The lines of its operations, once they are fitted."""

    def lines(self) -> list[str]:
        lines = self._said(_ALL) if self.said is None else self.said
        note = [NOTE] if any(line.startswith(MARK) for line in lines) else []
        return [f"{self.succeeded} succeeded, {self.failed} failed.", *note, *lines]

    def fitted(self, most: int) -> BatchAnswer:
        """Return the answer cut to so many tokens; 0 gives all. There is an outcome for each operation, whatever fits.

        The text takes up to half. Of the structured form each outcome first gets its ids, then its whole result,
        shorter ones before longer ones.
        """
        if not most:
            return self
        shapes = [one.bare() for one in self.results]
        costs = [one.tokens(most) for one in shapes]
        room = most - _OWN_WORDS - sum(costs)
        said = self._said(max(int(min(most // 2, room) / 1.1), _LEAST))
        room -= _tokens(said, most)
        for number, brief in enumerate([one.brief() for one in self.results]):
            cost = brief.tokens(most)
            if cost - costs[number] <= room:
                room -= cost - costs[number]
                shapes[number], costs[number] = brief, cost
        misfits, lengths = 0, [len(one.model_dump_json(exclude_none=True)) for one in self.results]
        for number in sorted(range(len(lengths)), key=lengths.__getitem__):
            cost = self.results[number].tokens(room + costs[number])
            if cost - costs[number] <= room:
                room -= cost - costs[number]
                shapes[number], costs[number] = self.results[number], cost
            elif (misfits := misfits + 1) > _FEW:  # longer ones hardly fit, and counting takes time
                break
        cut = sum(shape != one for shape, one in zip(shapes, self.results, strict=True))
        if not cut:
            return self.model_copy(update={"said": said})
        reason = _CUT_RESULTS.format(cut=counted(cut, "operation"))
        return self.model_copy(update={"said": said, "results": shapes, "partial": True, "reason": reason})

    def _said(self, most: int) -> list[str]:
        """Return the lines of its operations, of about so many tokens."""
        runs = list(_runs(self.results))
        costs = [run.about() if len(runs) > _FEW else run.tokens(most) for run in runs]
        limit, room, lines = _limit(costs, most), most * 1.1, list[str]()
        for run in runs:
            part = run.lines(limit)
            room -= _tokens(part, room)
            if room < 0 and lines:
                lines += _left_out(run.first, self.results)
                break
            lines += part
        return lines


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


def _tokens(lines: Sequence[str], enough: float) -> int:
    """Estimate tokens, and stop counting at `enough`."""
    found = 0
    for line in lines:
        found += tokens.count(line, int(enough)) + 1
        if found > enough:
            break
    return found


def _limit(costs: Sequence[int], most: int) -> float:
    """Return the most tokens of one part with which all fit: short parts leave their share to long ones."""
    room = float(most)
    for left, cost in zip(range(len(costs), 0, -1), sorted(costs), strict=True):
        if cost * left > room:
            return max(room / left, _LEAST)
        room -= cost
    return room + max(costs, default=0)


def _within(lines: Sequence[str], room: float, when_cut: str) -> list[str]:
    """Cut lines to about `room` tokens; `when_cut` stands for the rest.

    Only a framed line is cut in its middle: a quote must keep its end.
    """
    kept = list[str]()
    for line in lines:
        needed = _tokens([line], room)
        if needed <= room:
            kept.append(line)
            room -= needed
            continue
        if line.startswith(MARK) and room > 1:
            ends = range(len(MARK), min(len(line), int(room * _MOST_CHARACTERS)))
            fitting = bisect_right(ends, room, key=lambda end: tokens.count(line[:end], int(room)))
            kept.append(line[: ends[fitting - 1] if fitting else len(MARK)])
        return [*kept, when_cut]
    return kept


def _left_out(first: int, results: Sequence[Outcome]) -> list[str]:
    left = results[first - 1 :]
    failed = [f"{n} ({one.error.get('code')})" for n, one in enumerate(left, first) if one.error is not None]
    more = f" and {len(failed) - _FAILURES_NAMED} more" if len(failed) > _FAILURES_NAMED else ""
    failures = f" Failed among them: {', '.join(failed[:_FAILURES_NAMED])}{more}." if failed else ""
    return [
        f"The texts of {counted(len(left), 'operation')} from {first} on are left out.{failures} Do not repeat "
        "changes: get_agent_memories, list_tasks and get_pending_tasks list what was stored, handed out and claimed. "
        "Send reads again in smaller batches."
    ]


def lines_of(texts: Sequence[str]) -> list[str]:
    """Return the lines of an operation's texts."""
    return list(chain.from_iterable(text.split("\n") for text in texts))
