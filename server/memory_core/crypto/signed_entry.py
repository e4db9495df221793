"""Signs and verifies audit entries. Write access to Redis is not enough to forge one."""

from __future__ import annotations

import base64
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

from memory_core.crypto.keyring import Keyring, Secret, framed
from memory_core.errors import KeyMissing
from memory_core.records.audit_entry import AuditEntry

TRIM = "trim_audit"  # operation of the entry that records a deletion of older ones
_SIGNED = ("who", "as", "op", "asked", "outcome", "from", "shown", "count", "times", "nonce")
_FORM = b"1"
_HEX = 64  # length of a signature of an earlier version


@lru_cache(maxsize=256)
def key_of(secret: Secret, purpose: str) -> bytes:
    """Derive and cache the key of one purpose."""
    return secret.derive(purpose)


@lru_cache(maxsize=64)
def id_of(secret: Secret) -> str:
    """Return the cached id of a secret."""
    return secret.id


def sign(keyring: Keyring, namespace: str, entry: AuditEntry) -> AuditEntry:
    """Add a signature to an entry; without a signing key the entry is returned unchanged."""
    secret = keyring.signer
    if secret is None:
        return entry
    who, by = entry["who"], entry.get("by")
    signed = {"outcome": "ok"} | {name: str(entry[name]) for name in _SIGNED if name in entry}
    signed |= {"who": by or who, "as": who if by else "", "asked": " ".join(entry["ids"])}
    return {**entry, "key": id_of(secret), "mac": _short(_mac(secret, namespace, signed))}


def _mac(secret: Secret, namespace: str, signed: Mapping[str, str]) -> bytes:
    parts = [_FORM, namespace.encode(), *(signed.get(name, "").encode() for name in _SIGNED)]
    return hmac.digest(key_of(secret, "audit"), framed(parts), "sha256")


def _short(mac: bytes) -> str:
    """Return the stored form: base64url, a third shorter than hex and as readable in redis-cli."""
    return base64.urlsafe_b64encode(mac).rstrip(b"=").decode()


@dataclass(frozen=True)
class SignedEntry:
    """One entry as Redis stores it: its stream id, then names and values in turn."""

    id: bytes
    parts: tuple[bytes, ...]

    @cached_property
    def fields(self) -> dict[str, str]:
        """The fields as text."""
        texts = [part.decode(errors="backslashreplace") for part in self.parts]
        return dict(zip(texts[::2], texts[1::2], strict=False))

    @property
    def number(self) -> int:
        """The sequence number; -1 if it is missing."""
        text = self.fields.get("n", "")
        return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else -1

    @property
    def position(self) -> tuple[int, int]:
        """The stream id as milliseconds and a number."""
        return position_of(self.id)

    @property
    def framed(self) -> bytes:
        """The bytes of the entry that go into the hash chain."""
        return framed([framed([self.id, *self.parts])])

    def check(self, keyring: Keyring, namespace: str) -> str:
        """Return whether a server signed it: `ok`, `unsigned`, `unknown key` or `forged`."""
        fields = self.fields
        if "mac" not in fields:
            return "unsigned"
        try:
            secret = keyring.secret(fields.get("key", ""))
        except KeyMissing:
            return "unknown key"
        signed = {**fields, "asked": fields.get("asked", fields.get("ids", ""))}
        expected, mac = _mac(secret, namespace, signed), fields["mac"].encode("ascii", "replace")
        form = expected.hex() if len(mac) == _HEX else _short(expected)
        return "ok" if hmac.compare_digest(form.encode(), mac) else "forged"

    @property
    def fingerprint(self) -> bytes:
        """The beginning of a genuine signature, which a copy of the entry has too, also in the other form."""
        mac = self.fields["mac"]
        return bytes.fromhex(mac[:16]) if len(mac) == _HEX else base64.urlsafe_b64decode(mac[:12])[:8]


def position_of(stream_id: bytes) -> tuple[int, int]:
    milliseconds, _, number = stream_id.partition(b"-")
    return int(milliseconds), int(number or 0)
