"""Updates a memory only at the revision that was read, so that no concurrent change is lost."""

from __future__ import annotations

from dataclasses import replace

from memory_core.errors import (
    Conflict,
    Forbidden,
    InvalidArgument,
    NotFound,
    QuotaExceeded,
    StoreUnavailable,
    after_write,
    echo,
)
from memory_core.records.authority import Effect
from memory_core.records.keys import Keys, digest
from memory_core.records.memory import SEALED_BODY, Priority, Record
from memory_core.records.model import Model
from memory_core.records.names import check_label
from memory_core.records.scope import Principal, readers_of
from memory_core.settings.settings import Settings
from memory_server.contract import validation
from memory_server.contract.arguments import RetrieveArguments, UpdateArguments
from memory_server.contract.memories import MemoryAnswer, Secrets, UpdateAnswer
from memory_server.contract.untrusted_text import counted
from memory_server.engine.inflight_reads import reads
from memory_server.engine.principals import holder_of, resolve
from memory_server.engine.request_context import RequestContext, Written
from memory_server.memories.chunks import ChunkedContent, embed_or_none, settle_or_tell, split_content
from memory_server.memories.get import retrieve_memory
from memory_server.memories.record_encoder import encoder_of, flat, lifetime, scope_of, signed_elsewhere
from memory_server.memories.secrets_policy import screen
from memory_server.memories.services import MemoryServices
from memory_server.security.open_records import load_readable

_ATTEMPTS = 5
_OPTIONAL_FIELDS = ("tags", "context", "metadata", "terms", "body", SEALED_BODY, "pieces")


@reads
async def update_memory(service: MemoryServices, request: RequestContext, args: UpdateArguments) -> UpdateAnswer:
    """Update a memory and return it. Only a new priority restarts its lifetime.

    A grant covers only content and metadata: other changes would share the memory further or take it from its owner.
    Growth counts against the owner's quota, and under a grant also against the limit of that grant.
    Raises NotFound, Forbidden, Conflict (wrong `expected_rev`), QuotaExceeded, Tampered or InvalidArgument.
    """
    memory_id, expected_rev = args.memory_id, args.expected_rev
    if not args.changed:
        raise InvalidArgument("nothing to update", hint="pass content, priority, visibility, tags, context or metadata")
    for _ in range(_ATTEMPTS):
        principal = await resolve(service.backend, request)
        model = await service.models.current(principal.namespace)
        old = await load_readable(service, request, principal, memory_id, model=model, whole=True)
        _check_may_change(principal, old, args)
        if expected_rev is not None and old.rev != expected_rev:
            raise _stale(old.rev, expected_rev)
        new, secrets = await _screened(service.settings, old, _changed(service.settings, principal, old, args))
        status, reason = await _write(service, request, principal, old, new, model)
        if status == "key_changed":
            service.vault.forget(principal.namespace, old.owner)
        if status == "updated":
            answer = await _read_back(service, request, memory_id)
            written = Written(principal.namespace, memory_id, new.rev)
            critical = Priority.CRITICAL in {old.priority, new.priority}
            reached = await service.durability.reached(request, written, critical=critical)
            unread = request.missing("its texts are", Effect.READ_MEMORIES)
            reason = "; ".join(filter(None, [reason, unread])) or None
            return UpdateAnswer(
                memory=answer.memory.without_texts() if unread else answer.memory,
                chunks=answer.chunks,
                next_cursor=answer.next_cursor,
                access_count=answer.access_count,
                last_access=answer.last_access,
                durability=reached.level,
                unconfirmed=reached.unconfirmed,
                secrets=secrets,
                partial=bool(reason),
                reason=reason,
            )
        if status == "gone":
            raise NotFound(f"memory {memory_id} was deleted meanwhile")
    raise StoreUnavailable("others keep changing the memory", hint="try again", retry_after=0.5)


async def _read_back(service: MemoryServices, request: RequestContext, memory_id: str) -> MemoryAnswer:
    with after_write():
        try:
            return await retrieve_memory(service, request, RetrieveArguments(memory_id=memory_id))
        except NotFound:
            raise NotFound(f"memory {memory_id} was updated, but has expired or been deleted since") from None


def _check_may_change(principal: Principal, old: Record, args: UpdateArguments) -> None:
    if principal.owns(old.owner):
        return
    if not principal.grants_to_write(old.scope):
        raise Forbidden(f"memory {old.id} belongs to another agent", hint="store one of your own instead")
    if args.changed - {"content", "metadata"}:
        message = f"memory {old.id} belongs to another agent; a grant to write covers only content and metadata"
        raise Forbidden(message, hint="leave out priority, visibility, tags and context")


def _changed(settings: Settings, principal: Principal, old: Record, args: UpdateArguments) -> Record:
    content, context, metadata = old.content, old.context, old.metadata
    if args.content is not None:
        content = validation.check_text(args.content, "content", settings.limits.content_bytes)
    if args.context is not None:
        context = check_label(args.context, "context") if args.context else None
    if args.metadata is not None:
        metadata = validation.check_metadata(args.metadata, settings)
    new = replace(
        old,
        writer=old.writer if (content, metadata) == (old.content, old.metadata) else principal.agent,
        content=content,
        context=context,
        metadata=metadata,
        priority=args.priority or old.priority,
        visibility=args.visibility or old.visibility,
        tags=old.tags if args.tags is None else validation.check_tags(args.tags, settings),
        rev=old.rev + 1,
    )
    validation.check_secrecy(new.is_sensitive, new.visibility)
    return new


