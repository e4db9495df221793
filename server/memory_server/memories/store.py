"""Storing a memory: one Redis Function writes it whole or not at all."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from memory_core.errors import Conflict, InvalidArgument, MemoryServiceError, QuotaExceeded, StoreUnavailable
from memory_core.records.audit_entry import Said
from memory_core.records.ids import new_id
from memory_core.records.keys import Keys, digest
from memory_core.records.memory import SEALED_CODEC, MemoryType, Priority, Record, Visibility
from memory_core.records.model import Model
from memory_core.records.names import check_label
from memory_core.records.scope import Principal
from memory_core.records.times import NEVER, parse_time, to_iso
from memory_core.records.vectors import Matrix, normalise
from memory_core.settings.settings import Settings
from memory_core.store import redis_time
from memory_server.contract import validation
from memory_server.contract.memories import Similar, StoreAnswer, VectorState
from memory_server.engine.audited_calls import AuditedCall
from memory_server.engine.backend import Backend
from memory_server.engine.deferred_writes import Written
from memory_server.engine.inflight_reads import reads
from memory_server.engine.principals import resolve_writer
from memory_server.engine.request import RequestContext
from memory_server.memories.chunks import Cut, settle_or_tell, split_content
from memory_server.memories.forms import Form, embed_or_none, flat, form_of, lifetime, scope_of, signed_elsewhere
from memory_server.memories.quota_check import take_room
from memory_server.memories.services import MemoryServices
from memory_server.search.search import nearest
from memory_server.security.vault import Vault

IDEMPOTENCY_SECONDS = 86_400
_MAX_KEY = 256
_SIMILAR = 2
_SNIPPET = 120
_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class NewMemory:
    """What a caller wants remembered."""

    content: str
    memory_type: MemoryType = MemoryType.CONTEXT
    priority: Priority = Priority.MEDIUM
    visibility: Visibility = Visibility.PRIVATE
    tags: Sequence[str] = ()
    context: str | None = None
    source: str | None = None
    occurred_at: str | float | None = None
    metadata: dict[str, Any] | None = None
    sensitive: bool = False
    ttl_seconds: int | None = None
    idempotency_key: str | None = None
    wait: bool = True
    vector: Sequence[float] | None = None


@dataclass(frozen=True, slots=True)
class _Intake:
    """A new memory on its way to the store Function. `full` refuses it unless it was stored before."""

    new: NewMemory
    pieces: Sequence[str]
    vectors: Matrix | None
    model: Model
    full: QuotaExceeded | None
    audit: Said
    audited_call: AuditedCall


@reads
async def store_memory(service: MemoryServices, request: RequestContext, new: NewMemory) -> StoreAnswer:
    """Store one memory as the caller's own.

    With `wait` the vectors of a content of few pieces are asked for first, so that they land with the record; where
    no sidecar answers in time jobs are left instead and the answer says `pending`.

    Raises:
        InvalidArgument, Conflict (idempotency key used for something else), QuotaExceeded, StoreUnavailable,
        OutcomeUnknown. KeyMissing: it is sensitive, and this server has no master key; nothing is stored.
    """
    record = _check(service.settings, new)
    if record.is_sensitive:
        await service.vault.check()
    _check_vector(new)
    pieces = await split_content(record.content)
    prepared = await service.namespaces.get(request.caller.namespace)
    model = await service.models.current(request.caller.namespace)
    given = _given_vector(model, new)
    principal = await resolve_writer(service.backend, request)
    full = await _lacks_room(service, principal, len(pieces), new)
    vectors: Matrix | None = None
    if given is not None:
        vectors = np.repeat(given, len(pieces), axis=0)
    elif full is None:
        vectors = await embed_or_none(service, record, pieces, request.caller, model, wait=new.wait)
    looks = new.wait and request.caller.may_read
    similar = (
        await _similar(service, request, principal, record, vectors[0], model) if looks and vectors is not None else []
    )
    audit = request.caller.audit("store_memory", [record.id], [near.memory_id for near in similar])
    intake = _Intake(new, pieces, vectors, model, full, audit, request.call)
    answer = await _write(service, prepared.keys, request, principal, record, intake)
    earlier = answer["status"] == "replayed"
    reason = None
    if len(pieces) > 1 and not earlier:
        cut = Cut(record.content, pieces, vectors, model)
        reason = await settle_or_tell(service, request.caller.namespace, f"{record.id}:{len(pieces)}", cut)
    written = Written(request.caller.namespace, answer["id"], record.rev)
    reached = await service.durability.reached(request, written, critical=new.priority is Priority.CRITICAL)
    return StoreAnswer(
        memory_id=answer["id"],
        vector=await _state(service.backend, prepared.keys, answer["id"], model)
        if earlier
        else _readiness(vectors is not None),
        expires_at=to_iso(float(answer["expires_at"])),
        durability=reached.level,
        unconfirmed=reached.unconfirmed,
        duplicate_of=answer.get("duplicate_of"),
        similar=[] if earlier else similar,
        replayed=earlier,
        quarantined=dict(principal.quarantined).get(principal.agent, math.inf) <= redis_time.now(),
        partial=bool(reason),
        reason=reason,
    )


def _check(settings: Settings, new: NewMemory) -> Record:
    """Make an unowned record of what the caller sent, or say what is wrong with it."""
    validation.check_secrecy(new.sensitive, new.visibility)
    if new.idempotency_key is not None:
        validation.check_text(new.idempotency_key, "idempotency_key", _MAX_KEY)
    lifetime(settings, new.priority, new.ttl_seconds)
    now = redis_time.now()
    return Record(
        id=new_id(),
        content=validation.check_text(new.content, "content", settings.limits.content_bytes),
        type=new.memory_type,
        priority=new.priority,
        owner="",
        writer="",
        visibility=new.visibility,
        scope=frozenset(),
        tags=validation.check_tags(new.tags, settings),
        context=check_label(new.context, "context") if new.context is not None else None,
        source=check_label(new.source, "source") if new.source is not None else None,
        seq=0,
        occurred_at=now if new.occurred_at is None else parse_time(new.occurred_at, "occurred_at"),
        created_at=now,
        updated_at=now,
        expires_at=NEVER,
        rev=1,
        state="",
        metadata=validation.check_metadata(new.metadata, settings),
        codec=SEALED_CODEC if new.sensitive else "text",
    )


def _check_vector(new: NewMemory) -> None:
    if new.vector is not None and new.memory_type is not MemoryType.EMBEDDING:
        raise InvalidArgument("vector goes with memory_type embedding only", hint="leave vector out")


def _given_vector(model: Model, new: NewMemory) -> Matrix | None:
    """Check a ready-made vector, which stands for every piece of its content; shape (1, dimension)."""
    if new.vector is None:
        return None
    with np.errstate(over="ignore"):
        return normalise(np.array([new.vector], dtype=np.float32), model.dimension)


async def _lacks_room(
    service: MemoryServices, principal: Principal, pieces: int, new: NewMemory
) -> QuotaExceeded | None:
    """Take room for a new memory. What may have been stored before under its idempotency key is still to be answered.

    Raises:
        QuotaExceeded: there is none.
    """
    try:
        await take_room(service, principal, 1, pieces)
    except QuotaExceeded as error:
        if new.idempotency_key is None:
            raise
        return error
    return None


def _owned(record: Record, principal: Principal) -> Record:
    mine = replace(record, owner=principal.owner or "", writer=principal.agent)
    return replace(mine, scope=scope_of(mine))


async def _similar(
    service: MemoryServices,
    request: RequestContext,
    principal: Principal,
    record: Record,
    vector: Matrix,
    model: Model,
) -> list[Similar]:
    """Find what the new memory resembles; advice only, so its failure never fails a store.

    A sensitive one is compared with sensitive ones alone: its vector never goes to Redis in clear.
    """
    try:
        found = await nearest(service, request, principal, vector, model, _SIMILAR, secret=record.is_sensitive)
    except MemoryServiceError:
        return []
    return [
        Similar(memory_id=near.record.id, score=round(near.score, 4), content=near.record.content[:_SNIPPET])
        for near in found
    ]


async def _write(
    service: MemoryServices,
    keys: Keys,
    request: RequestContext,
    principal: Principal,
    record: Record,
    intake: _Intake,
) -> dict[str, Any]:
    """Call the store Function, again if the agent's owner id or its data key changed in between."""
    answer: dict[str, Any] = {}
    for _ in range(_ATTEMPTS):
        mine = _owned(record, principal)
        form = await form_of(service, keys.namespace, mine, intake.model)
        mine = replace(mine, content_hash=form.content_hash(mine.content))
        answer = await _store(service, keys, form, mine, intake)
        if answer["status"] == "owner_changed":
            principal = await resolve_writer(service.backend, request)
        elif answer["status"] == "key_changed":
            service.vault.forget(keys.namespace, mine.owner)
        else:
            break
    if answer["status"] == "full" and intake.full:
        raise intake.full
    _raise_for(answer)
    if intake.vectors is None and answer["status"] == "stored":
        service.ring(keys.namespace)
    return answer


