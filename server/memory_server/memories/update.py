"""Changing a memory under the revision that was read, so that nobody's change is lost unseen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from memory_core.errors import Conflict, Forbidden, InvalidArgument, NotFound, StoreUnavailable, echo
from memory_core.records.keys import Keys, digest
from memory_core.records.memory import SEALED_BODY, Priority, Record, Visibility
from memory_core.records.model import Model
from memory_core.records.names import check_label
from memory_core.records.scope import Principal
from memory_core.records.vectors import Matrix, from_bytes
from memory_core.settings.settings import Settings
from memory_server.contract import validation
from memory_server.contract.memories import MemoryAnswer, UpdateAnswer
from memory_server.engine.backend import after_write
from memory_server.engine.deferred_writes import Written
from memory_server.engine.inflight_reads import reads
from memory_server.engine.principals import resolve
from memory_server.engine.request import RequestContext
from memory_server.memories.chunks import Cut, settle_or_tell, split_content
from memory_server.memories.forms import Form, embed_or_none, flat, form_of, lifetime, scope_of, signed_elsewhere
from memory_server.memories.get import retrieve_memory
from memory_server.memories.quota_check import take_room
from memory_server.memories.services import MemoryServices
from memory_server.security.open_records import load_readable

_ATTEMPTS = 5
_OPTIONAL_FIELDS = ("tags", "context", "metadata", "terms", "body", SEALED_BODY, "pieces")


@dataclass(frozen=True, slots=True)
class Changes:
    """What to change; None leaves a value as it is, an empty list, text or map removes it."""

    content: str | None = None
    priority: Priority | None = None
    visibility: Visibility | None = None
    tags: Sequence[str] | None = None
    context: str | None = None
    metadata: dict[str, Any] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing is to change."""
        return self == Changes()


@reads
async def update_memory(
    service: MemoryServices, request: RequestContext, memory_id: str, changes: Changes, expected_rev: int | None
) -> UpdateAnswer:
    """Change one of the caller's own memories and return it as it is now.

    A new priority starts its lifetime anew; nothing else moves the expiry. Another's memory can be changed in content
    and metadata under a grant to write: whatever else moved would share it further or take it from its owner.

    Raises:
        NotFound: no such memory that the caller may read.
        Forbidden: the caller may read it but it is another's, and no grant lets the caller change this.
        Conflict: its revision is not `expected_rev`.
        Tampered: it is not as a server of ours wrote it.
        InvalidArgument: a value is not valid, or nothing was to change.
    """
    if changes.is_empty:
        raise InvalidArgument("nothing to change", hint="give content, priority, visibility, tags, context or metadata")
    for _ in range(_ATTEMPTS):
        principal = await resolve(service.backend, request)
        model = await service.models.current(principal.namespace)
        old = await load_readable(service, request, principal, memory_id, model=model, whole=True)
        _check_may_change(principal, old, changes)
        if expected_rev is not None and old.rev != expected_rev:
            raise _stale(old.rev, expected_rev)
        new = _changed(service.settings, principal, old, changes)
        status, reason = await _write(service, request, principal, old, new, model)
        if status == "key_changed":
            service.vault.forget(principal.namespace, old.owner)
        if status == "updated":
            answer = await _read_back(service, request, memory_id)
            written = Written(principal.namespace, memory_id, old.rev + 1)
            reached = await service.durability.reached(
                request, written, critical=Priority.CRITICAL in (old.priority, new.priority)
            )
            return UpdateAnswer(
                memory=answer.memory,
                access_count=answer.access_count,
                last_access=answer.last_access,
                durability=reached.level,
                unconfirmed=reached.unconfirmed,
                partial=bool(reason),
                reason=reason,
            )
        if status == "gone":
            raise NotFound(f"memory {memory_id} was deleted meanwhile")
    raise StoreUnavailable("the memory keeps being changed by others", hint="try again", retry_after=0.5)


async def _read_back(service: MemoryServices, request: RequestContext, memory_id: str) -> MemoryAnswer:
    with after_write():
        try:
            return await retrieve_memory(service, request, memory_id)
        except NotFound:
            raise NotFound(f"memory {memory_id} was changed, and has expired or been deleted since") from None


def _check_may_change(principal: Principal, old: Record, changes: Changes) -> None:
    if principal.owns(old.owner):
        return
    if not principal.grants_to_write(old.scope):
        raise Forbidden(f"memory {old.id} belongs to another agent", hint="store one of your own instead")
    if changes != Changes(content=changes.content, metadata=changes.metadata):
        raise Forbidden(
            f"memory {old.id} belongs to another agent; a grant to write covers its content and metadata alone",
            hint="leave out priority, visibility, tags and context",
        )


