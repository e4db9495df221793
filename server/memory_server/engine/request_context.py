"""The context of one request: its caller and shared state. Every use case receives it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from memory_core.errors import Forbidden, echo
from memory_core.records.access import Access, Scope
from memory_core.records.audit_entry import AuditEntry, new_entry
from memory_server.contract.answer import Answer
from memory_server.engine.admission import Slot
from memory_server.engine.audited_calls import AuditedCall
from memory_server.engine.batch_cache import BatchCache
from memory_server.engine.integrity_report import IntegrityReport

S = TypeVar("S")
P = ParamSpec("P")
A = TypeVar("A", bound=Answer)


@dataclass(frozen=True, slots=True)
class Caller:
    """The authenticated agent and namespace of a request.

    Without `may_read` the answer shows no memories beyond those asked for. `sees_server` allows figures on all agents'
    activity: for admins, and for everyone while authentication is off. `by` is the admin who acts as the agent, and
    `origin` where the request came from.
    """

    namespace: str
    agent: str
    admin: bool = False
    may_read: bool = True
    sees_server: bool = True
    by: str | None = None
    origin: str = ""

    def audit(self, op: str, ids: Sequence[str] = (), shown: Sequence[str] = ()) -> AuditEntry:
        """Build the audit entry of an operation of this caller on some ids, with the memories it shows."""
        return new_entry(self.agent, op, ids, self.origin, by=self.by, shown=shown)


@dataclass(frozen=True, slots=True)
class Written:
    """A revision of a memory that Redis acknowledged."""

    namespace: str
    memory_id: str
    rev: int


class DeferredWrites:
    """The writes of a batch. `wait` says that one of them must be confirmed on disk."""

    def __init__(self) -> None:
        self.written: dict[str, Written] = {}
        self.wait = False

    def add(self, written: Written, wait: bool) -> None:
        self.written[written.memory_id] = written
        self.wait = self.wait or wait


@dataclass(frozen=True, slots=True)
class RequestContext:
    """The state of one operation. `RequestContext(caller)` is enough for background work and the console.

    `access` is what the token grants, None if no token is needed. A batch shares `cache` and `deferred`.
    """

    caller: Caller
    call: AuditedCall = field(default_factory=AuditedCall)
    access: Access | None = None
    cache: BatchCache | None = None
    integrity: IntegrityReport = field(default_factory=IntegrityReport)
    slot: Slot | None = None
    deferred: DeferredWrites | None = None

    def check(self, scope: Scope | None) -> None:
        """Require a scope of the caller's token. Raises Forbidden."""
        if self.access is not None:
            self.access.check(scope)

    def acting_as(self, agent_id: str | None) -> RequestContext:
        """Act as the agent that a write names in its `agent_id` argument; see `check_writes_as`."""
        return replace(self, caller=check_writes_as(self.caller, agent_id))

    def of_batch(self, deferred: DeferredWrites) -> RequestContext:
        """Return the context of a batch, which waits for the disk once, at its end."""
        return replace(self, deferred=deferred)

    def operation(self, call: AuditedCall, cache: BatchCache | None) -> RequestContext:
        return replace(self, call=call, cache=cache, integrity=IntegrityReport())

    def with_own_report(self) -> RequestContext:
        """Collect integrity failures of a part separately."""
        return replace(self, integrity=IntegrityReport())

    @contextmanager
    def without_slot(self) -> Generator[None]:
        """Let other calls run while this one only waits for an event, a task or the disk."""
        if self.slot is None:
            yield
            return
        with self.slot.given_back():
            yield


def check_writes_as(caller: Caller, agent_id: str | None) -> Caller:
    """Accept an `agent_id` argument of a write only from that agent or an admin. Raises Forbidden."""
    if agent_id is None or agent_id == caller.agent:
        return caller
    if caller.admin:
        return replace(caller, agent=agent_id, by=caller.agent)
    raise Forbidden(
        f"agent_id {echo(agent_id)} is not you ({caller.agent}); writes act as the connected agent",
        hint="leave agent_id out",
    )


def reports_integrity(
    use_case: Callable[Concatenate[S, RequestContext, P], Awaitable[A]],
) -> Callable[Concatenate[S, RequestContext, P], Awaitable[A]]:
    """Decorate a use case whose answer reports memories that failed their integrity check."""

    @wraps(use_case)
    async def reporting(service: S, request: RequestContext, *args: P.args, **kwargs: P.kwargs) -> A:
        own = request.with_own_report()
        return own.integrity.applied_to(await use_case(service, own, *args, **kwargs))

    return reporting
