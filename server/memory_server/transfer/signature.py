"""Authenticates an export: only a file that a key of this server signed may say who owns and shares what."""

from __future__ import annotations

import hashlib
import hmac

from memory_core.crypto.keyring import Keyring, Secret
from memory_core.errors import KeyMissing
from memory_server.transfer.export_lines import End

_PURPOSE = "export signature"


class FileSignature:
    """Covers all lines before the last one, which holds it."""

    def __init__(self) -> None:
        self._lines = hashlib.sha256()

    def add(self, line: bytes) -> None:
        self._lines.update(line.rstrip(b"\r\n") + b"\n")

    @property
    def digest(self) -> str:
        """Identifies the lines."""
        return self._lines.hexdigest()

    def sign(self, keyring: Keyring, end: End) -> End:
        """Return the last line with the signature; unchanged without a signing key."""
        secret = keyring.signer
        return end if secret is None else end.model_copy(update={"key": secret.id, "mac": self._mac(secret)})

    def is_signed_by(self, keyring: Keyring, end: End) -> bool:
        """Whether a key of this process signed the lines."""
        try:
            secret = keyring.secret(end.key or "")
        except KeyMissing:
            return False
        return hmac.compare_digest(self._mac(secret), end.mac or "")

    def _mac(self, secret: Secret) -> str:
        return hmac.digest(secret.derive(_PURPOSE), self._lines.digest(), "sha256").hex()
