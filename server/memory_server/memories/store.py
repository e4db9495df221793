"""Stores a memory: one Redis Function writes all of it or nothing."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from memory_core.errors import Conflict, InvalidArgument, MemoryServiceError, QuotaExceeded, StoreUnavailable
from memory_core.records import redis_time
from memory_core.records.authority import Effect
from memory_core.records.ids import new_id
from memory_core.records.keys import Keys, digest
from memory_core.records.memory import SEALED_CODEC, MemoryType, Priority, Record
from memory_core.records.model import Model
from memory_core.records.names import check_label
from memory_core.records.scope import Principal
from memory_core.records.times import NEVER, parse_time, to_iso
from memory_core.records.vectors import Matrix, normalise
from memory_core.settings.settings import Settings
from memory_server.contract import validation
from memory_server.contract.arguments import StoreArguments
from memory_server.contract.memories import Similar, StoreAnswer
from memory_server.engine.inflight_reads import reads
from memory_server.engine.principals import resolve, resolve_writer
from memory_server.engine.request_context import RequestContext, Written
from memory_server.memories.chunks import ChunkedContent, embed_or_none, settle_or_tell, split_content
from memory_server.memories.record_encoder import encoder_of, flat, lifetime, scope_of, signed_elsewhere
from memory_server.memories.secrets_policy import has_credential, screen
from memory_server.memories.services import MemoryServices
from memory_server.search.search import nearest
from memory_server.security.vault import Vault

IDEMPOTENCY_SECONDS = 86_400
_MAX_KEY = 256
_SIMILAR = 2
_SNIPPET = 120
_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class _Draft:
    """A checked memory without an owner. `full` refuses it unless its idempotency key stored it before."""

    args: StoreArguments
    record: Record
    content: ChunkedContent
    full: QuotaExceeded | None
    readers: Sequence[str] = ()


@reads
async def store_memory(
    service: MemoryServices, request: RequestContext, args: StoreArguments, *, readers: Sequence[str] = ()
) -> StoreAnswer:
    """Store one memory as the caller's own. Without a sidecar jobs are queued, and the answer says `pending`.

    `readers` are owner ids whose holders may read it too, unless it becomes private or sensitive.
    Raises InvalidArgument, Conflict (idempotency key used for something else), QuotaExceeded, StoreUnavailable,
    OutcomeUnknown or KeyMissing (sensitive, and this server has no master key).
    """
    record, secrets = await screen(_check(service.settings, args), service.settings)
    validation.check_secrecy(record.is_sensitive, record.visibility)
    if record.is_sensitive:
        await service.vault.check()
    if args.vector is not None and args.memory_type is not MemoryType.EMBEDDING:
        raise InvalidArgument("vector goes with memory_type embedding only", hint="leave vector out")
    chunks = await split_content(record.content)
    keys = (await service.namespaces.get(request.caller.namespace)).keys
    model = await service.models.current(keys.namespace)
    vectors = _given_vectors(model, args, len(chunks))
    principal = await resolve_writer(service.backend, request)
    full: QuotaExceeded | None = None
    try:
        await service.quotas.take(principal, 1, len(chunks))
    except QuotaExceeded as error:
        if args.idempotency_key is None:
            raise
        full = error  # it may be stored already
    if vectors is None and full is None:
        wait = args.wait and request.may_wait(service.settings.embed_wait_seconds)
        vectors = await embed_or_none(service, record, chunks, request.caller, model, wait=wait)
    similar, reader, unread = list[Similar](), request.as_reader(), None
    if args.wait and vectors is not None and not record.is_sensitive:
        unread = reader.missing("similar memories are", Effect.READ_MEMORIES)
        similar = [] if unread else await _similar(service, reader, vectors[0], model)
    await request.check_stale_credential()
    draft = _Draft(args, record, ChunkedContent(record.content, chunks, model, vectors), full, readers)
    record, answer = await _write(service, request, principal, draft, [near.memory_id for near in similar])
    replayed, ready, reason = answer["status"] == "replayed", vectors is not None, None
    if replayed:
        state = await service.backend.read(lambda client: client.hget(keys.memory(answer["id"]), "model"))
        ready = model.is_ready(state)
    elif len(chunks) > 1:
        chore = f"{record.id}:{len(chunks)}"
        reason = await settle_or_tell(service, keys.namespace, chore, replace(draft.content, record=record))
    reason = "; ".join(filter(None, [reason, unread])) or None
    own = reader is request and reader.may(Effect.READ_MEMORIES)
    written = Written(keys.namespace, answer["id"], record.rev)
    reached = await service.durability.reached(request, written, critical=args.priority is Priority.CRITICAL)
    return StoreAnswer(
        memory_id=answer["id"],
        vector="ready" if ready else "pending",
        visibility=record.visibility,
        expires_at=to_iso(float(answer["expires_at"])),
        durability=reached.level,
        unconfirmed=reached.unconfirmed,
        duplicate_of=answer.get("duplicate_of") if own else None,
        similar=[] if replayed else similar,
        secrets=secrets,
        replayed=replayed,
        quarantined=dict(principal.quarantined).get(principal.agent, math.inf) <= redis_time.now(),
        partial=bool(reason),
        reason=reason,
    )


def _check(settings: Settings, args: StoreArguments) -> Record:
    if args.idempotency_key is not None:
        validation.check_text(args.idempotency_key, "idempotency_key", _MAX_KEY)
    lifetime(settings, args.priority, args.ttl_seconds)
    now = redis_time.now()
    return Record(
        id=new_id(),
        content=validation.check_text(args.content, "content", settings.limits.content_bytes),
        type=args.memory_type,
        priority=args.priority,
        owner="",
        writer="",
        visibility=args.visibility,
        scope=frozenset(),
        tags=validation.check_tags(args.tags or (), settings),
        context=check_label(args.context, "context") if args.context is not None else None,
        source=check_label(args.source, "source") if args.source is not None else None,
        seq=0,
        occurred_at=now if args.occurred_at is None else parse_time(args.occurred_at, "occurred_at"),
        created_at=now,
        updated_at=now,
        expires_at=NEVER,
        rev=1,
        state="",
        metadata=validation.check_metadata(args.metadata, settings),
        codec=SEALED_CODEC if args.sensitive else "text",
    )


def _given_vectors(model: Model, args: StoreArguments, chunks: int) -> Matrix | None:
    """Check a given vector and repeat it for every chunk; shape (chunks, dimension)."""
    if args.vector is None:
        return None
    with np.errstate(over="ignore"):
        given = normalise(np.array([args.vector], dtype=np.float32), model.dimension)
    return np.repeat(given, chunks, axis=0)


@reads
async def _similar(service: MemoryServices, request: RequestContext, vector: Matrix, model: Model) -> list[Similar]:
    """Find memories that may state the same fact. A failure never fails the store."""
    try:
        principal = await resolve(service.backend, request)
        found = await nearest(service, request, principal, vector, model, _SIMILAR)
    except MemoryServiceError:
        return []
    return [
        Similar(
            memory_id=near.record.id,
            score=near.score,
            content=near.record.content[:_SNIPPET],
            own=principal.owns(near.record.owner),
        )
        for near in found
        if near.score >= service.settings.similar_from
        and not near.record.is_sensitive
        and not has_credential([near.record.content])
    ]


async def _write(
    service: MemoryServices, request: RequestContext, principal: Principal, draft: _Draft, shown: Sequence[str]
) -> tuple[Record, dict[str, Any]]:
    """Call the store Function, again if the agent's owner id or data key changed. Returns the record and the answer."""
    args, content, record, answer = draft.args, draft.content, draft.record, dict[str, Any]()
    keys, audit = Keys(principal.namespace), request.caller.audit("store_memory", [record.id], shown)
    for _ in range(_ATTEMPTS):
        owner = principal.owner or ""
        encoder = await encoder_of(service, keys.namespace, owner, content.model, sensitive=record.is_sensitive)
        record = replace(
            draft.record,
            owner=owner,
            writer=principal.agent,
            scope=scope_of(draft.record, owner, draft.readers),
            content_hash=encoder.content_hash(content.content),
        )
        names = [
            keys.memory(record.id), keys.agent(record.writer), keys.job_streams, keys.audit, keys.seq(owner),
            keys.same(owner, record.content_hash), keys.counters, keys.idempotency(owner, args.idempotency_key or ""),
            keys.chores, keys.events, keys.data_key(owner),
        ]  # fmt: skip
        answer = await service.backend.write(
            "rm1_store",
            names,
            repeatable=True,
            id=record.id,
            full=draft.full is not None,
            memory_prefix=keys.memory_prefix,
            owner=record.owner,
            ttl=lifetime(service.settings, record.priority, args.ttl_seconds),
            grace=service.settings.lifetimes.grace,
            context=digest(record.context or ""),
            fields=flat(encoder.head(record, content.chunks)),
            pieces=len(content.chunks),
            vector=encoder.vector(record, 0, content.vector(0)),
            job=encoder.job(record, 0, content.chunks[0]),
            key=encoder.key_version,
            idempotency=_idempotency(service.vault, keys, record, args),
            seal=service.backend.integrity.seal(keys.namespace, record.id, 1),
            audit=audit,
            audited_call=request.call,
        )
        if answer["status"] == "owner_changed":
            principal = await resolve_writer(service.backend, request)
        elif answer["status"] == "key_changed":
            service.vault.forget(keys.namespace, record.owner)
        else:
            break
    if answer["status"] == "full" and draft.full:
        raise draft.full
    _raise_for(answer)
    if content.vectors is None and answer["status"] == "stored":
        service.ring(keys.namespace)
    return record, answer


def _raise_for(answer: dict[str, Any]) -> None:
    match answer["status"]:
        case "idempotency_conflict":
            raise Conflict("this idempotency_key was used for another memory within the last day", hint="use a new key")
        case "bad_vector":
            raise InvalidArgument("the vector is not of unit length", hint="see gpu_status")
        case "key_missing":
            raise signed_elsewhere()
        case "owner_changed" | "key_changed":
            raise StoreUnavailable("the agent was registered again meanwhile", hint="try again", retry_after=0.1)
        case _:
            pass


def _idempotency(vault: Vault, keys: Keys, record: Record, args: StoreArguments) -> dict[str, Any] | None:
    if args.idempotency_key is None:
        return None
    stored = args.model_dump(exclude={"idempotency_key", "wait", "agent_id"}) | {"tags": args.tags or []}
    text = json.dumps(stored, sort_keys=True, default=list)
    sealed = vault.fingerprint(keys.namespace, record.owner, text) if record.is_sensitive else None
    return {"payload": sealed or hashlib.sha256(text.encode()).hexdigest(), "ttl": IDEMPOTENCY_SECONDS}
