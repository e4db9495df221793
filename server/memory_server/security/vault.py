"""Holds the keys of sensitive memories and decrypts them.

Each owner has a data key, stored in Redis encrypted under the servers' master key. A process caches it for at most
REMEMBER_SECONDS, so a destroyed key is unusable soon after.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from cachetools import LRUCache
from redis.exceptions import ResponseError

from memory_core.cancellation import cancel
from memory_core.crypto.keyring import HOW_TO_SET, framed
from memory_core.crypto.sealed_memory import open_record, unwrap, wrap
from memory_core.crypto.sealing import Key, Transports, key_id
from memory_core.errors import KeyMissing, MemoryServiceError, NotFound, Tampered
from memory_core.records.audit_entry import system_entry
from memory_core.records.damage import is_wrong_type
from memory_core.records.keys import Keys
from memory_core.records.memory import Record
from memory_core.redis_client import Client
from memory_server.contract.untrusted_text import counted
from memory_server.engine.redis_backend import Backend
from memory_server.security.decrypted_vectors import OpenVectors

log = logging.getLogger(__name__)
REMEMBER_SECONDS = 60.0
_LOOK_SECONDS = 20.0
_MOST_OWNERS = 10_000
_CURRENT = b"current"
_GONE = "it was altered, or its key was destroyed"


@dataclass(slots=True)
class OwnerKeys:
    """All versions of an owner's data key, read at `read_at` (monotonic seconds)."""

    current: str
    versions: dict[str, Key] = field(repr=False)
    read_at: float


@dataclass(slots=True)
class Opened:
    """Decrypted records, in their order, and how many could not be decrypted, by reason."""

    records: list[Record] = field(default_factory=list[Record])
    problems: dict[str, int] = field(default_factory=dict[str, int])

    def leave_out(self, error: MemoryServiceError, number: int = 1) -> None:
        """Count records that could not be decrypted."""
        reason = error.message if isinstance(error, KeyMissing | DataKeyDamaged) else _GONE
        self.problems[reason] = self.problems.get(reason, 0) + number

    @property
    def warnings(self) -> list[str]:
        """One warning for each reason."""
        return [
            f"{counted(number, 'sensitive text is', 'sensitive texts are')} left out: {reason}"
            for reason, number in self.problems.items()
        ]


class DataKeyDamaged(Tampered):
    """The key in Redis that holds the data keys of an owner is of another type."""


