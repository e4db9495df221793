"""The arguments of the tools of context sharing."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from memory_core.records.memory import MemoryType
from memory_server.contract.arguments import Arguments, ListOf, Time


class ShareArguments(Arguments):
    """share_context_with_agent"""

    target_agent: str = Field(description="a registered agent")
    memory_ids: ListOf[str] | None = Field(default=None, description="these; or give context, tags or memory_types")
    context: str | None = None
    tags: ListOf[str] | None = Field(default=None, description="memories with any of them")
    memory_types: ListOf[MemoryType] | None = None
    permission: Literal["read", "write"] = Field(
        default="read", description="write: may change content and metadata, and share on, one level"
    )
    bidirectional: bool = Field(default=False, description="also offer the other direction")
    expires_in_seconds: int | None = Field(default=None, description="default never")
    note: str | None = Field(default=None, description="why, for the other agent")


class RevokeArguments(Arguments):
    """revoke_shared_context"""

    grant_id: str = Field(description="a grant_id or offer_id")


class SharedContextArguments(Arguments):
    """get_shared_context"""

    agent_id: str | None = Field(default=None, description="only what this agent shares with you")
    context: str | None = None
    query: str | None = Field(default=None, description="only what matches, best first; not with since")
    since: Time | None = Field(
        default=None, description="next_cursor of the call before, or a time: what changed since"
    )
    max_tokens: int = Field(default=4000, ge=1, description="budget for the contents returned")
