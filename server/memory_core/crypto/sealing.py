"""Encrypts single values with AES-256-GCM, each bound to where it belongs.

A sealed value is a version byte, the id of the key, a nonce and the ciphertext. Its encryption key derives from the
named key and the binding, so random nonces never run out. The binding is also authenticated, so the value opens
nowhere else.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from memory_core.crypto.keyring import KEY_BYTES, Secret, framed
from memory_core.errors import Tampered

_VERSION = b"\x01"
_ID_BYTES = 8
_NONCE_BYTES = 12
_HEAD_BYTES = len(_VERSION) + _ID_BYTES
_ALTERED = "a sealed value was altered or moved"


@dataclass(frozen=True, slots=True)
class Key:
    """A key and its id of sixteen hex digits, which sealed values contain."""

    id: str
    value: bytes = field(repr=False)

    @classmethod
    def of(cls, secret: Secret, purpose: str) -> Key:
        """Derive the key of one purpose; it has the id of its secret."""
        return cls(secret.id, secret.derive(purpose))

    @classmethod
    def new(cls) -> Key:
        return cls(secrets.token_hex(_ID_BYTES), secrets.token_bytes(KEY_BYTES))


@dataclass(frozen=True, slots=True)
class Lock:
    """Seals one value with one binding, and opens no other."""

    key_id: str
    value: bytes = field(repr=False)
    bound: bytes = field(repr=False)

    @classmethod
    def at(cls, key: Key, *bound_to: str) -> Lock:
        """Make the lock of a binding, whose first part is the kind of value."""
        bound = framed(part.encode() for part in (*bound_to, key.id))
        return cls(key.id, hmac.digest(key.value, bound, "sha256"), bound)

    def narrowed(self, kind: str) -> Lock:
        """Return a lock for one kind among the values of a binding. Values of other kinds do not open with it."""
        return Lock(self.key_id, self.value, framed([self.bound, kind.encode()]))

    def seal(self, plain: bytes) -> bytes:
        head, nonce = _VERSION + bytes.fromhex(self.key_id), secrets.token_bytes(_NONCE_BYTES)
        return head + nonce + AESGCM(self.value).encrypt(nonce, plain, head + self.bound)

    def open(self, sealed: bytes) -> bytes:
        """Decrypt the value. Raises Tampered if it was altered, or sealed with another binding or key."""
        if key_id(sealed) != self.key_id:
            raise Tampered(_ALTERED)
        head, rest = sealed[:_HEAD_BYTES], sealed[_HEAD_BYTES:]
        try:
            return AESGCM(self.value).decrypt(rest[:_NONCE_BYTES], rest[_NONCE_BYTES:], head + self.bound)
        except (InvalidTag, ValueError):
            raise Tampered(_ALTERED) from None


def key_id(sealed: bytes) -> str:
    """Return the id of the key that a value is sealed under. Raises Tampered if it is not sealed."""
    if len(sealed) < _HEAD_BYTES + _NONCE_BYTES or not sealed.startswith(_VERSION):
        raise Tampered(_ALTERED)
    return sealed[len(_VERSION) : _HEAD_BYTES].hex()


class Transports:
    """The keys for messages between servers and sidecars; the first is current."""

    def __init__(self, transports: Iterable[Secret] = ()) -> None:
        self._keys = {key.id: key for key in (Key.of(secret, "seal") for secret in transports)}

    def __contains__(self, key_id: object) -> bool:
        return key_id in self._keys

    @property
    def ids(self) -> list[str]:
        """The ids of all keys, the current one first."""
        return list(self._keys)

    @property
    def current(self) -> str:
        """The id of the current key; empty without keys: messages are in clear."""
        return next(iter(self._keys), "")

    def seal(self, transport_id: str, plain: bytes, *bound_to: str) -> bytes:
        """Seal a message under a key; without a key it stays in clear."""
        return Lock.at(self._keys[transport_id], *bound_to).seal(plain) if transport_id else plain

    def open(self, transport_id: str, body: bytes, *bound_to: str) -> bytes:
        """Open a message; without a key it is in clear. Raises Tampered if it was altered or moved."""
        return Lock.at(self._keys[transport_id], *bound_to).open(body) if transport_id else body