class Vault:
    """Decrypts sensitive memories and provides the keys that encrypt them."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._owners: LRUCache[tuple[str, str], OwnerKeys] = LRUCache(_MOST_OWNERS)
        self.vectors = OpenVectors(backend.settings.cache.sealed_bytes)

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Vault]:
        """Drop destroyed keys in the background until left."""
        task = asyncio.create_task(self._poll_forever(), name="vault")
        try:
            yield self
        finally:
            await cancel([task])
            self.vectors.clear()

    @property
    def transports(self) -> Transports:
        """The keys shared with sidecars."""
        return self._backend.transports

    async def check(self) -> None:
        """Raise KeyMissing if this server has no master key."""
        await self._backend.client()
        self._check_master()

    def fingerprint(self, namespace: str, owner: str, text: str) -> str:
        """Hash a request under a key of this deployment that data key rotation does not change."""
        key = self._backend.keyring.master.derive("idempotency")
        return hmac.digest(key, framed(part.encode() for part in (namespace, owner, text)), "sha256").hex()

    async def current(self, namespace: str, owner: str) -> Key:
        """Return an owner's current key, creating it if missing; raises KeyMissing, NotFound for a deleted owner."""
        found = await self._keys_of(namespace, owner) or await self._issue(namespace, owner)
        return found.versions[found.current]

    async def find(self, namespace: str, owner: str, version: str) -> Key:
        """Return one version of an owner's key; raises KeyMissing, Tampered if the version does not exist."""
        found = await self._keys_of(namespace, owner)
        if found is None or version not in found.versions:
            found = await self.all_versions(namespace, owner)
        if found is None or version not in found.versions:
            raise Tampered("a sensitive memory cannot be read: " + _GONE)
        return found.versions[version]

    async def all_versions(self, namespace: str, owner: str) -> OwnerKeys | None:
        """Read an owner's keys from Redis, None if it has none; raises KeyMissing, Tampered if one was altered."""
        self._check_master()
        wrapped = await wrapped_keys(self._backend, namespace, owner)
        if not wrapped:
            self.forget(namespace, owner)
            return None
        find, names = self._backend.keyring.secret, [name.decode() for name in wrapped if name != _CURRENT]
        try:
            keys = {name: unwrap(find, wrapped[name.encode()], name, namespace, owner) for name in names}
            current = keys[wrapped[_CURRENT].decode()].id
        except (KeyError, ValueError):
            raise Tampered("the data key of an owner was altered in Redis") from None
        found = self._owners[namespace, owner] = OwnerKeys(current, keys, time.monotonic())
        return found

    def forget(self, namespace: str, owner: str) -> None:
        """Drop an owner's cached keys and decrypted vectors."""
        self._owners.pop((namespace, owner), None)
        self.vectors.forget(namespace, owner)

    async def open_all(self, namespace: str, records: Sequence[Record]) -> Opened:
        """Decrypt the sensitive records; those that cannot be decrypted are left out and counted."""
        opened = Opened()
        for record in records:
            try:
                opened.records.append(await self.open(namespace, record))
            except (KeyMissing, Tampered) as error:
                opened.leave_out(error)
        return opened

    async def open(self, namespace: str, record: Record) -> Record:
        """Decrypt a sensitive record, or return another unchanged.

        Raises KeyMissing without the master key, Tampered if a part was altered or moved or the key was destroyed.
        """
        if (sealed := record.sealed) is None:
            return record
        parts = (sealed.text, sealed.chunk, sealed.body, sealed.vector)
        versions = {key_id(part) for part in parts if part is not None}
        keys = {version: await self.find(namespace, record.owner, version) for version in versions}
        return open_record(namespace, record, keys.__getitem__)

    async def _keys_of(self, namespace: str, owner: str) -> OwnerKeys | None:
        known = self._owners.get((namespace, owner))
        if known and time.monotonic() - known.read_at < REMEMBER_SECONDS:
            return known
        return await self.all_versions(namespace, owner)

    async def _issue(self, namespace: str, owner: str) -> OwnerKeys:
        """Create a data key, or read the one that another server created meanwhile."""
        names, key = Keys(namespace), Key.new()
        answer = await self._backend.write(
            "rm1_key_issue",
            [names.data_key(owner), names.owner(owner), names.tombstones, names.keyed, names.audit, names.counters],
            repeatable=True,
            owner=owner,
            version=key.id,
            wrapped=wrap(self._backend.keyring.master, key, namespace, owner),
            audit=system_entry("server", "issue data key", [owner]),
        )
        found = None if answer["status"] == "unknown_owner" else await self.all_versions(namespace, owner)
        if found is None:
            raise NotFound("the agent was deleted meanwhile", hint="register it again")
        return found

    def _check_master(self) -> None:
        if not self._backend.keyring.masters:
            raise KeyMissing("sensitive memories need a master key, which this server does not have", hint=HOW_TO_SET)

    async def _poll_forever(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                await self.look_again()
            except MemoryServiceError as error:
                log.warning("data keys: %s", error.message)
            except Exception:
                log.exception("data keys cannot be checked")

    async def look_again(self) -> None:
        """Drop the keys that were destroyed, and the vectors decrypted with them."""
        known = [*{*self._owners, *self.vectors.owners}]

        async def fetch(client: Client) -> list[int]:
            pipe = client.pipeline(transaction=False)
            for namespace, owner in known:
                pipe.exists(Keys(namespace).data_key(owner))
            return await pipe.execute()

        for (namespace, owner), exists in zip(known, await self._backend.read(fetch) if known else [], strict=True):
            if not exists:
                self.forget(namespace, owner)


async def wrapped_keys(backend: Backend, namespace: str, owner: str) -> dict[bytes, bytes]:
    """Read an owner's wrapped data keys by version; raises DataKeyDamaged. Nothing deletes a damaged one."""
    key = Keys(namespace).data_key(owner)

    async def fetch(client: Client) -> dict[bytes, bytes] | None:
        try:
            return await client.hgetall(key)
        except ResponseError as error:
            if is_wrong_type(error):
                return None
            raise

    if (found := await backend.read(fetch)) is None:
        hint = "`redis-memory doctor` names the key; an operator restores it from a backup"
        raise DataKeyDamaged("the data key of their owner cannot be read in Redis", hint=hint)
    return found
