"""Arguments and answers of the sharing tools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, Field

from memory_core.records.memory import MemoryType
from memory_server.contract.answer import Answer
from memory_server.contract.arguments import AgentName, Arguments, Id, Ids, ListOf, Time
from memory_server.contract.memories import Memory, entries
from memory_server.contract.untrusted_text import NOTE, counted, quoted, word
from memory_server.contract.wording import lifetime, minute


class ShareArguments(Arguments):
    """share_context_with_agent"""

    unused_if_empty = frozenset({"memory_ids", "tags", "memory_types"})

    target_agent: AgentName
    memory_ids: Ids | None = Field(default=None, description="or context, tags or memory_types")
    context: str | None = None
    tags: ListOf[str] | None = Field(default=None, description="any of them")
    memory_types: ListOf[MemoryType] | None = None
    permission: Literal["read", "write"] = Field(default="read", description="write: may also change and share on")
    bidirectional: bool = Field(default=False, description="offer the other direction too")
    expires_in_seconds: int | None = Field(default=None, description="default: never")
    note: str | None = Field(default=None, description="why")


class RevokeArguments(Arguments):
    """revoke_shared_context"""

    grant_id: Id = Field(description="a grant_id or offer_id")


class OfferArguments(Arguments):
    """answer_offer"""

    offer_id: Id = Field(description="of get_shared_context or an event")
    accept: bool = Field(default=True, description="false: decline")


class SharedContextArguments(Arguments):
    """get_shared_context"""

    agent_id: AgentName | None = Field(default=None, description="who shares")
    context: str | None = None
    query: str | None = Field(default=None, description="best matches first; not with since")
    since: Time | None = Field(default=None, description="next_cursor or time: changes only")
    max_tokens: int = Field(default=4000, ge=1, description="budget of the answer")


def covered(
    context: str | None = None, tags: Sequence[str] = (), types: Sequence[str] = (), memories: int | None = None
) -> str:
    """Say what a selector covers: `context island`, `tags a, b`, `types code`, `2 memories`."""
    if context:
        return f"context {word(context)}"
    if tags:
        return f"{'tag' if len(tags) == 1 else 'tags'} {', '.join(map(word, tags))}"
    if types:
        return f"{'type' if len(types) == 1 else 'types'} {', '.join(types)}"
    return counted(memories or 0, "memory")


def shared_back(whose: str, covers: str) -> str:
    """Say what a two-way offer asks for: `YOUR context island (private and later memories too)`."""
    return f"{whose} {covers} (private and later memories too)"


def accepting(reader: str, *, giver: str, receiver: str, covers: str, permission: str, transfer: bool = False) -> str:
    """Say what accepting an offer does, to its receiver, its giver or an operator."""
    is_mine, giver = reader == receiver, "you" if reader == giver else giver
    start = "accepting" if is_mine else f"if {receiver} accepts,"
    if transfer:
        return f"{start} makes {covers} of {giver} YOURS" if is_mine else f"{start} {covers} of {giver} become its own"
    if is_mine:
        return f"{start} also shares {shared_back('YOUR', covers)} with {giver} ({permission})"
    whose = shared_back(f"{receiver}'s", covers)
    return f"{start} {whose} is shared with {giver} ({permission})"


class ShareAnswer(Answer):
    """A new grant, and the offer of the other direction."""

    grant_id: str
    target_agent: str
    permission: Literal["read", "write"]
    covers: str = Field(description="the selector in words")
    matches: int | None = Field(default=None, description="your memories that it covers now; null if not counted")
    expires_at: str | None = None
    offer_id: str | None = Field(default=None, description="in force once the other accepts it")
    accepted_offer: str | None = Field(default=None, description="the other agent's offer that this accepted")

    def lines(self) -> list[str]:
        ends = f" until {minute(self.expires_at)}" if self.expires_at else ""
        now = "" if self.matches is None else f"; {counted(self.matches, 'matches', 'match')} now"
        lines = [
            f"Shared {self.covers} with {self.target_agent} ({self.permission}){ends} by grant {self.grant_id}{now}."
        ]
        if self.offer_id:
            lines.append(
                f"Offer {self.offer_id} waits for {self.target_agent} to share the same with you: answer_offer."
            )
        if self.accepted_offer:
            lines.append(f"This accepts offer {self.accepted_offer}.")
        return lines


class RevokeAnswer(Answer):
    """The grants that a revoke ended."""

    grant_id: str
    grants_ended: int = Field(description="the grant and those passed on under it; 0 for an offer")

    def lines(self) -> list[str]:
        return [f"Revoked {self.grant_id}: {counted(self.grants_ended, 'grant')} ended."]


class OfferedAnswer(Answer):
    """An offer of what an agent kept when it left."""

    offer_id: str
    from_agent: str
    to_agent: str
    memories: int

    def lines(self) -> list[str]:
        memories = counted(self.memories, "memory")
        return [f"Offer {self.offer_id} of {memories} of {self.from_agent} waits for {self.to_agent}."]


class OfferAnswer(Answer):
    """What is in force after an offer was answered."""

    offer_id: str
    from_agent: str | None = None
    accepted: bool
    grant_id: str | None = Field(default=None, description="your grant to from_agent, of a two-way offer")
    covers: str | None = Field(default=None, description="of your memories, what that grant shares")
    permission: Literal["read", "write"] | None = None
    expires_at: str | None = None
    memories_received: int | None = Field(default=None, description="memories that are yours now, of a transfer")

    def lines(self) -> list[str]:
        if not self.accepted:
            return [f"Declined {self.offer_id}; nothing of it is in force."]
        if self.grant_id:
            return [
                f"Accepted {self.offer_id}: {shared_back('YOUR', self.covers or '')} is shared with {self.from_agent} "
                f"({self.permission}) by grant {self.grant_id}; revoke_shared_context ends that."
            ]
        received = counted(self.memories_received or 0, "memory")
        verb = "is" if self.memories_received == 1 else "are"
        return [f"Accepted {self.offer_id}: {received} of {self.from_agent} {verb} yours now."]


class SharedMemory(BaseModel):
    """A memory that grants show."""

    memory: Memory
    granted_by: list[str] = Field(description="agents whose grants show it")
    changed_at: str = Field(description="its last change or the grant, whichever is later")


class GrantInfo(BaseModel):
    """A grant in force or an offer waiting, and what it covers."""

    id: str
    from_agent: str
    to_agent: str
    permission: Literal["read", "write"]
    context: str | None = None
    tags: list[str] = []
    memory_types: list[str] = []
    memories: int | None = Field(default=None, description="number of single memories")
    transfer: bool = Field(default=False, description="an offer of all memories of an agent that left")
    grown: int = Field(default=0, description="chunks that a holder of write added to the grantor's memories")
    granted_at: str
    expires_at: str | None = None
    if_accepted: str | None = Field(default=None, description="what accepting does, of an offer")
    note: str | None = None

    @property
    def covers(self) -> str:
        return covered(self.context, self.tags, self.memory_types, self.memories)

    def line(self) -> str:
        what = self.if_accepted or f"{self.permission} {self.covers}"
        grown = f", {counted(self.grown, 'chunk')} added" if self.grown else ""
        ends = f", {lifetime(self.expires_at)}" if self.expires_at else ""
        note = f": {quoted(self.note)}" if self.note else ""
        return f"[{self.id}] {self.from_agent} to {self.to_agent}, {what}{grown}{ends}{note}"


class GrantState(GrantInfo):
    """A grant or an offer with its state."""

    state: Literal["active", "offered", "expired", "revoked", "declined", "accepted"]


class GrantListAnswer(Answer):
    """Grants and offers of a namespace, newest first."""

    grants: list[GrantState]


class SharedContextAnswer(Answer):
    """Memories that others share with the caller, and its grants and offers."""

    has_own_limit = True

    memories: list[SharedMemory] = Field(default_factory=list[SharedMemory])
    next_cursor: str | None = Field(default=None, description="pass it as since for what this answer left out")
    more: bool = Field(default=False, description="the budget left something out")
    granted_to_me: list[GrantInfo] = Field(default_factory=list[GrantInfo])
    granted_by_me: list[GrantInfo] = Field(default_factory=list[GrantInfo])
    offers: list[GrantInfo] = Field(
        default_factory=list[GrantInfo], description="answer_offer accepts or declines one to you"
    )

    def shown(self) -> list[str]:
        return [shared.memory.memory_id for shared in self.memories]

    def lines(self) -> list[str]:
        shared_memories = counted(len(self.memories), "shared memory", "shared memories")
        lines = [f"{shared_memories}.{f' {NOTE}' if self.memories else ''}"]
        lines += entries([shared.memory for shared in self.memories]) if self.memories else []
        listed = {
            "Grants to you": self.granted_to_me,
            "Grants by you": self.granted_by_me,
            "Offers, for answer_offer": self.offers,
        }
        for name, grants in listed.items():
            lines += [f"{name}:", *(grant.line() for grant in grants)] if grants else []
        if self.next_cursor:
            lines.append(f"{'More' if self.more else 'Changes from now on'}: since={self.next_cursor}")
        return lines