async def _store(service: MemoryServices, keys: Keys, form: Form, record: Record, intake: _Intake) -> dict[str, Any]:
    new, pieces = intake.new, intake.pieces
    return await service.backend.write(
        "rm1_store",
        [
            keys.memory(record.id),
            keys.agent(record.writer),
            keys.job_streams,
            keys.audit,
            keys.seq(record.owner),
            keys.same(record.owner, record.content_hash),
            keys.counters,
            keys.idempotency(record.owner, new.idempotency_key or ""),
            keys.chores,
            keys.events,
            keys.data_key(record.owner),
        ],
        repeatable=True,
        id=record.id,
        full=intake.full is not None,
        memory_prefix=keys.memory_prefix,
        owner=record.owner,
        ttl=lifetime(service.settings, record.priority, new.ttl_seconds),
        grace=service.settings.lifetimes.grace,
        context=digest(record.context or ""),
        fields=flat(form.head(record, pieces)),
        pieces=len(pieces),
        vector=form.vector(record, 0, None if intake.vectors is None else intake.vectors[0]),
        job=form.job(record, 0, pieces[0]),
        key=form.version,
        idempotency=_idempotency(service.vault, keys, record, new),
        seal=service.backend.integrity.seal(keys.namespace, record.id, 1),
        audit=intake.audit,
        audited_call=intake.audited_call,
    )


