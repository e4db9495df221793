"""Checks all authorisation records of a namespace, and signs those written without a key or under an older one.

A removed record leaves nothing to check, so what was revoked or put under quarantine is compared with the audit.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from memory_core.crypto.integrity import Integrity
from memory_core.crypto.keyring import Keyring
from memory_core.records import grant_proof, offer_proof, owners, quarantine
from memory_core.records import token as tokens
from memory_core.records.audit_entry import system_entry
from memory_core.records.authority_codes import Authority, IntegrityFailure
from memory_core.records.codec import DecodeError, pack, unpack
from memory_core.records.keys import Keys, token_key
from memory_core.records.owners import adopt_hint
from memory_core.redis_client import Client
from memory_core.slices import slices
from memory_core.store.connection import store_errors
from memory_server.engine.redis_backend import Backend
from memory_server.security.audit import reader

_AT_ONCE = 100
_MOST_PAGES = 20
_REMOVED, _REVIVED = "removed directly in Redis", "in force again after it was revoked"


@dataclass(frozen=True, slots=True)
class AuthorityRecord:
    """An authorisation record, why it fails its check (None if it does not), and how to sign it.

    `signed` is the field's value with a code, None if the record must not be signed.
    """

    name: str
    failure: IntegrityFailure | None
    key: str
    field: str
    value: bytes | None
    signed: bytes | str | None = None


class AuthorityScan:
    """Walks over the authorisation records of a namespace."""

    def __init__(self, client: Client, integrity: Integrity, namespace: str) -> None:
        self._client, self._integrity, self.keys = client, integrity, Keys(namespace)

    async def records(self) -> AsyncGenerator[AuthorityRecord]:
        """Yield every record; raises StoreUnavailable. One may appear twice."""
        for walk in (self._owners, self._grants, self._offers, self._marks, self._tombstones, self._tokens):
            async for record in walk():
                yield record

    async def removed(self, keyring: Keyring) -> list[tuple[str, str]]:
        """Compare revoked grants and tokens and marks of quarantine with the signed entries of the audit."""
        last: dict[str, dict[str, str]] = {"quarantine": {}, "token_revoke": {}, "revoke_shared_context": {}}
        async for page in reader.walk(self._client, self.keys):
            for entry in page:
                op, ids = entry.fields.get("op", ""), entry.fields.get("asked", entry.fields.get("ids", "")).split()
                kind = op.removeprefix("lift_")
                is_done = kind in last and bool(ids) and entry.fields.get("outcome") == "ok"
                if is_done and entry.check(keyring, self.keys.namespace) == "ok":
                    last[kind][ids[0]] = op
        marked = {agent for agent, op in last["quarantine"].items() if op == "quarantine"}
        return [
            *await self._unmarked(marked),
            *await self._revived_tokens(last["token_revoke"]),
            *await self._revived_grants(last["revoke_shared_context"]),
        ]

    async def _unmarked(self, marked: set[str]) -> list[tuple[str, str]]:
        async with store_errors():
            found = {name.decode() for name in await self._client.hkeys(self.keys.quarantined)}
        return [(f"{Authority.QUARANTINE} {agent}", _REMOVED) for agent in sorted(marked - found)]

    async def _revived_tokens(self, revoked: Iterable[str]) -> list[tuple[str, str]]:
        async with store_errors():
            states = {one: (await tokens.load_fields(self._client, one)).get("revoked") for one in revoked}
        return [(f"{Authority.CREDENTIAL} {token_id}", _REVIVED) for token_id, state in states.items() if state == "0"]

    async def _revived_grants(self, revoked: Collection[str]) -> list[tuple[str, str]]:
        return [
            (f"{Authority.GRANT} {name} {grant_id.decode()}", _REVIVED)
            async for name, found in self._hashes(self.keys.granted(""))
            for grant_id in found
            if grant_id.decode() in revoked
        ]

    async def _owners(self) -> AsyncGenerator[AuthorityRecord]:
        async for name in self._names(self.keys.agent("")):
            async with store_errors():
                row = await self._client.hmget(self.keys.agent(name), owners.FIELDS)
            found = owners.parse(row)
            for kind, field, value, known, codes, more in (
                (Authority.OWNER, "proofs", row[2], found.owners, found.proofs, [found.since]),
                (Authority.KEPT, "kept_proofs", row[4], found.kept, found.kept_proofs, []),
            ):
                fresh = {one: self._sign(kind, name, codes.get(one), one, *more) for one in known}
                joined = owners.join_proofs(codes | {one: code for one, code in fresh.items() if code})
                for owner in known:
                    failure = self._check(kind, name, codes.get(owner), owner, *more)
                    where, signed = self.keys.agent(name), joined if any(fresh.values()) else None
                    yield AuthorityRecord(f"{kind} {name} {owner}", failure, where, field, value, signed)

    async def _grants(self) -> AsyncGenerator[AuthorityRecord]:
        async for name, entries in self._hashes(self.keys.granted("")):
            for raw_id, packed in entries.items():
                yield self._grant(name, raw_id.decode(), packed)

    def _grant(self, name: str, grant_id: str, packed: bytes) -> AuthorityRecord:
        key, record = self.keys.granted(name), f"{Authority.GRANT} {name} {grant_id}"
        try:
            entry: dict[str, Any] = unpack(packed)
            failure = grant_proof.check(self._integrity, self.keys.namespace, name, grant_id, entry, log=False)
            signed = None
            if self._may_sign(failure, entry.get("code")):
                body = grant_proof.of_entry(grant_id, entry).sign(self._integrity, self.keys.namespace, name)
                signed = pack({**entry, "proof": body["body"], "code": body["code"]}) if body else None
        except (*DecodeError, KeyError, AttributeError):
            return AuthorityRecord(record, IntegrityFailure.ALTERED, key, grant_id, packed)
        return AuthorityRecord(record, failure, key, grant_id, packed, signed)

    async def _offers(self) -> AsyncGenerator[AuthorityRecord]:
        async for name, found in self._hashes(self.keys.offers("")):
            for raw_id, packed in found.items():
                key, record = self.keys.grant(raw_id.decode()), f"{Authority.OFFER} {name} {raw_id.decode()}"
                async with store_errors():
                    row = {field.decode(): value for field, value in (await self._client.hgetall(key)).items()}
                    since = await self._client.hget(self.keys.agent(name), "since")
                if row:
                    yield self._offer(record, key, raw_id.decode(), row)
                if row.get("kind") == b"o":
                    yield self._given(f"{record} memories", name, raw_id.decode(), packed, (since or b"").decode())

    def _offer(self, record: str, key: str, offer_id: str, row: dict[str, bytes]) -> AuthorityRecord:
        where = self._integrity, self.keys.namespace, offer_id, row
        failure = offer_proof.inspect(*where)
        signed = offer_proof.sign_row(*where) if self._may_sign(failure, offer_proof.code_of(row)) else None
        return AuthorityRecord(record, failure, key, "mac", row.get("mac"), signed)

    def _given(self, record: str, name: str, offer_id: str, packed: bytes, since: str) -> AuthorityRecord:
        """Check the codes of the owner ids that an offer transfers."""
        key = self.keys.offers(name)
        try:
            entry: dict[str, Any] = unpack(packed)
            codes: dict[str, str] = dict(entry.get("proofs") or {})
            offered = [token.removeprefix("o:") for token in entry["own"] if token.startswith("o:")]
        except (*DecodeError, KeyError, AttributeError):
            return AuthorityRecord(record, IntegrityFailure.ALTERED, key, offer_id, packed)
        failures = [self._check(Authority.OWNER, name, codes.get(one), one, since) for one in offered]
        fresh = {one: self._sign(Authority.OWNER, name, codes.get(one), one, since) for one in offered}
        made = {one: code for one, code in fresh.items() if code}
        signed = pack({**entry, "proofs": codes | made}) if made else None
        failure = next((one for one in failures if one), None)
        return AuthorityRecord(record, failure, key, offer_id, packed, signed)

    async def _marks(self) -> AsyncGenerator[AuthorityRecord]:
        async with store_errors():
            found = await self._client.hgetall(self.keys.quarantined)
        for raw, value in found.items():
            name, (since, _, code) = raw.decode(), value.decode(errors="replace").partition(" ")
            failure = self._check(Authority.QUARANTINE, name, code, since)
            signed = None
            if self._may_sign(failure, code):
                signed = quarantine.mark(self._integrity, self.keys.namespace, name, float(since))
            record = f"{Authority.QUARANTINE} {name}"
            yield AuthorityRecord(record, failure, self.keys.quarantined, name, value, signed)

    async def _tombstones(self) -> AsyncGenerator[AuthorityRecord]:
        async with store_errors():
            found = await self._client.smembers(self.keys.tombstones)
        for raw in found:
            key, owner = self.keys.owner(raw.decode()), raw.decode()
            async with store_errors():
                value = await self._client.hget(key, "deleted")
            code = value.decode() if value else None
            failure, signed = (
                self._check(Authority.TOMBSTONE, owner, code),
                self._sign(Authority.TOMBSTONE, owner, code),
            )
            yield AuthorityRecord(f"{Authority.TOMBSTONE} {owner}", failure, key, "deleted", value, signed)

    async def _tokens(self) -> AsyncGenerator[AuthorityRecord]:
        async with store_errors():
            found = await self._client.zrange(self.keys.tokens, 0, -1)
        for raw in found:
            token_id = raw.decode()
            async with store_errors():
                fields = await tokens.load_fields(self._client, token_id)
            if fields.get("revoked") != "0":
                continue
            code = fields.get("mac")
            failure = tokens.inspect(token_id, fields, self._integrity)
            signed = tokens.sign(token_id, fields, self._integrity) if self._may_sign(failure, code) else None
            record, value = f"{Authority.CREDENTIAL} {token_id}", code.encode() if code else None
            yield AuthorityRecord(record, failure, token_key(token_id), "mac", value, signed)

    def _check(self, kind: Authority, name: str, code: str | None, *fields: str) -> IntegrityFailure | None:
        return self._integrity.inspect_authority(kind, self.keys.namespace, name, code, *fields)

    def _sign(self, kind: Authority, name: str, code: str | None, *fields: str) -> str | None:
        if not self._may_sign(self._check(kind, name, code, *fields), code):
            return None
        return self._integrity.sign_authority(kind, self.keys.namespace, name, *fields)

    def _may_sign(self, failure: IntegrityFailure | None, code: str | None) -> bool:
        """Whether a record has no code, or a good one of an older key. A wrong code stays wrong."""
        if failure is None:
            return not self._integrity.is_current(code or "")
        return failure is IntegrityFailure.UNSIGNED

    async def _names(self, prefix: str) -> AsyncGenerator[str]:
        cursor = 0
        while True:
            async with store_errors():
                cursor, found = await self._client.scan(cursor, match=f"{prefix}*", count=1000)
            for key in found:
                yield key.decode()[len(prefix) :]
            if not cursor:
                return

    async def _hashes(self, prefix: str) -> AsyncGenerator[tuple[str, dict[bytes, bytes]]]:
        async for name in self._names(prefix):
            async with store_errors():
                found = await self._client.hgetall(prefix + name)
            yield name, found


async def unadopted(backend: Backend, namespace: str) -> str | None:
    """Say how to sign a namespace where an earlier release wrote: agents have owner ids, and none has a code.

    It looks at some agents only. None once one with a code was found.
    """
    if not backend.integrity.signs or namespace in backend.adopted:
        return None
    found = await _some_owners(backend, namespace)
    if any(one.proofs or one.kept_proofs for one in found):
        backend.adopted.add(namespace)
        return None
    if not any(one.owners or one.kept for one in found):
        return None
    return f"namespace {namespace} is from an earlier release: {adopt_hint(namespace)}"


async def _some_owners(backend: Backend, namespace: str) -> list[owners.RawOwners]:
    prefix = Keys(namespace).agent("")

    async def fetch(client: Client) -> list[owners.RawOwners]:
        cursor, found = 0, list[bytes]()
        for _ in range(_MOST_PAGES):
            cursor, page = await client.scan(cursor, match=f"{prefix}*", count=1000)
            found += page
            if not cursor or len(found) >= _AT_ONCE:
                break
        pipe = client.pipeline(transaction=False)
        for key in found[:_AT_ONCE]:
            pipe.hmget(key.decode(), owners.FIELDS)
        return [owners.parse(row) for row in await pipe.execute()]

    return await backend.read(fetch)


async def adopt_authority(backend: Backend, namespace: str) -> int:
    """Sign the records without a code or with an older key's; return how many."""
    scan = AuthorityScan(await backend.client(), backend.integrity, namespace)
    waiting = {(one.key, one.field): one async for one in scan.records() if one.signed is not None}
    adopted = 0
    for part in slices([one for one in waiting.values() if one.key.startswith(scan.keys.prefix)], _AT_ONCE):
        audit = system_entry("console", "adopt_authority", [one.name.replace(" ", ":") for one in part])
        adopted += await _replace(backend, [scan.keys.audit, scan.keys.counters], part, audit=audit)
    for one in (one for one in waiting.values() if not one.key.startswith(scan.keys.prefix)):
        adopted += await _replace(backend, [], [one])
    return adopted


async def _replace(backend: Backend, keys: list[str], records: Sequence[AuthorityRecord], **request: Any) -> int:
    """Write the signed values of records that did not change meanwhile; return how many."""
    items = [{"field": one.field, "was": one.value, "value": one.signed} for one in records]
    named = [*keys, *(one.key for one in records)]
    answer = await backend.write("rm1_adopt_authority", named, items=items, first=len(keys) + 1, **request)
    return answer["adopted"]
