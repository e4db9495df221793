"""Encrypts single values with AES-256-GCM, each bound to the place where it belongs.

A sealed value is a version byte, the id of the key, a nonce and the ciphertext. Each is encrypted under a key of its
own, made of the named key and of what the value is bound to, so that random nonces never run out; what it is bound
to is authenticated too, so that it opens nowhere else.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field

from memory_core.crypto.keyring import KEY_BYTES, Secret, framed
from memory_core.errors import Tampered

_VERSION = b"\x01"
_ID_BYTES = 8
_NONCE_BYTES = 12
_HEAD_BYTES = len(_VERSION) + _ID_BYTES
_ALTERED = "a sealed value was altered, or stands where it does not belong"


@dataclass(frozen=True, slots=True)
class Key:
    """A key with the id, sixteen hex digits, by which sealed values name it."""

    id: str
    value: bytes = field(repr=False)

    @classmethod
    def of(cls, secret: Secret, purpose: str) -> Key:
        """Derive the key of one purpose; it goes by the id of its secret."""
        return cls(secret.id, secret.derive(purpose))

    @classmethod
    def new(cls) -> Key:
        """Make a random key."""
        return cls(secrets.token_hex(_ID_BYTES), secrets.token_bytes(KEY_BYTES))


@dataclass(frozen=True, slots=True)
class Lock:
    """What seals one value at one place, and opens nothing else."""

    key_id: str
    value: bytes = field(repr=False)
    bound: bytes = field(repr=False)

    @classmethod
    def at(cls, key: Key, *place: str) -> Lock:
        """Make the lock of a place; its first part says what kind of value stands there."""
        bound = framed(part.encode() for part in (*place, key.id))
        return cls(key.id, hmac.digest(key.value, bound, "sha256"), bound)

    def narrowed(self, kind: str) -> Lock:
        """Give the lock of one kind among the values of a place, by which those of other kinds do not open."""
        return Lock(self.key_id, self.value, framed([self.bound, kind.encode()]))

    def seal(self, plain: bytes) -> bytes:
        """Encrypt the value."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        head, nonce = _VERSION + bytes.fromhex(self.key_id), secrets.token_bytes(_NONCE_BYTES)
        return head + nonce + AESGCM(self.value).encrypt(nonce, plain, head + self.bound)

    def open(self, sealed: bytes) -> bytes:
        """Decrypt the value.

        Raises:
            Tampered: it was altered, or sealed for another place or under another key.
        """
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        if key_id(sealed) != self.key_id:
            raise Tampered(_ALTERED)
        head, rest = sealed[:_HEAD_BYTES], sealed[_HEAD_BYTES:]
        try:
            return AESGCM(self.value).decrypt(rest[:_NONCE_BYTES], rest[_NONCE_BYTES:], head + self.bound)
        except (InvalidTag, ValueError):
            raise Tampered(_ALTERED) from None


def key_id(sealed: bytes) -> str:
    """Name the key that a value is sealed under.

    Raises:
        Tampered: it is no sealed value.
    """
    if len(sealed) < _HEAD_BYTES + _NONCE_BYTES or not sealed.startswith(_VERSION):
        raise Tampered(_ALTERED)
    return sealed[len(_VERSION) : _HEAD_BYTES].hex()


class Transports:
    """The keys under which texts and vectors travel between servers and sidecars; the first is in force."""

    def __init__(self, transports: Iterable[Secret] = ()) -> None:
        self._keys = {key.id: key for key in (Key.of(secret, "seal") for secret in transports)}

    def __contains__(self, key_id: object) -> bool:
        return key_id in self._keys

    @property
    def ids(self) -> list[str]:
        """The ids of all keys; the first is in force."""
        return list(self._keys)

    @property
    def current(self) -> str:
        """The id of the key in force; empty without any, which stands for what travels in clear."""
        return next(iter(self._keys), "")

    def seal(self, transport_id: str, plain: bytes, *place: str) -> bytes:
        """Seal a message under a key; without one it stays in clear."""
        return Lock.at(self._keys[transport_id], *place).seal(plain) if transport_id else plain

    def open(self, transport_id: str, body: bytes, *place: str) -> bytes:
        """Open a message; one without a key is in clear.

        Raises:
            Tampered: it was altered, or is another message.
        """
        return Lock.at(self._keys[transport_id], *place).open(body) if transport_id else body
