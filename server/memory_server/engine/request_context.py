"""The context of one request: its caller and shared state. Every use case receives it."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from memory_core.errors import Forbidden, MemoryServiceError, echo
from memory_core.records.access import Access
from memory_core.records.audit_entry import AuditEntry, new_entry
from memory_core.records.authority import Effect, scope_for
from memory_core.records.names import check_agent_name
from memory_server.contract.answer import Answer
from memory_server.engine.admission import Slot
from memory_server.engine.audited_calls import AuditedCall
from memory_server.engine.batch_cache import BatchCache
from memory_server.engine.credential import Credential
from memory_server.engine.integrity_report import IntegrityReport

S = TypeVar("S")
P = ParamSpec("P")
A = TypeVar("A", bound=Answer)
_SHORTENED = "the batch has used up its time for waits; call again outside a batch to wait longer"


@dataclass(frozen=True, slots=True)
class Caller:
    """The authenticated agent and namespace of a request.

    An `admin` may act for other agents. A caller that `oversees` the namespace sees the tasks, grants and events of all
    agents. `public_only` hides all memories that are not public. `sees_server` allows figures on all agents' activity:
    for overseers, and for everyone while authentication is off. `by` is the admin who acts as the agent, and `origin`
    where the request came from.
    """

    namespace: str
    agent: str
    admin: bool = False
    oversees: bool = False
    public_only: bool = False
    sees_server: bool = True
    by: str | None = None
    origin: str = ""
    became: tuple[str, ...] = field(default=(), compare=False)
    """What its names became that the connection gave in another form."""

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

    `access` is what the token grants, None if no token is needed. `session` is an opaque id of the client's session,
    empty for callers that hold no leases: hooks, the dashboard, background work. A batch shares `cache`, `deferred` and
    `waits_until`, the monotonic time at which its operations stop waiting.
    """

    caller: Caller
    call: AuditedCall = field(default_factory=AuditedCall)
    access: Access | None = None
    credential: Credential | None = None
    cache: BatchCache | None = None
    integrity: IntegrityReport = field(default_factory=IntegrityReport)
    slot: Slot | None = None
    deferred: DeferredWrites | None = None
    waits_until: float | None = None
    session: str = ""

    def may(self, effect: Effect) -> bool:
        """Whether the caller's token allows an effect. Without a token all are allowed."""
        return self.access is None or self.access.may(effect)

    def check(self, effects: Iterable[Effect]) -> None:
        """Require that the caller's token allows all effects. Raises Forbidden."""
        if self.access is not None:
            self.access.check(effects)

    def missing(self, attached: str, effect: Effect) -> str | None:
        """Say that an answer leaves out what it would attach, if the caller's token does not allow it."""
        return None if self.may(effect) else f"{attached} left out: a token with scope {scope_for(effect)} shows them"

    def as_reader(self) -> RequestContext:
        """Return the context for memories that an answer attaches: an admin who acts for an agent reads as itself."""
        if not (self.caller.admin and self.caller.by):
            return self
        return replace(self, caller=replace(self.caller, agent=self.caller.by, by=None))

    def acting_as(self, agent_id: str | None) -> RequestContext:
        """Act as the agent that a write names in its `agent_id` argument; see `check_writes_as`."""
        return replace(self, caller=check_writes_as(self.caller, agent_id))

    def of_batch(self, deferred: DeferredWrites, wait_seconds: float) -> RequestContext:
        """Return the context of a batch, which waits for the disk once, at its end. Its other waits are bounded."""
        return replace(self, deferred=deferred, waits_until=time.monotonic() + wait_seconds)

    @property
    def is_in_batch(self) -> bool:
        return self.deferred is not None

    def operation(self, call: AuditedCall, cache: BatchCache | None) -> RequestContext:
        return replace(self, call=call, cache=cache, integrity=IntegrityReport())

    def with_own_report(self) -> RequestContext:
        """Collect integrity failures of a part separately."""
        return replace(self, integrity=IntegrityReport())

    async def check_credential(self) -> None:
        """Check the caller's credential again. Raises Unauthenticated."""
        if self.credential is not None:
            await self.credential.check()

    async def check_stale_credential(self) -> None:
        """Check the caller's credential again, unless that was done a moment ago. Raises Unauthenticated."""
        if self.credential is not None:
            await self.credential.check_if_stale()

    async def is_still_admitted(self) -> bool:
        """Whether the credential of a stream is valid; not while that is unknown."""
        try:
            await self.check_credential()
        except MemoryServiceError:
            return False
        return True

    def longest_wait(self, seconds: float) -> tuple[float, str | None]:
        """Shorten a wait to the time that a batch has left, and say why it is shorter than asked for."""
        left = math.inf if self.waits_until is None else max(0.0, self.waits_until - time.monotonic())
        return (seconds, None) if seconds <= left else (left, _SHORTENED)

    def may_wait(self, seconds: float) -> bool:
        """Whether a batch has this much time left for waits."""
        return self.longest_wait(seconds)[1] is None

    @asynccontextmanager
    async def waiting(self) -> AsyncGenerator[None]:
        """Wait without the slot for an event, a task or a person, and check the credential afterwards."""
        async with nullcontext() if self.slot is None else self.slot.waiting():
            yield
        await self.check_credential()

    @contextmanager
    def without_slot(self) -> Generator[None]:
        """Let other calls run while this one only waits."""
        if self.slot is None:
            yield
            return
        with self.slot.given_back():
            yield


def check_writes_as(caller: Caller, agent_id: str | None) -> Caller:
    """Accept an `agent_id` argument of a write only from that agent or an admin.

    Raises:
        Forbidden: the caller is another agent. InvalidArgument: an admin names a reserved or bad name.
    """
    if agent_id is None or agent_id == caller.agent:
        return caller
    if caller.admin:
        return replace(caller, agent=check_agent_name(agent_id), by=caller.agent)
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
