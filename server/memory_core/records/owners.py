"""The owner ids of an agent's name. Each has an integrity code, so that nobody gets one by a direct write to Redis."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from memory_core.crypto.integrity import Authority, Integrity, IntegrityFailure
from memory_core.errors import Tampered
from memory_core.records.names import SEPARATOR, split_labels

FIELDS = ("owner", "owners", "proofs")
"""Fields of an agent's hash: the current owner id, all of them, and a code `<owner id>=<code>` for each."""
ADOPT_HINT = "an administrator can sign the records of earlier releases with `redis-memory integrity adopt`"
VERIFY_HINT = "an administrator sees details with `redis-memory integrity verify`"


class Owners(NamedTuple):
    """The owner ids of a name: the current one, and all of them."""

    current: str | None = None
    all: tuple[str, ...] = ()


def proof(integrity: Integrity, namespace: str, agent: str, owner: str) -> str | None:
    """Return the code of an owner id; None without a key."""
    return integrity.sign_authority(Authority.OWNER, namespace, agent, owner) or None


def proofs(integrity: Integrity, namespace: str, agent: str, owners: Iterable[str]) -> dict[str, str] | None:
    """Return the code of each owner id; None without a key."""
    if not integrity.signs:
        return None
    return {owner: integrity.sign_authority(Authority.OWNER, namespace, agent, owner) for owner in owners}


def tombstones(integrity: Integrity, namespace: str, owners: Iterable[str]) -> dict[str, str] | None:
    """Return the code of the tombstone of each owner id; None without a key."""
    if not integrity.signs:
        return None
    return {owner: integrity.sign_authority(Authority.TOMBSTONE, namespace, owner) for owner in owners}


def check_tombstone(integrity: Integrity, namespace: str, owner: str, code: bytes | None) -> IntegrityFailure | None:
    """Check that the server deleted an owner id. None if it did."""
    return integrity.check_authority(Authority.TOMBSTONE, namespace, owner, code.decode() if code else None)


def read(integrity: Integrity, namespace: str, agent: str, row: Sequence[Any]) -> Owners:
    """Read FIELDS of an agent's hash, without the owner ids that fail their check.

    Raises:
        Tampered: the current owner id fails its check.
    """
    current, owners, codes = parse(row)
    failed = {one: integrity.check_authority(Authority.OWNER, namespace, agent, codes.get(one), one) for one in owners}
    if current is not None and (failure := failed.get(current, IntegrityFailure.ALTERED)):
        raise _tampered(agent, failure)
    return Owners(current, tuple(owner for owner in owners if failed[owner] is None))


def parse(row: Sequence[Any]) -> tuple[str | None, tuple[str, ...], dict[str, str]]:
    """Split FIELDS into the current owner id, all of them and their codes, without a check."""
    current, owners, codes = (value.decode(errors="replace") if value else None for value in row)
    pairs = (one.partition("=") for one in split_labels(codes))
    return current, split_labels(owners), {owner: code for owner, _, code in pairs}


def join_proofs(codes: dict[str, str]) -> str:
    """Return the field `proofs`."""
    return SEPARATOR.join(f"{owner}={code}" for owner, code in codes.items())


def _tampered(agent: str, failure: IntegrityFailure) -> Tampered:
    if failure is IntegrityFailure.UNSIGNED:
        return Tampered(f"the owner id of agent {agent} has no integrity code", hint=ADOPT_HINT)
    return Tampered(f"the owner id of agent {agent} fails its integrity check", hint=VERIFY_HINT)
