"""Spaces the requests of each address whose tokens are not known to be valid.

Such a request waits instead of being refused: a client that waits sends less. Requests with a token that was valid
before pass, so agents that share an attacker's address do not wait. Without authentication, agents' calls all pass.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from memory_server.engine.rate_limits import Buckets
from memory_server.http.bodies import MCP, address_of, is_own_machine

_PER_SECOND, _BURST = 100, 200
_OWN_FACTOR = 10
"""All programs of this machine share the address 127.0.0.1."""
_BAD_TOKEN = 10
"""Requests that a request with an invalid token counts for: it is looked up in Redis and audited."""
_MOST_KNOWN = 10_000


class Pace:
    """Wraps the whole application."""

    def __init__(self, app: ASGIApp, known: KnownTokens) -> None:
        self.app = app
        self._known = known
        self._buckets = Buckets(_PER_SECOND, _BURST)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        address, cost = address_of(scope), 1 / _OWN_FACTOR if is_own_machine(scope) else 1.0
        if not self._known.has(scope) and (pause := self._buckets.spend(address, cost)):
            await asyncio.sleep(pause)

        async def watched(message: Message) -> None:
            if message.get("status") == 401:
                self._known.discard(scope)
                self._buckets.spend(address, cost * (_BAD_TOKEN - 1))
            await send(message)

        await self.app(scope, receive, watched)


class KnownTokens:
    """The tokens that were valid at their last check. If authentication `is_off`, calls need none."""

    def __init__(self, is_off: bool) -> None:
        self._is_off = is_off
        self._hashes: OrderedDict[int, None] = OrderedDict()

    def has(self, scope: Scope) -> bool:
        return scope["path"] == MCP if self._is_off else _hash(scope) in self._hashes

    def add(self, scope: Scope) -> None:
        """Note that the token of a request is valid."""
        token = _hash(scope)
        self._hashes[token] = None
        self._hashes.move_to_end(token)
        if len(self._hashes) > _MOST_KNOWN:
            self._hashes.popitem(last=False)

    def discard(self, scope: Scope) -> None:
        """Note that the token of a request is invalid."""
        self._hashes.pop(_hash(scope), None)


def _hash(scope: Scope) -> int:
    """Return a hash that differs in each process. If two tokens had the same, one would only not wait."""
    return hash(dict(scope["headers"]).get(b"authorization"))
