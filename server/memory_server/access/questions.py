"""Limits the questions to persons that an agent may have open, and lets each answer count once."""

from __future__ import annotations

import secrets
import time
from collections import Counter, OrderedDict
from collections.abc import Generator
from contextlib import contextmanager

from memory_core.errors import RateLimited
from memory_server.contract.untrusted_text import counted
from memory_server.engine.request_context import Caller

_MOST_CODES = 10_000


class Questions:
    """The open questions of one server process.

    A client of an older protocol answers while its call waits (`waiting`). Since protocol 2026-07-28 the call ends, and
    the client sends the answer with another call: `code` marks the question there, and `use` ends it.
    """

    def __init__(self, per_agent: int, seconds: float) -> None:
        self.seconds = seconds
        self._per_agent = per_agent
        self._waiting: Counter[tuple[str, str]] = Counter()
        self._codes: OrderedDict[tuple[str, str, str], tuple[str, float]] = OrderedDict()

    @contextmanager
    def waiting(self, caller: Caller) -> Generator[None]:
        """Count a question whose call waits for the answer. Raises RateLimited if the agent has too many."""
        who = (caller.namespace, caller.agent)
        if self._waiting[who] >= self._per_agent:
            raise RateLimited(
                f"{counted(self._per_agent, 'question to', 'questions to')} {caller.agent} "
                f"{'is' if self._per_agent == 1 else 'are'} unanswered",
                hint="answer one, or send confirm: true",
                retry_after=self.seconds,
            )
        self._waiting[who] += 1
        try:
            yield
        finally:
            self._waiting[who] -= 1
            if not self._waiting[who]:
                del self._waiting[who]

    def code(self, caller: Caller, subject: str) -> str:
        """Return the code of a caller's question about a subject. If there are too many, the oldest is dropped."""
        who, now = (caller.namespace, caller.agent), time.monotonic()
        for key in [key for key, (_, ends) in self._codes.items() if ends <= now]:
            del self._codes[key]
        if (*who, subject) not in self._codes:
            own = [key for key in self._codes if key[:2] == who]
            if len(own) >= self._per_agent:
                del self._codes[own[0]]
            elif len(self._codes) >= _MOST_CODES:
                self._codes.popitem(last=False)
            self._codes[*who, subject] = secrets.token_hex(4), now + self.seconds
        return self._codes[*who, subject][0]

    def use(self, caller: Caller, subject: str) -> bool:
        """End a question with its answer. Returns whether it was open."""
        _, ends = self._codes.pop((caller.namespace, caller.agent, subject), ("", 0.0))
        return ends > time.monotonic()
