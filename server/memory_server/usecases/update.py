"""Changing a memory under the revision that was read, so that nobody's change is lost unseen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from memory_core.errors import Conflict, Forbidden, InvalidArgument, NotFound, StoreUnavailable, echo
from memory_core.keys import Keys, digest, vector_field
from memory_core.names import check_label
from memory_core.records import Priority, Record, Visibility, content_hash
from memory_core.scope import Principal
from memory_core.vectors import Matrix
from memory_server.readers import reads
from memory_server.results.memories import MemoryAnswer
from memory_server.service import Service
from memory_server.usecases import checks
from memory_server.usecases.lookup import load_readable
from memory_server.usecases.pieces import Cut, settle_or_tell, split_content
from memory_server.usecases.principals import Caller, resolve
from memory_server.usecases.read import retrieve_memory
from memory_server.usecases.writing import embed_or_none, hash_fields, job_part, lifetime, scope_of, vector_part

_ATTEMPTS = 5
_OPTIONAL_FIELDS = ("tags", "context", "metadata", "terms", "body", "pieces")


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
    service: Service, caller: Caller, memory_id: str, changes: Changes, expected_rev: int | None
) -> MemoryAnswer:
    """Change one of the caller's own memories and return it as it is now.

    A new priority starts its lifetime anew; nothing else moves the expiry. Another's memory can be changed in content
    and metadata under a grant to write: whatever else moved would share it further or take it from its owner.

    Raises:
        NotFound: no such memory that the caller may read.
        Forbidden: the caller may read it but it is another's, and no grant lets the caller change this.
        Conflict: its revision is not `expected_rev`.
        InvalidArgument: a value is not valid, or nothing was to change.
    """
    if changes.is_empty:
        raise InvalidArgument("nothing to change", hint="give content, priority, visibility, tags, context or metadata")
    for _ in range(_ATTEMPTS):
        principal = await resolve(service.backend, caller)
        old = await load_readable(service, principal, memory_id, whole=True)
        _check_may_change(principal, old, changes)
        if expected_rev is not None and old.rev != expected_rev:
            raise _stale(old.rev, expected_rev)
        new = _changed(service, old, changes)
        status, reason = await _write(service, caller, principal, old, new)
        if status == "updated":
            answer = await retrieve_memory(service, caller, memory_id)
            return answer.model_copy(update={"partial": bool(reason), "reason": reason})
        if status == "gone":
            raise NotFound(f"memory {memory_id} was deleted meanwhile")
    raise StoreUnavailable("the memory keeps being changed by others", hint="try again", retry_after=0.5)


def _check_may_change(principal: Principal, old: Record, changes: Changes) -> None:
    if principal.owns(old.owner):
        return
    if not principal.grants_to_write(old.scope):
        raise Forbidden(f"memory {old.id} belongs to {old.writer}", hint="store one of your own instead")
    if changes != Changes(content=changes.content, metadata=changes.metadata):
        raise Forbidden(
            f"memory {old.id} belongs to {old.writer}; a grant to write covers its content and metadata alone",
            hint="leave out priority, visibility, tags and context",
        )


def _changed(service: Service, old: Record, changes: Changes) -> Record:
    limits = service.settings.limits
    content, context, metadata = old.content, old.context, old.metadata
    if changes.content is not None:
        content = checks.check_text(changes.content, "content", limits.content_bytes)
    if changes.context is not None:
        context = check_label(changes.context, "context") if changes.context else None
    if changes.metadata is not None:
        metadata = checks.check_metadata(changes.metadata, service.settings)
    new = replace(
        old,
        content=content,
        context=context,
        metadata=metadata,
        priority=changes.priority or old.priority,
        visibility=changes.visibility or old.visibility,
        tags=old.tags if changes.tags is None else checks.check_tags(changes.tags, service.settings),
    )
    return replace(new, scope=scope_of(new))


async def _write(
    service: Service, caller: Caller, principal: Principal, old: Record, new: Record
) -> tuple[str, str | None]:
    """Call the update Function and settle the further pieces; give the Function's status and what is amiss."""
    keys = Keys(principal.namespace)
    content_changed = new.content != old.content
    pieces = await split_content(new.content)
    most = max(len(pieces), old.pieces)
    vectors: Matrix | None = None
    if content_changed:
        vectors = await embed_or_none(service, pieces, new.source, principal)
    fields = hash_fields(new, pieces)
    answer = await service.backend.write(
        "rm1_update",
        [
            keys.memory(old.id),
            keys.jobs,
            keys.audit,
            keys.counters,
            keys.use(old.id),
            keys.same(old.owner, old.content_hash),
            keys.same(old.owner, content_hash(new.content)),
            keys.chores,
            keys.seq(old.owner),
            keys.events,
            keys.granted(principal.agent),
            keys.agent(principal.agent),
        ],
        id=old.id,
        prefix=keys.prefix,
        owners=list(principal.owners),
        grants=[grant.id for grant in principal.grants_to_write(old.scope)],
        rev=old.rev,
        fields=fields,
        remove=[name for name in _OPTIONAL_FIELDS if name not in fields[::2]],
        relive=new.priority is not old.priority,
        ttl=lifetime(service, new.priority, None),
        grace=service.settings.lifetimes.grace,
        content_changed=content_changed,
        context=digest(new.context or "") if new.context != old.context else None,
        pieces=most,
        vector=None if vectors is None else vector_part(service, vectors[0]),
        vector_field=vector_field(service.settings.vector_store.embedding_model),
        job=job_part(service, pieces[0], new.source),
        audit=caller.audit("update_memory", [old.id]),
    )
    if answer["status"] == "updated":
        if content_changed and vectors is None:
            service.ring(principal.namespace)
        if most > 1:
            cut = Cut(new.content, pieces, vectors)
            return "updated", await settle_or_tell(service, principal.namespace, f"{old.id}:{most}", cut)
    return answer["status"], None


def _stale(actual: int, expected: int) -> Conflict:
    return Conflict(
        f"the memory is at revision {actual}, not {echo(expected)}", hint="retrieve it, merge your change, try again"
    )
