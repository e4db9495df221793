"""The credential of a call, which is checked again while the call is under way."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from memory_core.errors import Unauthenticated
from memory_core.records.access import Access

_FRESH_SECONDS = 0.1
"""A credential that was checked this recently counts as valid, unless the call waited."""


class Credential:
    """What a token or session granted when the call began. `renew` reads what it grants now, None if it has ended."""

    def __init__(self, access: Access, renew: Callable[[], Awaitable[Access | None]], checked_at: float) -> None:
        self._access, self._renew, self._checked_at = access, renew, checked_at

    async def check(self) -> None:
        """Raise Unauthenticated if it has expired, was revoked, or grants less than it did."""
        now, then = await self._renew(), self._access
        same_agent = now is not None and (now.agent, now.namespace) == (then.agent, then.namespace)
        if now is None or not same_agent or not then.scopes <= now.scopes:
            raise Unauthenticated(
                "the token is no longer valid; operations before this one may have been done",
                hint="ask the operator for a new one",
            )
        self._checked_at = time.monotonic()

    async def check_if_stale(self) -> None:
        """Check it unless that was done a moment ago."""
        if time.monotonic() - self._checked_at > _FRESH_SECONDS:
            await self.check()
