"""Rotates keys: an owner's data key, with which its memories are encrypted again, or the master key that encrypts it.

An interrupted rotation can be started again. It first makes a new version of the data key current, so that nothing new
uses the old version, and drops the old version once no memory needs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from memory_core.crypto.sealed_memory import unwrap, wrap
from memory_core.crypto.sealing import Key, key_id
from memory_core.errors import Conflict, KeyMissing, StoreUnavailable, Tampered
from memory_core.records.audit_entry import system_entry
from memory_core.records.keys import Keys
from memory_core.records.memory import Record
from memory_core.records.model import Model
from memory_core.records.names import SEPARATOR
from memory_core.records.vectors import Matrix, from_bytes, from_stored, to_stored
from memory_core.redis_client import Client
from memory_server.engine.redis_backend import Backend
from memory_server.index import loader, queries
from memory_server.index import query_builder as build
from memory_server.index.loader import Ref
from memory_server.memories.chunks import ChunkedContent, settle_or_tell, split_content
from memory_server.memories.record_encoder import encoder_of, flat
from memory_server.security.vault import wrapped_keys
from memory_server.service import Service

WHO = "operator"
_SLICE = 50
_ATTEMPTS = 5
_CURRENT = b"current"


@dataclass(slots=True)
class Rotated:
    """The result of a rotation. If some memories cannot be decrypted (`closed`), the old key is kept."""

    owner: str
    resealed: int = 0
    closed: int = 0


async def owners_with_keys(backend: Backend, namespace: str, agent: str | None = None) -> list[str]:
    """Return the owner ids that have a data key, of one agent or all."""
    keys = Keys(namespace)
    keyed = {raw.decode() for raw in await backend.read(lambda client: client.smembers(keys.keyed))}
    if agent is None:
        return sorted(keyed)
    rows = await backend.read(lambda client: client.hmget(keys.agent(agent), ["owners", "kept"]))
    return sorted(keyed & {owner for row in rows if row for owner in row.decode().split(SEPARATOR)})


async def rotate(service: Service, namespace: str, owner: str) -> Rotated:
    """Encrypt an owner's memories with a new data key, or finish a rotation. Raises KeyMissing, StoreUnavailable."""
    if (await service.namespaces.get(namespace)).progress < 1:
        raise StoreUnavailable("the index is being built", hint="run it again in a while", retry_after=5.0)
    rotated = Rotated(owner)
    known = await service.vault.all_versions(namespace, owner)
    if known and len(known.versions) == 1:
        await _add_version(service.backend, namespace, owner, known.current)
        known = await service.vault.all_versions(namespace, owner)
    if known is None:
        return rotated
    while done := await _reseal_all(service, namespace, owner, known.current, rotated):
        rotated.resealed += done
    if not rotated.closed:
        for version in known.versions.keys() - {known.current}:
            request: dict[str, Any] = {"repeatable": True, "version": version}
            await _write(service.backend, namespace, owner, "rm1_key_drop", "drop data key", **request)
        service.vault.forget(namespace, owner)
    return rotated


async def rewrap(backend: Backend, namespace: str, owner: str) -> int:
    """Encrypt an owner's data keys with the current master key; return how many. Raises KeyMissing, Tampered."""
    keyring, done = backend.keyring, 0
    versions = await wrapped_keys(backend, namespace, owner)
    for name, before in versions.items():
        if name == _CURRENT or key_id(before) == keyring.master.id:
            continue
        version = name.decode()
        key = unwrap(keyring.secret, before, version, namespace, owner)
        wrapped = wrap(keyring.master, key, namespace, owner)
        request: dict[str, Any] = {"version": version, "before": before, "wrapped": wrapped}
        done += await _write(backend, namespace, owner, "rm1_key_rewrap", "rewrap data key", **request) == "rewrapped"
    return done


async def _add_version(backend: Backend, namespace: str, owner: str, before: str) -> None:
    key = Key.new()
    wrapped = wrap(backend.keyring.master, key, namespace, owner)
    request: dict[str, Any] = {"before": before, "version": key.id, "wrapped": wrapped}
    if await _write(backend, namespace, owner, "rm1_key_turn", "rotate data key", **request) != "turned":
        raise Conflict("another rotation is in progress", hint="run it again when that one is done")


async def _write(
    backend: Backend, namespace: str, owner: str, function: str, op: str, *, repeatable: bool = False, **request: Any
) -> str | None:
    keys = Keys(namespace)
    names, audit = [keys.data_key(owner), keys.audit, keys.counters], system_entry(WHO, op, [owner])
    answer = await backend.write(function, names, repeatable=repeatable, audit=audit, **request)
    return answer.get("status")


