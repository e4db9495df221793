"""Bearer tokens. Redis stores them by id, with the hash of the secret that only the holder has.

A token is `rm_<id>_<secret>`. Each token is looked up and compared the same way, valid or not.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass

from memory_core.records import redis_time
from memory_core.records.access import Access, Scope, known_scopes
from memory_core.records.ids import new_id
from memory_core.records.keys import token_key
from memory_core.records.times import to_redis
from memory_core.redis_client import Client

_TOKEN = re.compile(r"rm_([0-9a-hjkmnp-tv-z]{26})_([A-Za-z0-9_-]{43})", re.ASCII)
_NO_HASH = "0" * 64


@dataclass(frozen=True, slots=True)
class Token:
    """An issued token without its secret."""

    id: str
    agent: str
    namespace: str
    scopes: frozenset[Scope]
    created_at: float
    expires_at: float
    revoked: bool

    def access(self) -> Access:
        return Access(self.agent, self.namespace, self.scopes, self.expires_at, self.id)

    def fields(self, secret: str) -> dict[str, str]:
        return {
            "hash": hash_of(secret),
            "agent": self.agent,
            "namespace": self.namespace,
            "scopes": " ".join(sorted(self.scopes)),
            "created_at": to_redis(self.created_at),
            "expires_at": to_redis(self.expires_at),
            "revoked": "0",
        }


def new_token(agent: str, namespace: str, scopes: frozenset[Scope], seconds: float) -> tuple[Token, str]:
    """Make a token and its secret, without storing it."""
    now = redis_time.now()
    return Token(new_id(), agent, namespace, scopes, now, now + seconds, False), secrets.token_urlsafe(32)


def text_of(token: Token, secret: str) -> str:
    """Format the token that the holder sends."""
    return f"rm_{token.id}_{secret}"


def parse(text: str) -> tuple[str, str] | None:
    """Split a token into id and secret; None if it is not a token."""
    found = _TOKEN.fullmatch(text)
    return (found[1], found[2]) if found else None


def hash_of(secret: str) -> str:
    """Hash a secret. It has 256 random bits, so it needs no salt and no slow hash."""
    return hashlib.sha256(secret.encode()).hexdigest()


async def load(client: Client, token_id: str) -> tuple[Token, str] | None:
    """Load a token and the hash of its secret."""
    raw: dict[bytes, bytes] = await client.hgetall(token_key(token_id))
    if not raw:
        return None
    fields = {name.decode(): value.decode() for name, value in raw.items()}
    token = Token(
        id=token_id,
        agent=fields["agent"],
        namespace=fields["namespace"],
        scopes=known_scopes(fields["scopes"].split()),
        created_at=float(fields["created_at"]),
        expires_at=float(fields["expires_at"]),
        revoked=fields["revoked"] != "0",
    )
    return token, fields["hash"]


async def verify(client: Client, text: str) -> Access | None:
    """Return what a token grants; None if it is unknown, expired or revoked, or its secret is wrong."""
    parsed = parse(text)
    if parsed is None:
        return None
    found = await load(client, parsed[0])
    right = hmac.compare_digest(hash_of(parsed[1]), found[1] if found else _NO_HASH)
    if found is None or not right or found[0].revoked or found[0].expires_at <= redis_time.now():
        return None
    return found[0].access()
