"""Sessions of people at the dashboard: kept in this process, ended by time, and never more than what opened them.

The browser holds 256 random bits in a cookie; kept here is their hash, and behind it a bearer token, which is checked
for each request as on /mcp, or the fact that the session began with an operator's one-time URL.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import dataclass, field

LONGEST_SECONDS = 12 * 3600.0
IDLE_SECONDS = 3600.0
_MOST = 1000


@dataclass(slots=True)
class Session:
    """What a cookie stands for: a bearer token, or an operator of one namespace."""

    namespace: str
    token: str | None = field(default=None, repr=False)
    began: float = field(default_factory=time.monotonic)
    used: float = field(default_factory=time.monotonic)

    @property
    def is_operator(self) -> bool:
        """Whether it was opened by a one-time URL."""
        return self.token is None

    @property
    def has_ended(self) -> bool:
        """Whether its time is over."""
        now = time.monotonic()
        return now - self.began > LONGEST_SECONDS or now - self.used > IDLE_SECONDS


class Sessions:
    """The sessions of one server process."""

    def __init__(self) -> None:
        self._open: dict[str, Session] = {}

    def open(self, namespace: str, token: str | None = None) -> str:
        """Begin a session and give what its cookie says; of too many the longest unused ends."""
        for key in [key for key, session in self._open.items() if session.has_ended]:
            del self._open[key]
        if len(self._open) >= _MOST:
            del self._open[min(self._open, key=lambda key: self._open[key].used)]
        cookie = secrets.token_urlsafe(32)
        self._open[_hash(cookie)] = Session(namespace, token)
        return cookie

    def find(self, cookie: str | None) -> Session | None:
        """Give the session of a cookie, and count it as used."""
        session = self._open.get(_hash(cookie)) if cookie else None
        if session is None or session.has_ended:
            self.close(cookie)
            return None
        session.used = time.monotonic()
        return session

    def close(self, cookie: str | None) -> None:
        """End the session of a cookie, if there is one."""
        if cookie:
            self._open.pop(_hash(cookie), None)


def _hash(cookie: str) -> str:
    return hashlib.sha256(cookie.encode(errors="replace")).hexdigest()
