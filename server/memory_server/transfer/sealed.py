"""Encrypts sensitive memories in export files with the master key.

In Redis, a sensitive memory is bound to its namespace and data key and has a random nonce. In a file it must open in
any namespace and be the same each time. So it is encrypted again with AES-256-SIV (RFC 5297), which needs no nonce: the
same text of the same memory and revision gives the same bytes, and reveals nothing else.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from memory_core.crypto.keyring import Keyring, Secret
from memory_core.errors import Tampered
from memory_core.records.codec import DecodeError, pack, unpack


@dataclass(frozen=True, slots=True)
class Inside:
    """The encrypted part of a memory: `metadata` as JSON, `cut` as in a line that is not encrypted."""

    content: str
    metadata: str | None
    cut: str | None


class FileSeal:
    """Seals and opens with the master keys of a process."""

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring
        self._ciphers: dict[str, AESSIV] = {}

    def seal(self, where: tuple[str, ...], inside: Inside) -> str:
        """Encrypt the text of a memory."""
        return self._seal(("text", *where), pack([inside.content, inside.metadata, inside.cut]))

    def open(self, key_id: str, where: tuple[str, ...], sealed: str) -> Inside:
        """Decrypt the text of a memory.

        Raises:
            Tampered: it was altered or belongs to another memory. KeyMissing: the key is unknown here.
        """
        try:
            return Inside(*unpack(self._open(key_id, ("text", *where), sealed)))
        except DecodeError:
            raise Tampered("a sealed text has an unknown form") from None

    def seal_vector(self, where: tuple[str, ...], chunk: int, vector: bytes) -> str:
        """Encrypt the vector of a chunk."""
        return self._seal((f"vector {chunk}", *where), vector)

    def open_vector(self, key_id: str, where: tuple[str, ...], chunk: int, sealed: str) -> bytes:
        """Decrypt the vector of a chunk; raises as `open`."""
        return self._open(key_id, (f"vector {chunk}", *where), sealed)

    def _seal(self, place: tuple[str, ...], plain: bytes) -> str:
        sealed = self._cipher(self._keyring.master).encrypt(plain, [part.encode() for part in place])
        return base64.b64encode(sealed).decode()

    def _open(self, key_id: str, place: tuple[str, ...], sealed: str) -> bytes:
        try:
            data = base64.b64decode(sealed, validate=True)
            return self._cipher(self._keyring.secret(key_id)).decrypt(data, [part.encode() for part in place])
        except (InvalidTag, ValueError):
            raise Tampered("a sealed value was altered or belongs to another memory") from None

    def _cipher(self, secret: Secret) -> AESSIV:
        if secret.id not in self._ciphers:
            self._ciphers[secret.id] = AESSIV(secret.derive("export mac") + secret.derive("export cipher"))
        return self._ciphers[secret.id]
