"""Integrity codes of authorisation records, as the records need them. `Integrity` in crypto/integrity.py makes them."""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol


class IntegrityFailure(StrEnum):
    """Why a record fails its integrity check."""

    ALTERED = "altered"
    UNSIGNED = "unsigned"
    UNKNOWN_KEY = "signed under an unknown key"


class Authority(StrEnum):
    """The kinds of authorisation records. A code is bound to the kind, the namespace and the name of its record."""

    CREDENTIAL = "token"
    OWNER = "owner-id"
    KEPT = "kept-owner-id"
    GRANT = "grant"
    OFFER = "offer"
    QUARANTINE = "quarantine"
    TOMBSTONE = "tombstone"
    OPERATOR_KEY = "operator-key"
    LIBRARY = "library"
    FILE = "file"
    SESSION = "session"


class AuthorityCodes(Protocol):
    """Makes and checks the codes. Without a key it makes none and accepts every record."""

    @property
    def signs(self) -> bool: ...
    def sign_authority(self, kind: Authority, namespace: str, name: str, *fields: str) -> str: ...
    def check_authority(
        self, kind: Authority, namespace: str, name: str, code: str | None, *fields: str
    ) -> IntegrityFailure | None: ...
    def inspect_authority(
        self, kind: Authority, namespace: str, name: str, code: str | None, *fields: str
    ) -> IntegrityFailure | None: ...
    def note_authority(self, kind: Authority, namespace: str, name: str, failure: IntegrityFailure) -> None: ...
