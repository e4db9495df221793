"""The owner ids of an agent's name. Each has an integrity code, so that nobody gets one by a direct write to Redis."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from memory_core.errors import Tampered
from memory_core.records.authority_codes import Authority, AuthorityCodes, IntegrityFailure
from memory_core.records.names import SEPARATOR, split_labels

FIELDS = ("owner", "owners", "proofs", "kept", "kept_proofs", "since")
"""Fields of an agent's hash: the current owner id, all of them, those that earlier holders of the name kept, a code
`<owner id>=<code>` for each, and when the last holder left the name."""
VERIFY_HINT = "an administrator sees details with `redis-memory integrity verify`"


class Owners(NamedTuple):
    """The owner ids of a name: the current one, all of them, and the kept ones, which it does not own.

    What is older than `since` is not the present holder's.
    """

    current: str | None = None
    all: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    since: str = ""


def proof(integrity: AuthorityCodes, namespace: str, agent: str, owner: str, since: str) -> dict[str, str] | None:
    """Return the code of a new owner id, its key and the `since` that it covers, for the Functions; None without."""
    if not integrity.signs:
        return None
    code = integrity.sign_authority(Authority.OWNER, namespace, agent, owner, since)
    return {"code": code, "since": since, "signer": code.partition(":")[0]}


def proofs(
    integrity: AuthorityCodes, namespace: str, agent: str, owners: Iterable[str], since: str
) -> dict[str, str] | None:
    """Return the code of each owner id; None without a key."""
    if not integrity.signs:
        return None
    return {owner: integrity.sign_authority(Authority.OWNER, namespace, agent, owner, since) for owner in owners}


def kept_proofs(integrity: AuthorityCodes, namespace: str, agent: str, owners: Iterable[str]) -> dict[str, str] | None:
    """Return the code of each owner id that an agent leaves; None without a key."""
    if not integrity.signs:
        return None
    return {owner: integrity.sign_authority(Authority.KEPT, namespace, agent, owner) for owner in owners}


def file_mark(integrity: AuthorityCodes, namespace: str, owner: str, file: str) -> str:
    """Return the mark of an owner id that came with a file which no key signed; `file` is the digest of the file."""
    return integrity.sign_authority(Authority.FILE, namespace, owner, file) or file


def tombstones(integrity: AuthorityCodes, namespace: str, owners: Iterable[str]) -> dict[str, str] | None:
    """Return the code of the tombstone of each owner id; None without a key."""
    if not integrity.signs:
        return None
    return {owner: integrity.sign_authority(Authority.TOMBSTONE, namespace, owner) for owner in owners}


def check_tombstone(
    integrity: AuthorityCodes, namespace: str, owner: str, code: bytes | None
) -> IntegrityFailure | None:
    """Check that the server deleted an owner id. None if it did."""
    return integrity.check_authority(Authority.TOMBSTONE, namespace, owner, code.decode() if code else None)


def read(integrity: AuthorityCodes, namespace: str, agent: str, row: Sequence[Any]) -> Owners:
    """Read FIELDS of an agent's hash, without the owner ids that fail their check.

    Raises:
        Tampered: the current owner id fails its check.
    """
    raw = parse(row)
    where = integrity, namespace, agent
    failed = {one: _failure(*where, Authority.OWNER, raw.proofs, one, raw.since) for one in raw.owners}
    if raw.current is not None and (failure := failed.get(raw.current, IntegrityFailure.ALTERED)):
        raise _tampered(namespace, agent, failure)
    kept = (one for one in raw.kept if _failure(*where, Authority.KEPT, raw.kept_proofs, one) is None)
    return Owners(raw.current, tuple(one for one in raw.owners if failed[one] is None), tuple(kept), raw.since)


def given(
    integrity: AuthorityCodes, namespace: str, agent: str, codes: Mapping[str, str], owners: Iterable[str], since: str
) -> tuple[str, ...]:
    """Return those of the owner ids whose codes give them to the present holder of a name."""
    where = integrity, namespace, agent, Authority.OWNER, codes
    return tuple(one for one in owners if _failure(*where, one, since) is None)


def _failure(
    integrity: AuthorityCodes,
    namespace: str,
    agent: str,
    kind: Authority,
    codes: Mapping[str, str],
    owner: str,
    *more: str,
) -> IntegrityFailure | None:
    return integrity.check_authority(kind, namespace, agent, codes.get(owner), owner, *more)


class RawOwners(NamedTuple):
    """FIELDS without a check; the codes are by owner id."""

    current: str | None
    owners: tuple[str, ...]
    proofs: dict[str, str]
    kept: tuple[str, ...]
    kept_proofs: dict[str, str]
    since: str


def parse(row: Sequence[Any]) -> RawOwners:
    """Split FIELDS, without a check."""
    current, owners, proofs, kept, kept_proofs, since = (
        value.decode(errors="replace") if value else None for value in row
    )
    of, left = split_labels(owners), split_labels(kept)
    return RawOwners(current, of, _codes(proofs), left, _codes(kept_proofs), since or "")


def _codes(text: str | None) -> dict[str, str]:
    pairs = (one.partition("=") for one in split_labels(text))
    return {owner: code for owner, _, code in pairs}


def join_proofs(codes: dict[str, str]) -> str:
    """Return the field `proofs` or `kept_proofs`."""
    return SEPARATOR.join(f"{owner}={code}" for owner, code in codes.items())


def adopt_hint(namespace: str) -> str:
    """Say how an operator signs what an earlier release wrote."""
    return f"after an upgrade, an administrator runs `redis-memory integrity adopt --namespace {namespace}` once"


def _tampered(namespace: str, agent: str, failure: IntegrityFailure) -> Tampered:
    if failure is IntegrityFailure.UNSIGNED:
        return Tampered(f"the owner id of agent {agent} has no integrity code", hint=adopt_hint(namespace))
    return Tampered(f"the owner id of agent {agent} fails its integrity check", hint=VERIFY_HINT)
