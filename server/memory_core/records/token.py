"""Bearer tokens. Redis stores them by id, with the hash of the secret that only the holder has.

A token is `rm_<id>_<secret>`. Each token is looked up and compared the same way, valid or not. A revoked token has
neither a hash nor an integrity code any more.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from memory_core.records import redis_time
from memory_core.records.access import Access, Scope, known_scopes
from memory_core.records.authority_codes import Authority, AuthorityCodes, IntegrityFailure
from memory_core.records.ids import new_id
from memory_core.records.keys import token_key
from memory_core.records.times import to_redis
from memory_core.redis_client import Client

_TOKEN = re.compile(r"rm_([0-9a-hjkmnp-tv-z]{26})_([A-Za-z0-9_-]{43})", re.ASCII)
_NO_HASH = "0" * 64
_SIGNED = ("hash", "agent", "namespace", "scopes", "created_at", "expires_at")
_SIGNED_SET = frozenset(_SIGNED)


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

    def fields(self, secret: str, integrity: AuthorityCodes) -> dict[str, str]:
        fields = {
            "hash": hash_of(secret),
            "agent": self.agent,
            "namespace": self.namespace,
            "scopes": " ".join(sorted(self.scopes)),
            "created_at": to_redis(self.created_at),
            "expires_at": to_redis(self.expires_at),
            "revoked": "0",
        }
        code = sign(self.id, fields, integrity)
        return {**fields, "mac": code} if code else fields


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


def sign(token_id: str, fields: Mapping[str, str], integrity: AuthorityCodes) -> str:
    """Return the integrity code of a token's fields; empty without a key."""
    signed = (fields[name] for name in _SIGNED)
    return integrity.sign_authority(Authority.CREDENTIAL, fields["namespace"], token_id, *signed)


def check(token_id: str, fields: Mapping[str, str], integrity: AuthorityCodes) -> IntegrityFailure | None:
    """Check the integrity code of a token's fields, and log a failure."""
    failure = inspect(token_id, fields, integrity)
    if failure:
        integrity.note_authority(Authority.CREDENTIAL, fields.get("namespace", ""), token_id, failure)
    return failure


def inspect(token_id: str, fields: Mapping[str, str], integrity: AuthorityCodes) -> IntegrityFailure | None:
    """Like `check`, without a log entry. A token without a field, such as the hash of a revoked one, is altered."""
    if integrity.signs and not fields.keys() >= _SIGNED_SET:
        return IntegrityFailure.ALTERED
    signed = (fields.get(name, "") for name in _SIGNED)
    where = fields.get("namespace", ""), token_id, fields.get("mac")
    return integrity.inspect_authority(Authority.CREDENTIAL, *where, *signed)


async def load_fields(client: Client, token_id: str) -> dict[str, str]:
    """Load the fields of a token; none if there is no such token."""
    raw: dict[bytes, bytes] = await client.hgetall(token_key(token_id))
    return {name.decode(): value.decode() for name, value in raw.items()}


async def load(client: Client, token_id: str, integrity: AuthorityCodes) -> tuple[Token, str] | None:
    """Load a token and the hash of its secret. One that fails its integrity check does not exist."""
    fields = await load_fields(client, token_id)
    revoked = fields.get("revoked") != "0"
    if not fields or not (revoked or check(token_id, fields, integrity) is None):
        return None
    token = Token(
        id=token_id,
        agent=fields["agent"],
        namespace=fields["namespace"],
        scopes=known_scopes(fields["scopes"].split()),
        created_at=float(fields["created_at"]),
        expires_at=float(fields["expires_at"]),
        revoked=revoked,
    )
    return token, fields.get("hash", _NO_HASH)


async def verify(client: Client, text: str, integrity: AuthorityCodes) -> Access | None:
    """Return what a token grants; None if it is unknown, altered, expired or revoked, or its secret is wrong."""
    parsed = parse(text)
    if parsed is None:
        return None
    found = await load(client, parsed[0], integrity)
    right = hmac.compare_digest(hash_of(parsed[1]), found[1] if found else _NO_HASH)
    if found is None or not right or found[0].revoked or found[0].expires_at <= redis_time.now():
        return None
    return found[0].access()
