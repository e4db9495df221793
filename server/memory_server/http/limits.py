"""Limits the open HTTP requests before their tokens are checked.

Each address has a share of the requests. Once its token is checked, a request counts against its agent instead.
"""

from __future__ import annotations

from collections.abc import Hashable

from starlette.types import ASGIApp, Receive, Scope, Send

from memory_server.engine.shares import Shares
from memory_server.http.bodies import address_of, unavailable

PLACE = "memory.place"
"""Key in an HTTP request's scope of the place that it takes among the open requests."""


class RequestLimits:
    """Limits the open requests."""

    def __init__(self, app: ASGIApp, requests: Shares) -> None:
        self.app = app
        self._requests = requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        place = Place(self._requests, address_of(scope))
        if not place.take():
            await unavailable()(scope, receive, send)
            return
        try:
            await self.app({**scope, PLACE: place}, receive, send)
        finally:
            place.leave()


class Place:
    """The place of one request among the open ones."""

    def __init__(self, shares: Shares, holder: Hashable) -> None:
        self._shares, self._holder = shares, holder

    def take(self) -> bool:
        return self._shares.take(self._holder)

    def pass_to(self, holder: Hashable) -> bool:
        """Count the request against another holder; False, and unchanged, if that holder has too many."""
        self._shares.give_back(self._holder)
        if has_room := self._shares.has_room(holder):
            self._holder = holder
        self._shares.force(self._holder)
        return has_room

    def leave(self) -> None:
        self._shares.give_back(self._holder)
