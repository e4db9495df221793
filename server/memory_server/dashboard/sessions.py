"""Dashboard sessions, in the memory of this process.

The browser has 256 random bits in a cookie, and the server their hash. A session has either a bearer token, which is
checked for each request as on /mcp, or was opened by an operator's one-time URL.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import dataclass, field

LONGEST_SECONDS = 12 * 3600.0
IDLE_SECONDS = 3600.0
_MAX_SESSIONS = 1000


@dataclass(slots=True)
class Session:
    """A session by a bearer token, or of an operator of one namespace."""

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
        """Whether it has expired."""
        now = time.monotonic()
        return now - self.began > LONGEST_SECONDS or now - self.used > IDLE_SECONDS


class Sessions:
    """The sessions of one server process."""

    def __init__(self) -> None:
        self._open: dict[str, Session] = {}

    def open(self, namespace: str, token: str | None = None) -> str:
        """Open a session and return its cookie. If there are too many, the least recently used one is closed."""
        for key in [key for key, session in self._open.items() if session.has_ended]:
            del self._open[key]
        if len(self._open) >= _MAX_SESSIONS:
            del self._open[min(self._open, key=lambda key: self._open[key].used)]
        cookie = secrets.token_urlsafe(32)
        self._open[_hash(cookie)] = Session(namespace, token)
        return cookie

    def find(self, cookie: str | None) -> Session | None:
        """Return the session of a cookie, and mark it as used."""
        session = self._open.get(_hash(cookie)) if cookie else None
        if session is None or session.has_ended:
            self.close(cookie)
            return None
        session.used = time.monotonic()
        return session

    def close(self, cookie: str | None) -> None:
        """Close the session of a cookie, if any."""
        if cookie:
            self._open.pop(_hash(cookie), None)


def _hash(cookie: str) -> str:
    return hashlib.sha256(cookie.encode(errors="replace")).hexdigest()
