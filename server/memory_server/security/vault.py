"""The one place that holds the keys of sensitive memories and opens them. What it opens is told to its readers alone.

Each owner has a data key, kept in Redis under the master key of the servers. A process remembers one for at most
REMEMBER_SECONDS, so that all of them end so soon after it was destroyed.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from cachetools import LRUCache

from memory_core.crypto.keyring import HOW_TO_SET, framed
from memory_core.crypto.sealed_memory import open_record, unwrap, wrap
from memory_core.crypto.sealing import Key, Transports, key_id
from memory_core.errors import KeyMissing, MemoryServiceError, NotFound, Tampered
from memory_core.records.audit_entry import system_entry
from memory_core.records.keys import Keys
from memory_core.records.memory import Record
from memory_core.redis_client import Client
from memory_server.engine.backend import Backend
from memory_server.security.decrypted_vectors import OpenVectors

log = logging.getLogger(__name__)
REMEMBER_SECONDS = 60.0
_LOOK_SECONDS = 20.0
_MOST_OWNERS = 10_000
_CURRENT = b"current"
_GONE = "it was altered, or its key was destroyed"


@dataclass(slots=True)
class OwnerKeys:
    """The data key of an owner in all its versions, as of a moment (monotonic seconds)."""

    current: str
    versions: dict[str, Key] = field(repr=False)
    read_at: float


@dataclass(slots=True)
class Opened:
    """Records whose content can be read, in their order, and how many could not be opened for which reason."""

    records: list[Record] = field(default_factory=list[Record])
    problems: dict[str, int] = field(default_factory=dict[str, int])

    def leave_out(self, error: MemoryServiceError, number: int = 1) -> None:
        """Count what could not be opened."""
        reason = error.message if isinstance(error, KeyMissing) else _GONE
        self.problems[reason] = self.problems.get(reason, 0) + number

    @property
    def warnings(self) -> list[str]:
        """Say what is left out."""
        return [f"{number} sensitive texts are left out: {reason}" for reason, number in self.problems.items()]


class Vault:
    """Opens sensitive memories and gives the keys that seal them."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._owners: LRUCache[tuple[str, str], OwnerKeys] = LRUCache(_MOST_OWNERS)
        self.vectors = OpenVectors(backend.settings.cache.sealed_bytes)

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[Vault]:
        """Keep up with keys that are destroyed until left."""
        looking = asyncio.create_task(self._look_for_ever(), name="vault")
        try:
            yield self
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
            self.vectors.clear()

    @property
    def transports(self) -> Transports:
        """The keys shared with sidecars."""
        return self._backend.transports

    async def check(self) -> None:
        """Make sure that something sensitive could be stored, before any of it goes anywhere.

        Raises:
            KeyMissing: this server has no master key.
        """
        await self._backend.client()
        self._check_master()

    def fingerprint(self, namespace: str, owner: str, text: str) -> str:
        """Identify a request to this deployment alone; it stays the same when data keys are rotated."""
        key = self._backend.keyring.master.derive("idempotency")
        said = framed(part.encode() for part in (namespace, owner, text))
        return hmac.digest(key, said, "sha256").hex()

    async def current(self, namespace: str, owner: str) -> Key:
        """Give the key that an owner's memories are sealed under now; the first store of an owner makes it.

        Raises:
            KeyMissing: this server has no master key. NotFound: the owner was deleted meanwhile.
        """
        found = await self._of(namespace, owner)
        if found is None:
            found = await self._issue(namespace, owner)
        return found.versions[found.current]

    async def find(self, namespace: str, owner: str, version: str) -> Key:
        """Give one version of an owner's key.

        Raises:
            KeyMissing: this server lacks the master key. Tampered: there is no such version.
        """
        found = await self._of(namespace, owner)
        if found is None or version not in found.versions:
            found = await self._of(namespace, owner, afresh=True)
        if found is None or version not in found.versions:
            raise Tampered("a sensitive memory cannot be read: " + _GONE)
        return found.versions[version]

    async def all_versions(self, namespace: str, owner: str) -> OwnerKeys | None:
        """Read an owner's keys afresh; None where it has none.

        Raises:
            KeyMissing: this server lacks the master key. Tampered: a wrapped key was altered.
        """
        return await self._of(namespace, owner, afresh=True)

    def forget(self, namespace: str, owner: str) -> None:
        """Drop an owner's keys, and what was decrypted with them."""
        self._owners.pop((namespace, owner), None)
        self.vectors.forget(namespace, owner)

    async def open_all(self, namespace: str, records: Sequence[Record]) -> Opened:
        """Open the sensitive ones among some records; those that cannot be are left out and counted."""
        opened = Opened()
        for record in records:
            try:
                opened.records.append(await self.open(namespace, record))
            except (KeyMissing, Tampered) as error:
                opened.leave_out(error)
        return opened

    async def open(self, namespace: str, record: Record) -> Record:
        """Give a record with its content; one that is not sensitive is given as it is.

        Raises:
            KeyMissing: it is sensitive, and this server lacks the master key.
            Tampered: a part of it was altered or moved, or its key was destroyed.
        """
        if record.sealed is None:
            return record
        wanted = {key_id(part) for part in _parts(record) if part is not None}
        keys = {version: await self.find(namespace, record.owner, version) for version in wanted}
        return open_record(namespace, record, keys.__getitem__)

    async def _of(self, namespace: str, owner: str, *, afresh: bool = False) -> OwnerKeys | None:
        known = self._owners.get((namespace, owner))
        if known and not afresh and time.monotonic() - known.read_at < REMEMBER_SECONDS:
            return known
        self._check_master()
        wrapped = await self._backend.read(lambda client: client.hgetall(Keys(namespace).data_key(owner)))
        if not wrapped:
            self.forget(namespace, owner)
            return None
        try:
            found = self._unwrapped(namespace, owner, wrapped)
        except (KeyError, ValueError):
            raise Tampered("the data key of an owner was altered in Redis") from None
        self._owners[namespace, owner] = found
        return found

    def _unwrapped(self, namespace: str, owner: str, wrapped: dict[bytes, bytes]) -> OwnerKeys:
        find = self._backend.keyring.secret
        versions = {name.decode(): value for name, value in wrapped.items() if name != _CURRENT}
        keys = {name: unwrap(find, value, name, namespace, owner) for name, value in versions.items()}
        current = wrapped[_CURRENT].decode()
        return OwnerKeys(keys[current].id, keys, time.monotonic())

    async def _issue(self, namespace: str, owner: str) -> OwnerKeys:
        """Make a data key, or take the one that another server made in between."""
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
        found = None if answer["status"] == "unknown_owner" else await self._of(namespace, owner, afresh=True)
        if found is None:
            raise NotFound("the agent was deleted meanwhile", hint="register it again")
        return found

    def _check_master(self) -> None:
        if not self._backend.keyring.masters:
            raise KeyMissing("sensitive memories need a master key, which this server does not have", hint=HOW_TO_SET)

    async def _look_for_ever(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                await self.look_again()
            except MemoryServiceError as error:
                log.warning("data keys: %s", error.message)
            except Exception:
                log.exception("data keys cannot be looked at")

    async def look_again(self) -> None:
        """Drop the keys that were destroyed since, with all that was decrypted with them."""
        known = [*{*self._owners, *self.vectors.owners}]

        async def fetch(client: Client) -> list[int]:
            pipe = client.pipeline(transaction=False)
            for namespace, owner in known:
                pipe.exists(Keys(namespace).data_key(owner))
            return await pipe.execute()

        there: Iterable[int] = await self._backend.read(fetch) if known else []
        for (namespace, owner), exists in zip(known, there, strict=True):
            if not exists:
                self.forget(namespace, owner)


def _parts(record: Record) -> tuple[bytes | None, ...]:
    sealed = record.sealed
    return (sealed.text, sealed.chunk, sealed.body, sealed.vector) if sealed else ()
