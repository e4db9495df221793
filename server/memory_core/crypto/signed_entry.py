"""Signs entries of the audit, so that nobody who can only write to Redis can make one, and reads them again."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

from memory_core.crypto.keyring import Keyring, Secret, framed
from memory_core.errors import KeyMissing
from memory_core.records.audit_entry import Said

TRIM = "trim_audit"  # what an entry says was done when older ones were dropped
_SIGNED = ("who", "as", "op", "asked", "outcome", "from", "shown", "count", "times", "nonce")
_FORM = b"1"


@lru_cache(maxsize=256)
def key_of(secret: Secret, purpose: str) -> bytes:
    """Give the key that a secret has for a purpose."""
    return secret.derive(purpose)


@lru_cache(maxsize=64)
def id_of(secret: Secret) -> str:
    """Give the id of a secret."""
    return secret.id


def sign(keyring: Keyring, namespace: str, entry: Said) -> Said:
    """Add to what the server says what proves that it did; without a secret nothing can be proved."""
    secret = keyring.signer
    if secret is None:
        return entry
    who, by = entry["who"], entry.get("by")
    told: dict[str, str] = {name: str(entry[name]) for name in _SIGNED if name in entry}
    told |= {"who": by or who, "as": who if by else "", "asked": " ".join(entry["ids"])}
    told.setdefault("outcome", "ok")
    return {**entry, "key": id_of(secret), "mac": _mac(secret, namespace, told)}


def _mac(secret: Secret, namespace: str, told: Mapping[str, str]) -> str:
    parts = [_FORM, namespace.encode(), *(told.get(name, "").encode() for name in _SIGNED)]
    return hmac.digest(key_of(secret, "audit"), framed(parts), "sha256").hex()


@dataclass(frozen=True)
class Entry:
    """One entry as it stands in Redis: its id there, and names and values by turns."""

    id: bytes
    parts: tuple[bytes, ...]

    @cached_property
    def fields(self) -> dict[str, str]:
        """Its fields as text."""
        texts = [part.decode(errors="backslashreplace") for part in self.parts]
        return dict(zip(texts[::2], texts[1::2], strict=False))

    @property
    def number(self) -> int:
        """Its number; -1 where it has none."""
        text = self.fields.get("n", "")
        return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else -1

    @property
    def position(self) -> tuple[int, int]:
        """Where it stands in the stream: milliseconds and a number."""
        return position_of(self.id)

    @property
    def framed(self) -> bytes:
        """All of it, in the form that goes into the chain."""
        return framed([framed([self.id, *self.parts])])

    def check(self, keyring: Keyring, namespace: str) -> str:
        """Say whether it is what a server said: `ok`, `unsigned`, `unknown key` or `forged`."""
        fields = self.fields
        if "mac" not in fields:
            return "unsigned"
        try:
            secret = keyring.secret(fields.get("key", ""))
        except KeyMissing:
            return "unknown key"
        told = {**fields, "asked": fields.get("asked", fields.get("ids", ""))}
        right = hmac.compare_digest(_mac(secret, namespace, told), fields["mac"].encode("ascii", "replace").decode())
        return "ok" if right else "forged"


def position_of(stream_id: bytes) -> tuple[int, int]:
    """Read the id of a stream's entry."""
    milliseconds, _, number = stream_id.partition(b"-")
    return int(milliseconds), int(number or 0)
