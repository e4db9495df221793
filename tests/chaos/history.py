"""Records calls and their answers in files, so that a checker can judge them after processes were killed.

Each process writes a file of JSON lines. A call has two lines: `invoke`, then `ok`, `fail` (it certainly had no effect)
or `unknown`. A killed process leaves calls without a second line, which also count as unknown.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from memory_core.errors import MemoryServiceError, OutcomeUnknown

Json = dict[str, Any]
_CLOSE = 0.0002


class Outcome(StrEnum):
    """What the caller knows about the effect of a call."""

    OK = "ok"
    FAIL = "fail"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Call:
    """One call, timed by the monotonic clock. An unknown one may take effect at any time after it began."""

    process: str
    op: str
    agent: str
    arguments: Json
    outcome: Outcome = Outcome.UNKNOWN
    answer: Json = field(default_factory=dict[str, Any])
    began: float = 0.0
    ended: float = math.inf

    @property
    def is_ok(self) -> bool:
        """Whether the call succeeded."""
        return self.outcome is Outcome.OK

    @property
    def may_have_worked(self) -> bool:
        """Whether the call had, or may have had, its effect.

        When the server repeats a failure report after a lost answer, it may find its own effect and another holder.
        Then the answer is `lease_lost`.
        """
        return self.outcome is not Outcome.FAIL or (self.op == "fail" and self.answer.get("code") == "lease_lost")


@dataclass(frozen=True, slots=True)
class Clock:
    """How far the wall clock, which Redis uses, was ahead of the monotonic one: at least and at most."""

    least: float = 0.0
    most: float = 0.0

    def earliest(self, wall: float) -> float:
        """The earliest monotonic time that a wall time may mean."""
        return wall - self.most

    def latest(self, wall: float) -> float:
        """The latest one."""
        return wall - self.least

    @property
    def uncertainty(self) -> float:
        """The possible error of comparisons of wall times, in seconds."""
        return self.most - self.least


class Refusal(Exception):
    """A call was refused, or its outcome is unknown."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class Recorder:
    """Writes the history of one process. Each line is one write, so that it survives the process."""

    def __init__(self, folder: Path, process: str) -> None:
        self.process = process
        self._file = os.open(folder / f"{process}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._calls = 0

    async def call(self, op: str, agent: str, arguments: Json, action: Callable[[], Awaitable[Json]]) -> Json:
        """Run and record a call.

                Raises:
        Refusal: the call was refused, or its outcome is unknown.
        """
        self._calls += 1
        number = self._calls
        self._write(number, "invoke", op=op, agent=agent, arguments=arguments)
        try:
            answer = await action()
        except MemoryServiceError as error:
            outcome = Outcome.UNKNOWN if isinstance(error, OutcomeUnknown) else Outcome.FAIL
            self._write(number, outcome, answer={"code": error.code, "message": error.message})
            raise Refusal(error.code) from error
        self._write(number, Outcome.OK, answer=answer)
        return answer

    def _write(self, number: int, kind: str, **rest: Any) -> None:
        at, wall = _both_clocks()
        line = {"call": number, "kind": kind, "at": at, "wall": wall, **rest}
        os.write(self._file, json.dumps(line, separators=(",", ":")).encode() + b"\n")


def _both_clocks() -> tuple[float, float]:
    """Read both clocks close to each other. A busy machine needs several tries."""
    at = wall = 0.0
    for _ in range(20):
        at, wall = time.monotonic(), time.time()
        if time.monotonic() - at < _CLOSE:
            break
    return at, wall


def load(folder: Path) -> tuple[list[Call], Clock]:
    """Read the histories of all processes: the calls in order of their start, and the clock's offset."""
    calls: list[Call] = []
    offsets: list[float] = []
    for path in sorted(folder.glob("*.jsonl")):
        lines = list(_lines(path))
        calls += _paired(path.stem, lines)
        offsets += [line["wall"] - line["at"] for line in lines]
    calls.sort(key=lambda call: call.began)
    return calls, Clock(min(offsets, default=0.0), max(offsets, default=0.0))


def _lines(path: Path) -> Iterable[Json]:
    *whole, _torn = path.read_bytes().split(b"\n")
    return map(json.loads, whole)


def _paired(process: str, lines: Iterable[Json]) -> Iterable[Call]:
    invoked: dict[int, Json] = {}
    ended: dict[int, Json] = {}
    for line in lines:
        (invoked if line["kind"] == "invoke" else ended)[line["call"]] = line
    for number, line in invoked.items():
        invocation = (process, line["op"], line["agent"], line["arguments"])
        end = ended.get(number)
        if end is None:
            yield Call(*invocation, began=line["at"])
        else:
            outcome = Outcome(end["kind"])
            until = math.inf if outcome is Outcome.UNKNOWN else end["at"]
            yield Call(*invocation, outcome, end["answer"], line["at"], until)