async def _screened(settings: Settings, old: Record, new: Record) -> tuple[Record, Secrets | None]:
    """Apply the setting `secrets` to a change of texts. An update cannot make a memory sensitive."""
    texts = [(one.content, one.metadata, one.tags, one.context) for one in (old, new)]
    if texts[0] == texts[1]:
        return new, None
    record, secrets = await screen(new, settings)
    if record.is_sensitive and not old.is_sensitive:
        message = f"content or metadata look like a credential ({', '.join(secrets.kinds if secrets else ())})"
        raise InvalidArgument(message, hint="store it as a new memory with sensitive=true")
    return record, secrets


async def _write(
    service: MemoryServices, request: RequestContext, principal: Principal, old: Record, new: Record, model: Model
) -> tuple[str, str | None]:
    """Call the update Function and settle further chunks. Returns its status, and why the chunks are not settled."""
    keys = Keys(principal.namespace)
    content_changed = new.content != old.content
    chunks = await split_content(new.content)
    most, growth = max(len(chunks), old.chunks), len(chunks) - old.chunks
    if growth > 0:
        await _take_quota(service, principal, old, growth)
    wait = request.may_wait(service.settings.embed_wait_seconds)
    vectors = await embed_or_none(service, new, chunks, principal, model, wait=wait) if content_changed else None
    await request.check_stale_credential()
    content = ChunkedContent(new.content, chunks, model, vectors)
    encoder = await encoder_of(service, principal.namespace, old.owner, model, sensitive=old.is_sensitive)
    scope = scope_of(new, new.owner, readers_of(old.scope))
    new = replace(new, scope=scope, content_hash=encoder.content_hash(new.content))
    fields, sealed = encoder.head(new, chunks), service.backend.integrity.seal
    vector = content.vector(0)
    if not content_changed and encoder.key_version:
        vector = old.vector  # sealed again: the seal is bound to the revision
    names = [
        keys.memory(old.id), keys.job_streams, keys.audit, keys.counters, keys.use(old.id),
        keys.same(old.owner, old.content_hash), keys.same(old.owner, new.content_hash), keys.chores,
        keys.seq(old.owner), keys.events, keys.granted(principal.agent), keys.agent(principal.agent),
        keys.data_key(old.owner),
    ]  # fmt: skip
    answer = await service.backend.write(
        "rm1_update",
        names,
        id=old.id,
        prefix=keys.prefix,
        owners=list(principal.owners),
        grants=[grant.id for grant in principal.grants_to_write(old.scope)],
        growth=growth,
        most_growth=service.settings.quotas.pieces_per_grant,
        rev=old.rev,
        fields=flat(fields),
        remove=[name for name in _OPTIONAL_FIELDS if name not in fields],
        relive=new.priority is not old.priority,
        ttl=lifetime(service.settings, new.priority, None),
        grace=service.settings.lifetimes.grace,
        content_changed=new.content_hash != old.content_hash,
        context=digest(new.context or "") if new.context != old.context else None,
        old_context=digest(old.context or ""),
        pieces=most,
        vector=encoder.vector(new, 0, vector),
        job=encoder.job(new, 0, chunks[0]),
        key=encoder.key_version,
        seal=sealed(principal.namespace, old.id, new.rev),
        was=sealed(principal.namespace, old.id, old.rev, old.signer) if old.signer else None,
        audited_call=request.call,
        audit=request.caller.audit("update_memory", [old.id]),
    )
    if answer["status"] == "updated":
        if content_changed and vectors is None:
            service.ring(principal.namespace)
        if most > 1:
            chore = f"{old.id}:{most}"
            content = replace(content, record=new)
            return "updated", await settle_or_tell(service, principal.namespace, chore, content)
    if answer["status"] == "key_missing":
        raise signed_elsewhere()
    if answer["status"] == "grant_full":
        message = (
            f"the memory would grow by {counted(growth, 'chunk')}, more than the grant to write to it still allows"
        )
        raise QuotaExceeded(
            message, hint="make it shorter, store a memory of your own, or ask its owner to share again"
        )
    return answer["status"], None


async def _take_quota(service: MemoryServices, principal: Principal, old: Record, growth: int) -> None:
    """Count growth against the owner's quota, of which another agent learns only that it is used up."""
    if principal.owns(old.owner):
        return await service.quotas.take(principal, 0, growth)
    owner = await holder_of(service.backend, principal.namespace, old.owner)
    try:
        await service.quotas.check(owner, 0, growth)
    except QuotaExceeded:
        message = f"the quota of the owner of memory {old.id} has no room for {counted(growth, 'more chunk')}"
        raise QuotaExceeded(message, hint="make it shorter, or store a memory of your own") from None


def _stale(actual: int, expected: int) -> Conflict:
    return Conflict(
        f"the memory is at revision {actual}, not {echo(expected)}", hint="retrieve it, merge your change, try again"
    )
