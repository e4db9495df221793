"""Encrypts what of sensitive memories goes into an export file: with the master key, and bound to no namespace.

In Redis it is bound to namespace and data key, and sealed with random nonces; in a file it must open in another
namespace too, and be the same each time. So it is opened and sealed anew by AES-256-SIV (RFC 5297), which needs no
nonce: equal texts of one memory and revision give equal bytes, and nothing else shows.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

from memory_core.crypto.keyring import Keyring, Secret
from memory_core.errors import Tampered
from memory_core.records.codec import DecodeError, pack, unpack


@dataclass(frozen=True, slots=True)
class Inside:
    """What is encrypted of a memory: `metadata` as JSON, `cut` as in the line of a clear one."""

    content: str
    metadata: str | None
    cut: str | None


class FileSeal:
    """Seals and opens with the master keys of a process."""

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring
        self._ciphers: dict[str, Any] = {}

    @property
    def key_id(self) -> str:
        """The id of the key that is sealed under.

        Raises:
            KeyMissing: there is none.
        """
        return self._keyring.master.id

    def seal(self, where: tuple[str, ...], said: Inside) -> str:
        """Encrypt the text of a memory."""
        return self._seal(("text", *where), pack([said.content, said.metadata, said.cut]))

    def open(self, key_id: str, where: tuple[str, ...], sealed: str) -> Inside:
        """Decrypt the text of a memory.

        Raises:
            Tampered: it was altered, or belongs to another memory. KeyMissing: the key is not known here.
        """
        try:
            return Inside(*unpack(self._open(key_id, ("text", *where), sealed)))
        except DecodeError:
            raise Tampered("a sealed text is of no known form") from None

    def seal_vector(self, where: tuple[str, ...], piece: int, vector: bytes) -> str:
        """Encrypt the vector of a piece."""
        return self._seal((f"vector {piece}", *where), vector)

    def open_vector(self, key_id: str, where: tuple[str, ...], piece: int, sealed: str) -> bytes:
        """Decrypt the vector of a piece; errors as of `open`."""
        return self._open(key_id, (f"vector {piece}", *where), sealed)

    def _seal(self, place: tuple[str, ...], plain: bytes) -> str:
        sealed = self._cipher(self._keyring.master).encrypt(plain, [part.encode() for part in place])
        return base64.b64encode(sealed).decode()

    def _open(self, key_id: str, place: tuple[str, ...], sealed: str) -> bytes:
        from cryptography.exceptions import InvalidTag

        try:
            data = base64.b64decode(sealed, validate=True)
            return self._cipher(self._keyring.secret(key_id)).decrypt(data, [part.encode() for part in place])
        except (InvalidTag, ValueError):
            raise Tampered("a sealed value was altered, or belongs to another memory") from None

    def _cipher(self, secret: Secret) -> Any:
        from cryptography.hazmat.primitives.ciphers.aead import AESSIV

        if secret.id not in self._ciphers:
            self._ciphers[secret.id] = AESSIV(secret.derive("export mac") + secret.derive("export cipher"))
        return self._ciphers[secret.id]
