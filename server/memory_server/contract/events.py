"""Answer of `wait_for_events`."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from memory_server.contract.answer import Answer
from memory_server.contract.untrusted_text import quoted

EventKind = Literal["task", "memory", "grant", "agent", "match"]


class Event(BaseModel):
    """One event. A match is a memory close to your query."""

    kind: EventKind
    op: str = Field(description="what was done, such as stored, deleted, assigned, granted")
    id: str = Field(description="of the memory, task or grant; the name of an agent")
    by: str | None = Field(default=None, description="agent that did it")
    at: str
    what: str = Field(default="", description="what happened, in words")
    score: float | None = None
    snippet: str | None = Field(default=None, description="beginning of the matching text")
    uri: str | None = Field(default=None, description="resource to read it by")

    def line(self) -> str:
        score = f" {self.score:.2f}" if self.score is not None else ""
        snippet = f": {quoted(self.snippet)}" if self.snippet is not None else ""
        by = f" by {self.by}" if self.by else ""
        what = self.what or f"{self.kind} {self.op} {self.id}{by}"
        return f"{self.at} {what}{score}{snippet}"


class EventsAnswer(Answer):
    """Events since the cursor or your last position, oldest first; none after a timeout."""

    has_own_limit = True

    events: list[Event]
    cursor: str = Field(description="send it with the next call, so that nothing is missed")
    more: bool = Field(default=False, description="call again for the rest")

    def shown(self) -> list[str]:
        return [event.id for event in self.events if event.snippet is not None]

    def lines(self) -> list[str]:
        lines = [event.line() for event in self.events] or ["Nothing happened."]
        more = "More events follow: call again. " if self.more else ""
        return [*lines, f"{more}cursor={self.cursor}"]
