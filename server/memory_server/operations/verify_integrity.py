"""Verifies the integrity codes of all records of a namespace, and signs records written without a key."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from memory_core.crypto.keyring import HOW_TO_SET
from memory_core.errors import KeyMissing
from memory_core.records.audit_entry import system_entry
from memory_core.records.authority_codes import IntegrityFailure
from memory_core.records.keys import Keys
from memory_core.records.memory import Record
from memory_core.redis_client import Client
from memory_core.slices import slices
from memory_core.store.signer import record_signer
from memory_server.engine.redis_backend import Backend
from memory_server.index import loader
from memory_server.index.loader import Ref, UnverifiedRecord
from memory_server.memories.chunks import settle
from memory_server.operations.authority_records import AuthorityScan, adopt_authority
from memory_server.operations.quarantine import CONSOLE
from memory_server.service import Service

_SLICE = 100
_ADOPTED_AT_ONCE = 8
_MOST_NAMED = 1000


@dataclass(slots=True)
class IntegritySummary:
    """The result. `bad` names up to a thousand failed records; `unsigned` ones were written without a key.

    `authority` counts the authorisation records, and `authority_bad` names those that fail their check.
    """

    namespace: str
    memories: int = 0
    pieces: int = 0
    unsigned: int = 0
    failed: int = 0
    adopted: int = 0
    bad: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    authority: int = 0
    authority_adopted: int = 0
    authority_bad: list[dict[str, str]] = field(default_factory=list[dict[str, str]])

    @property
    def healthy(self) -> bool:
        """Whether every record has a valid code."""
        return not (self.unsigned or self.failed or self.authority_bad)

    def note(self, memory_id: str, what: str, piece: int = 0) -> None:
        """Add the problem of a record."""
        if what == IntegrityFailure.UNSIGNED:
            self.unsigned += 1
            return
        self.failed += 1
        if len(self.bad) < _MOST_NAMED:
            self.bad.append({"memory_id": memory_id, "piece": piece, "problem": what})


async def verify(backend: Backend, namespace: str) -> IntegritySummary:
    """Verify every memory of a namespace with all chunks; raises KeyMissing without a key."""
    await _check_signs(backend)
    report = IntegritySummary(namespace)
    async for found in _walk(backend, namespace):
        report.memories += len(found)
        for one in found:
            if isinstance(one, UnverifiedRecord):
                report.note(one.id, one.failure)
            else:
                await _verify_pieces(backend, Keys(namespace), one, report)
    await _verify_authority(backend, report)
    return report


async def _verify_authority(backend: Backend, report: IntegritySummary) -> None:
    scan = AuthorityScan(await backend.client(), backend.integrity, report.namespace)
    found = {one.name: one.failure async for one in scan.records()}
    report.authority = len(found)
    problems = [(name, str(failure)) for name, failure in found.items() if failure]
    problems += await scan.removed(backend.keyring)
    report.authority_bad = [{"record": name, "problem": problem} for name, problem in problems[:_MOST_NAMED]]


async def adopt(service: Service, namespace: str) -> IntegritySummary:
    """Sign records without a code or with an older key's, not with a wrong one, and report; raises KeyMissing."""
    await _check_signs(service.backend)
    adopted, authority = 0, await adopt_authority(service.backend, namespace)
    async for found in _walk(service.backend, namespace):
        signers = {one.id: one.signer for one in found if isinstance(one, Record)}
        failed = [one for one in found if isinstance(one, UnverifiedRecord)]
        signers |= {one.id: "" for one in failed if one.failure is IntegrityFailure.UNSIGNED}
        waiting = [(one, signer) for one, signer in signers.items() if signer != service.backend.integrity.signer]
        for part in slices(waiting, _ADOPTED_AT_ONCE):
            adopted += await _adopt(service, namespace, dict(part))
    report = replace(await verify(service.backend, namespace), adopted=adopted, authority_adopted=authority)
    if report.healthy:
        await record_signer(await service.backend.client(), service.backend.keyring, namespace)
    return report


async def _check_signs(backend: Backend) -> None:
    await backend.client()  # loads the keys
    if not backend.integrity.signs:
        raise KeyMissing("this process has no key to check records with", hint=HOW_TO_SET)


async def _walk(backend: Backend, namespace: str) -> AsyncGenerator[list[Record | UnverifiedRecord]]:
    """Yield all memories of a namespace in slices. A memory may appear twice."""
    keys, cursor = Keys(namespace), 0
    while True:
        cursor, names = await backend.read(
            lambda client, cursor=cursor: client.scan(cursor, match=f"{keys.memory_prefix}*", count=1000)
        )
        refs = [Ref.of_key(keys, name.decode()) for name in names]
        for part in slices(refs, _SLICE):
            yield await _load(backend, keys, part)
        if not cursor:
            return


async def _load(
    backend: Backend, keys: Keys, refs: Sequence[Ref], *, whole: bool = True
) -> list[Record | UnverifiedRecord]:
    return await backend.read(lambda client: loader.load_all(client, keys, refs, backend.integrity, whole=whole))


async def _verify_pieces(backend: Backend, keys: Keys, record: Record, report: IntegritySummary) -> None:
    for numbers in slices(range(1, record.chunks), _SLICE):
        refs = [Ref(record.id, number) for number in numbers]
        found = await _load(backend, keys, refs, whole=False)
        report.pieces += len(refs)
        for failure in (one.failure for one in found if isinstance(one, UnverifiedRecord)):
            report.note(record.id, failure, numbers[0])
        if len(found) < len(refs) and not await _is_settling(backend, keys, record):
            report.note(record.id, "pieces are missing", numbers[0])


async def _is_settling(backend: Backend, keys: Keys, record: Record) -> bool:
    """Whether the chunks are still being written, or the memory has changed since."""
    chores = await backend.read(lambda client: client.zrange(keys.chores, 0, -1))
    if any(chore.decode().startswith(f"{record.id}:") for chore in chores):
        return True
    rev = await backend.read(lambda client: client.hget(keys.memory(record.id), "rev"))
    return rev != str(record.rev).encode()


async def _adopt(service: Service, namespace: str, signers: Mapping[str, str]) -> int:
    """Sign some memories. `signers` maps each to the id of the secret that signed it so far, or to ""."""
    keys, ids = Keys(namespace), list(signers)

    async def fetch(client: Client) -> list[list[bytes | None]]:
        pipe = client.pipeline(transaction=False)
        for memory_id in ids:
            pipe.hmget(keys.memory(memory_id), ["rev", "pieces"])
        return await pipe.execute()

    rows = await service.backend.read(fetch)
    revisions = {memory_id: int(row[0]) for memory_id, row in zip(ids, rows, strict=True) if row[0]}
    long = {memory_id: int(row[1]) for memory_id, row in zip(ids, rows, strict=True) if row[1]}
    seal = service.backend.integrity.seal
    answer = await service.backend.write(
        "rm1_adopt",
        [keys.audit, keys.counters, keys.chores, *(keys.memory(memory_id) for memory_id in revisions)],
        items=[
            {
                "id": one,
                "rev": rev,
                "seal": seal(namespace, one, rev),
                "was": seal(namespace, one, rev, signers[one]) if signers[one] else None,
            }
            for one, rev in revisions.items()
        ],
        audit=system_entry(CONSOLE, "adopt"),
    )
    for memory_id in long.keys() & set(answer["adopted"]):
        await settle(service, namespace, f"{memory_id}:{long[memory_id]}")
    return len(answer["adopted"])
