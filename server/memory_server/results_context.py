"""What the tools of context sharing answer."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from memory_server.results import Answer


class ShareAnswer(Answer):
    """A grant, and the offer of the other direction."""

    grant_id: str
    target_agent: str
    permission: Literal["read", "write"]
    expires_at: str | None = None
    offer_id: str | None = Field(None, description="in force once the other agent shares the same selector with you")
    accepted_offer: str | None = Field(None, description="the other agent's offer that this accepted")

    def summary(self) -> str:
        """Say what is in force now."""
        lines = [f"Shared with {self.target_agent} ({self.permission}) by grant {self.grant_id}."]
        if self.offer_id:
            lines.append(f"Offer {self.offer_id} waits for {self.target_agent} to share the same with you.")
        if self.accepted_offer:
            lines.append(f"This accepts offer {self.accepted_offer}.")
        return "\n".join(lines)


class RevokeAnswer(Answer):
    """What a revoke has ended."""

    grant_id: str
    grants_ended: int = Field(description="the grant and those passed on under it; 0 for an offer")

    def summary(self) -> str:
        """Say so."""
        return f"Revoked {self.grant_id}; {self.grants_ended} grants ended."
