"""Integrity codes (MACs) of memories: only holders of the signing key can make them.

A direct write to Redis can change a record but cannot make its code. The Redis Function that writes a memory's own hash
makes its code, because it assigns times and order. It receives the HMAC-SHA-1 pads of a key for this record and
revision only, never the key from which all of them derive. The codes of further chunks are made here.

So are the codes of authorisation records: tokens, owner ids, grants, offers, quarantine marks, tombstones and one-time
keys. No Function ever receives a key for those.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from memory_core.crypto.keyring import Keyring, framed
from memory_core.errors import KeyMissing
from memory_core.records.authority_codes import Authority, IntegrityFailure
from memory_core.records.memory import SIGNED_FIELDS

log = logging.getLogger(__name__)
_PURPOSE, _AUTHORITY = "records", "authority"
_BLOCK = 64
_INNER, _OUTER = bytes(byte ^ 0x36 for byte in range(256)), bytes(byte ^ 0x5C for byte in range(256))
_MOST_LOGGED = 10_000
Row = Mapping[str, bytes | None]  # fields of a Redis hash


class Integrity:
    """Makes and checks codes. Without a key it makes none and accepts every record."""

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring
        self.signer = keyring.signer.id if keyring.signer else None  # id of the secret for new codes
        self._keys: dict[tuple[str, str], bytes] = {}
        self._logged: set[tuple[str, str]] = set()
        self.failures = 0
        """Records that failed their check, each counted once."""
        self.on_authority_failure: Callable[[Authority, str, str], object] = lambda kind, namespace, name: None
        """Receives the kind, the namespace and the name of each authorisation record that failed, once."""

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

    def sign_chunk(
        self, namespace: str, memory_id: str, number: int, content_hash: str, text: bytes
    ) -> dict[str, str | bytes]:
        """Return the code fields of a further chunk; none without a key."""
        if self.signer is None:
            return {}
        code = self._chunk_code(self._key(self.signer), namespace, memory_id, number, content_hash, text)
        return {"mac": code, "mac_key": self.signer}

    def check_head(self, namespace: str, memory_id: str, row: Row) -> IntegrityFailure | None:
        """Check a memory's own hash; `row` has SIGNED_FIELDS and the code. None if it is intact."""

        def expected(key: bytes) -> bytes:
            own = self._record_key(key, namespace, memory_id, row["rev"] or b"")
            return hmac.digest(own, _message(row), "sha1")

        return self._compare(row, expected)

    def check_chunk(
        self, namespace: str, memory_id: str, number: int, content_hash: str, text: bytes, row: Row
    ) -> IntegrityFailure | None:
        """Check a further chunk; `row` has its code. None if it is intact."""
        return self._compare(row, lambda key: self._chunk_code(key, namespace, memory_id, number, content_hash, text))

    def log_failure(self, namespace: str, memory_id: str, failure: IntegrityFailure) -> None:
        """Log and count a failure, once per memory."""
        self._is_new(namespace, f"memory {memory_id}", failure)

    def sign_authority(self, kind: Authority, namespace: str, name: str, *fields: str) -> str:
        """Return the code of an authorisation record, with the id of its key; empty without a key.

        `name` identifies the record among those of its kind: the code is not valid for any other.
        """
        if self.signer is None:
            return ""
        return f"{self.signer}:{self._authority_code(self.signer, kind, namespace, name, fields)}"

    def check_authority(
        self, kind: Authority, namespace: str, name: str, code: str | None, *fields: str
    ) -> IntegrityFailure | None:
        """Check an authorisation record, and log a failure. None if it is intact."""
        failure = self.inspect_authority(kind, namespace, name, code, *fields)
        if failure:
            self.note_authority(kind, namespace, name, failure)
        return failure

    def note_authority(self, kind: Authority, namespace: str, name: str, failure: IntegrityFailure) -> None:
        """Log, count and report a failure of an authorisation record, once per record."""
        if self._is_new(namespace, f"{kind} {name}", failure):
            self.on_authority_failure(kind, namespace, name)

    def inspect_authority(
        self, kind: Authority, namespace: str, name: str, code: str | None, *fields: str
    ) -> IntegrityFailure | None:
        """Like `check_authority`, without a log entry."""
        if not self.signs:
            return None
        if not code:
            return IntegrityFailure.UNSIGNED
        signer, _, mac = code.partition(":")
        try:
            expected = self._authority_code(signer, kind, namespace, name, fields)
        except KeyMissing:
            return IntegrityFailure.UNKNOWN_KEY
        is_intact = hmac.compare_digest(mac.encode(), expected.encode())
        return None if is_intact else IntegrityFailure.ALTERED

    def is_current(self, code: str) -> bool:
        """Whether a code was made with the key for new codes."""
        return code.partition(":")[0] == self.signer

    def _is_new(self, namespace: str, what: str, failure: IntegrityFailure) -> bool:
        """Log and count a failure; False if it was logged before."""
        if (namespace, what) in self._logged:
            return False
        if len(self._logged) >= _MOST_LOGGED:
            self._logged.clear()
        self._logged.add((namespace, what))
        self.failures += 1
        log.warning("%s of %s fails its integrity check: %s", what, namespace, failure)
        return True

    def _compare(self, row: Row, expected: Callable[[bytes], bytes]) -> IntegrityFailure | None:
        code, key_id = row["mac"], row["mac_key"]
        if not self.signs:
            return None
        if code is None and key_id is None:
            return IntegrityFailure.UNSIGNED
        try:
            key = self._key((key_id or b"").decode("ascii", "replace"))
        except KeyMissing:
            return IntegrityFailure.UNKNOWN_KEY
        code, mac = code or b"", expected(key)
        form = mac.hex().encode() if len(code) == 2 * len(mac) else mac  # earlier versions stored hex
        return None if hmac.compare_digest(code, form) else IntegrityFailure.ALTERED

    def _key(self, secret_id: str, purpose: str = _PURPOSE) -> bytes:
        if (secret_id, purpose) not in self._keys:
            self._keys[secret_id, purpose] = self._keyring.secret(secret_id).derive(purpose)
        return self._keys[secret_id, purpose]

    def _authority_code(self, signer: str, kind: Authority, namespace: str, name: str, fields: Sequence[str]) -> str:
        parts = [part.encode(errors="surrogatepass") for part in (kind, namespace, name, *fields)]
        return hmac.digest(self._key(signer, _AUTHORITY), framed(parts), "sha256").hex()

    def _record_key(self, key: bytes, namespace: str, memory_id: str, rev: bytes) -> bytes:
        return hmac.digest(key, framed([b"head", namespace.encode(), memory_id.encode(), rev]), "sha256")

    def _chunk_code(self, key: bytes, namespace: str, memory_id: str, number: int, version: str, text: bytes) -> bytes:
        where = [b"piece", namespace.encode(), memory_id.encode(), str(number).encode(), version.encode()]
        return hmac.digest(key, framed([*where, text]), "sha256")


def _message(row: Row) -> bytes:
    """Encode the signed fields unambiguously, as redis/functions/07_integrity.lua does."""
    values = map(row.__getitem__, SIGNED_FIELDS)
    return b"".join([b"-" if value is None else b"%d:%b" % (len(value), value) for value in values])