def _raise_for(answer: dict[str, Any]) -> None:
    match answer["status"]:
        case "idempotency_conflict":
            raise Conflict(
                "this idempotency_key was used for another memory within the last day",
                hint="use a new key for a new memory",
            )
        case "bad_vector":
            raise InvalidArgument("the vector is not of unit length", hint="see gpu_status")
        case "key_missing":
            raise signed_elsewhere()
        case "owner_changed" | "key_changed":
            raise StoreUnavailable("the agent was registered anew meanwhile", hint="try again", retry_after=0.1)
        case _:
            return


def _idempotency(vault: Vault, keys: Keys, record: Record, new: NewMemory) -> dict[str, Any] | None:
    if new.idempotency_key is None:
        return None
    said = {name: getattr(new, name) for name in NewMemory.__slots__ if name not in {"idempotency_key", "wait"}}
    text = json.dumps(said, sort_keys=True, default=list)
    if new.sensitive:
        payload = vault.fingerprint(keys.namespace, record.owner, text)
    else:
        payload = hashlib.sha256(text.encode()).hexdigest()
    return {"payload": payload, "ttl": IDEMPOTENCY_SECONDS}


def _readiness(ready: bool) -> VectorState:
    return "ready" if ready else "pending"


async def _state(backend: Backend, keys: Keys, memory_id: str, model: Model) -> VectorState:
    return _readiness(model.is_ready(await backend.read(lambda client: client.hget(keys.memory(memory_id), "model"))))