def _changed(settings: Settings, principal: Principal, old: Record, changes: Changes) -> Record:
    limits = settings.limits
    content, context, metadata = old.content, old.context, old.metadata
    if changes.content is not None:
        content = validation.check_text(changes.content, "content", limits.content_bytes)
    if changes.context is not None:
        context = check_label(changes.context, "context") if changes.context else None
    if changes.metadata is not None:
        metadata = validation.check_metadata(changes.metadata, settings)
    new = replace(
        old,
        writer=old.writer if (content, metadata) == (old.content, old.metadata) else principal.agent,
        content=content,
        context=context,
        metadata=metadata,
        priority=changes.priority or old.priority,
        visibility=changes.visibility or old.visibility,
        tags=old.tags if changes.tags is None else validation.check_tags(changes.tags, settings),
    )
    validation.check_secrecy(new.is_sensitive, new.visibility)
    return replace(new, scope=scope_of(new))


async def _write(
    service: MemoryServices, request: RequestContext, principal: Principal, old: Record, new: Record, model: Model
) -> tuple[str, str | None]:
    """Call the update Function and settle the further pieces; give the Function's status and what is amiss."""
    keys = Keys(principal.namespace)
    content_changed = new.content != old.content
    pieces = await split_content(new.content)
    most = max(len(pieces), old.pieces)
    if len(pieces) > old.pieces and principal.owns(old.owner):
        await take_room(service, principal, 0, len(pieces) - old.pieces)
    vectors: Matrix | None = None
    if content_changed:
        vectors = await embed_or_none(service, new, pieces, principal, model)
    form = await form_of(service, principal.namespace, old, model)
    new = replace(new, rev=old.rev + 1, content_hash=form.content_hash(new.content))
    fields, sealed = form.head(new, pieces), service.backend.integrity.seal
    answer = await service.backend.write(
        "rm1_update",
        [
            keys.memory(old.id),
            keys.job_streams,
            keys.audit,
            keys.counters,
            keys.use(old.id),
            keys.same(old.owner, old.content_hash),
            keys.same(old.owner, new.content_hash),
            keys.chores,
            keys.seq(old.owner),
            keys.events,
            keys.granted(principal.agent),
            keys.agent(principal.agent),
            keys.data_key(old.owner),
        ],
        id=old.id,
        prefix=keys.prefix,
        owners=list(principal.owners),
        grants=[grant.id for grant in principal.grants_to_write(old.scope)],
        rev=old.rev,
        fields=flat(fields),
        remove=[name for name in _OPTIONAL_FIELDS if name not in fields],
        relive=new.priority is not old.priority,
        ttl=lifetime(service.settings, new.priority, None),
        grace=service.settings.lifetimes.grace,
        content_changed=new.content_hash != old.content_hash,
        context=digest(new.context or "") if new.context != old.context else None,
        pieces=most,
        vector=_vector(form, old, new, vectors),
        job=form.job(new, 0, pieces[0]),
        key=form.version,
        seal=sealed(principal.namespace, old.id, old.rev + 1),
        was=sealed(principal.namespace, old.id, old.rev, old.signer) if old.signer else None,
        audited_call=request.call,
        audit=request.caller.audit("update_memory", [old.id]),
    )
    if answer["status"] == "updated":
        if content_changed and vectors is None:
            service.ring(principal.namespace)
        if most > 1:
            cut = Cut(new.content, pieces, vectors, model)
            return "updated", await settle_or_tell(service, principal.namespace, f"{old.id}:{most}", cut)
    if answer["status"] == "key_missing":
        raise signed_elsewhere()
    return answer["status"], None


def _vector(form: Form, old: Record, new: Record, vectors: Matrix | None) -> dict[str, Any] | None:
    """Give the vector to write: the new content's, or that of the old one where it must be sealed anew."""
    if vectors is not None:
        return form.vector(new, 0, vectors[0])
    if new.content != old.content or form.version is None or old.vector is None:
        return None
    return form.vector(new, 0, from_bytes(old.vector, len(old.vector) // 4)[0])


def _stale(actual: int, expected: int) -> Conflict:
    return Conflict(
        f"the memory is at revision {actual}, not {echo(expected)}", hint="retrieve it, merge your change, try again"
    )