async def _reseal_all(service: Service, namespace: str, owner: str, version: str, rotated: Rotated) -> int:
    """Encrypt an owner's sensitive memories again, newest first; return how many used another version."""
    position, done, rotated.closed = None, 0, 0
    while found := await _slice(service, namespace, owner, position):
        for record in found:
            try:
                done += await _reseal(service, namespace, record, version)
            except (KeyMissing, Tampered):
                rotated.closed += 1
        position = min(record.created_at for record in found)
    return done


async def _slice(service: Service, namespace: str, owner: str, position: float | None) -> list[Record]:
    keys, timeout = Keys(namespace), service.settings.search_timeout_ms
    selected = build.created_before(build.memories(build.sensitive(build.of_owner(owner))), position)

    async def fetch(client: Client) -> list[Record]:
        offset = 0
        while True:
            refs, _ = await queries.page(client, keys, selected, offset=offset, limit=_SLICE, timeout_ms=timeout)
            records = await loader.load(client, keys, refs, service.backend.integrity)
            if records or len(refs) < _SLICE:
                return records
            offset += len(refs)

    return await service.namespaces.search(namespace, fetch)


async def _reseal(service: Service, namespace: str, record: Record, version: str) -> bool:
    """Encrypt one memory again; False if it uses the version already or is gone."""
    for _ in range(_ATTEMPTS):
        if record.sealed is None or key_id(record.sealed.text) == version:
            return False
        model = await service.models.current(namespace)
        loaded = await _load(service.backend, namespace, [Ref(record.id)], model, whole=True)
        if not loaded:
            return False
        record = loaded[0]
        if record.sealed and key_id(record.sealed.text) != version and await _replace(service, namespace, record):
            return True
    raise StoreUnavailable("a memory keeps being changed by others", hint="run it again", retry_after=1.0)


async def _replace(service: Service, namespace: str, closed: Record) -> bool:
    """Write a memory encrypted with the current key; False if it changed meanwhile."""
    keys, record = Keys(namespace), await service.vault.open(namespace, closed)
    model = closed.sealed.model if closed.sealed and closed.sealed.model else await service.models.current(namespace)
    chunks = await split_content(record.content)
    encoder = await encoder_of(service, namespace, record.owner, model, sensitive=record.is_sensitive)
    vectors = await _vectors(service, namespace, record, len(chunks), model)
    new, seal = replace(record, content_hash=encoder.content_hash(record.content)), service.backend.integrity.seal
    most, vector = max(len(chunks), record.chunks), None
    if record.vector is not None:
        vector = to_stored(from_stored(record.vector, model.dimension), model)
    answer = await service.backend.write(
        "rm1_reseal",
        [
            keys.memory(record.id),
            keys.data_key(record.owner),
            keys.job_streams,
            keys.chores,
            keys.same(record.owner, record.content_hash),
            keys.same(record.owner, new.content_hash),
            keys.audit,
            keys.counters,
        ],
        repeatable=True,
        id=record.id,
        rev=record.rev,
        before=closed.sealed.text if closed.sealed else b"",
        key=encoder.key_version,
        fields=flat(encoder.head(new, chunks)),
        vector=encoder.vector(new, 0, vector),
        job=encoder.job(new, 0, chunks[0]),
        pieces=most,
        seal=seal(namespace, record.id, record.rev),
        was=seal(namespace, record.id, record.rev, record.signer) if record.signer else None,
        audit=system_entry(WHO, "reseal", [record.id]),
    )
    if answer["status"] == "key_changed":
        service.vault.forget(namespace, record.owner)
    if answer["status"] != "resealed":
        return False
    if record.vector is None:
        service.ring(namespace)
    if most > 1:
        content = ChunkedContent(record.content, chunks, model, vectors)
        await settle_or_tell(service, namespace, f"{record.id}:{most}", content=content)
    return True


async def _vectors(service: Service, namespace: str, record: Record, pieces: int, model: Model) -> Matrix | None:
    """Return the vectors of all chunks of a long memory, shape (chunks, dimension); None if one is missing."""
    if pieces == 1 or record.vector is None:
        return None
    refs = [Ref(record.id, number) for number in range(1, pieces)]
    opened = await service.vault.open_all(namespace, await _load(service.backend, namespace, refs, model))
    found = [record.vector, *(piece.vector for piece in opened.records if piece.vector)]
    return np.concatenate([from_bytes(vector, model.dimension) for vector in found]) if len(found) == pieces else None


async def _load(
    backend: Backend, namespace: str, refs: Sequence[Ref], model: Model, *, whole: bool = False
) -> list[Record]:
    return await backend.read(
        lambda client: loader.load(client, Keys(namespace), refs, backend.integrity, model=model, whole=whole)
    )
