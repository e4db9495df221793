"""Dashboard sessions, in the memory of this process.

The browser has 256 random bits in a cookie and 256 in the storage of the page, and the server their common hash. The
cookie is hidden from scripts but sent to every port of the host; the page key belongs to one port but is not hidden.
Neither opens the session alone. A session has either a bearer token, which is checked for each request as on /mcp, or
was opened by an operator's one-time URL.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import dataclass, field
from typing import NamedTuple

LONGEST_SECONDS = 12 * 3600.0
IDLE_SECONDS = 3600.0
_MAX_SESSIONS = 1000


class Proof(NamedTuple):
    """The two secrets that open a session."""

    cookie: str
    page_key: str

    @property
    def hash(self) -> str:
        return hashlib.sha256(f"{self.cookie} {self.page_key}".encode(errors="replace")).hexdigest()


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

    def open(self, namespace: str, token: str | None = None) -> Proof:
        """Open a session and return its proof. If there are too many, the least recently used one is closed."""
        for key in [key for key, session in self._open.items() if session.has_ended]:
            del self._open[key]
        if len(self._open) >= _MAX_SESSIONS:
            del self._open[min(self._open, key=lambda key: self._open[key].used)]
        proof = Proof(secrets.token_urlsafe(32), secrets.token_urlsafe(32))
        self._open[proof.hash] = Session(namespace, token)
        return proof

    def find(self, proof: Proof) -> Session | None:
        """Return the session that a proof opens, and mark it as used."""
        session = self._open.get(proof.hash)
        if session is None or session.has_ended:
            self.close(proof)
            return None
        session.used = time.monotonic()
        return session

    def close(self, proof: Proof) -> None:
        """Close the session that a proof opens, if any."""
        self._open.pop(proof.hash, None)
