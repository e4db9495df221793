"""Integrity codes (MACs) of memories: only holders of the signing key can make them.

A direct write to Redis can change a record but cannot make its code. The Redis Function that writes a memory's own hash
makes its code, because it assigns times and order. It receives the HMAC-SHA-1 pads of a key for this record and
revision only, never the key from which all of them derive. The codes of further chunks are made here.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

from memory_core.crypto.keyring import Keyring, framed
from memory_core.errors import KeyMissing
from memory_core.records.memory import SIGNED_FIELDS

log = logging.getLogger(__name__)
_PURPOSE = "records"
_BLOCK = 64
_INNER, _OUTER = bytes(byte ^ 0x36 for byte in range(256)), bytes(byte ^ 0x5C for byte in range(256))
_MOST_LOGGED = 10_000
Row = Mapping[str, bytes | None]  # fields of a Redis hash


class IntegrityFailure(StrEnum):
    """Why a record fails its integrity check."""

    ALTERED = "altered"
    UNSIGNED = "unsigned"
    UNKNOWN_KEY = "signed under an unknown key"


class Integrity:
    """Makes and checks codes. Without a key it makes none and accepts every record."""

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring
        self.signer = keyring.signer.id if keyring.signer else None  # id of the secret for new codes
        self._keys: dict[str, bytes] = {}
        self._logged: set[tuple[str, str]] = set()
        self.failures = 0
        """Memories that failed their check, each counted once."""

    @property
    def signs(self) -> bool:
        return self.signer is not None

    def seal(self, namespace: str, memory_id: str, rev: int, signer: str | None = None) -> dict[str, Any] | None:
        """Return what the Functions sign a revision of a memory with; None without a key.

        `signer` is the id of the secret that already signs the memory.
        """
        signer = signer or self.signer
        if self.signer is None or signer is None:
            return None
        key = self._record_key(self._key(signer), namespace, memory_id, str(rev).encode()).ljust(_BLOCK, b"\0")
        return {"signer": signer, "inner": key.translate(_INNER), "outer": key.translate(_OUTER)}

    def sign_chunk(self, namespace: str, memory_id: str, number: int, content_hash: str, text: bytes) -> dict[str, str]:
        """Return the code fields of a further chunk; none without a key."""
        if self.signer is None:
            return {}
        code = self._chunk_code(self._key(self.signer), namespace, memory_id, number, content_hash, text)
        return {"mac": code, "mac_key": self.signer}

    def check_head(self, namespace: str, memory_id: str, row: Row) -> IntegrityFailure | None:
        """Check a memory's own hash; `row` has SIGNED_FIELDS and the code. None if it is intact."""

        def expected(key: bytes) -> str:
            own = self._record_key(key, namespace, memory_id, row["rev"] or b"")
            return hmac.digest(own, _message(row), "sha1").hex()

        return self._compare(row, expected)

    def check_chunk(
        self, namespace: str, memory_id: str, number: int, content_hash: str, text: bytes, row: Row
    ) -> IntegrityFailure | None:
        """Check a further chunk; `row` has its code. None if it is intact."""
        return self._compare(row, lambda key: self._chunk_code(key, namespace, memory_id, number, content_hash, text))

    def log_failure(self, namespace: str, memory_id: str, failure: IntegrityFailure) -> None:
        """Log and count a failure, once per memory."""
        if (namespace, memory_id) in self._logged:
            return
        if len(self._logged) >= _MOST_LOGGED:
            self._logged.clear()
        self._logged.add((namespace, memory_id))
        self.failures += 1
        log.warning("memory %s of %s fails its integrity check: %s", memory_id, namespace, failure)

    def _compare(self, row: Row, expected: Callable[[bytes], str]) -> IntegrityFailure | None:
        code, key_id = row["mac"], row["mac_key"]
        if not self.signs:
            return None
        if code is None and key_id is None:
            return IntegrityFailure.UNSIGNED
        try:
            key = self._key((key_id or b"").decode("ascii", "replace"))
        except KeyMissing:
            return IntegrityFailure.UNKNOWN_KEY
        return None if hmac.compare_digest(code or b"", expected(key).encode()) else IntegrityFailure.ALTERED

    def _key(self, secret_id: str) -> bytes:
        if secret_id not in self._keys:
            self._keys[secret_id] = self._keyring.secret(secret_id).derive(_PURPOSE)
        return self._keys[secret_id]

    def _record_key(self, key: bytes, namespace: str, memory_id: str, rev: bytes) -> bytes:
        return hmac.digest(key, framed([b"head", namespace.encode(), memory_id.encode(), rev]), "sha256")

    def _chunk_code(self, key: bytes, namespace: str, memory_id: str, number: int, version: str, text: bytes) -> str:
        where = [b"piece", namespace.encode(), memory_id.encode(), str(number).encode(), version.encode()]
        return hmac.digest(key, framed([*where, text]), "sha256").hex()


def _message(row: Row) -> bytes:
    """Encode the signed fields unambiguously, as redis/functions/07_integrity.lua does."""
    values = map(row.__getitem__, SIGNED_FIELDS)
    return b"".join([b"-" if value is None else b"%d:%b" % (len(value), value) for value in values])
