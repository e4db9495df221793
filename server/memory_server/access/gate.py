"""Admits requests: checks token, effects and rate, and creates the request context.

Over HTTP the SDK's middleware checks the token before it reads the body; on stdio the gate checks it. Both check each
request. A call that waits, runs a batch or takes long checks it again, so a revoked token stops working immediately.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, nullcontext
from itertools import count
from typing import TYPE_CHECKING, Any

from mcp.server.auth.provider import AccessToken
from mcp.server.auth.settings import AuthSettings as SdkSettings
from mcp.server.context import ServerRequestContext

from memory_core.errors import MemoryServiceError, Overloaded, Unauthenticated, after_write
from memory_core.observe import tracing
from memory_core.observe.logs import request_id
from memory_core.records.access import Access
from memory_core.records.audit_entry import new_entry
from memory_core.records.authority import Effect
from memory_core.settings.settings import Settings
from memory_server.access import identity
from memory_server.access.oauth import OAuthVerifier
from memory_server.access.questions import Questions
from memory_server.engine.admission import SLOT, Admission, Slot
from memory_server.engine.audited_calls import AuditedCall
from memory_server.engine.batch_cache import BatchCache
from memory_server.engine.counters import Counters
from memory_server.engine.credential import Credential
from memory_server.engine.presence import AgentSession, Presence
from memory_server.engine.rate_limits import Rates
from memory_server.engine.request_context import Caller, RequestContext
from memory_server.security.audit.recorder import Recorder

if TYPE_CHECKING:
    from memory_server.access.sessions import Sessions
    from memory_server.engine.redis_backend import Backend

log = logging.getLogger(__name__)
_request_ids = map(f"{os.urandom(4).hex()}-{{:x}}".format, count(1))
_HINT = "ask the operator for a new one"


class Gate:
    """Admits requests to one server process."""

    def __init__(
        self,
        settings: Settings,
        recorder: Recorder,
        counters: Counters,
        backend: Callable[[], Awaitable[Backend]],
        presence: Presence,
    ) -> None:
        self._settings, self.presence = settings, presence
        auth, limits = settings.auth, settings.limits
        self._oauth = OAuthVerifier(auth, settings.namespace) if auth.mode == "oauth" else None
        self._backend = backend
        self._rates, self._message_rates = (Rates(limits.calls_per_second, limits.burst) for _ in range(2))
        self.admission = Admission(limits.calls_at_once, limits.calls_waiting, limits.patience_seconds)
        self.questions = Questions(limits.questions, limits.question_seconds)
        self._recorder, self._counters = recorder, counters
        self.sessions: Sessions | None = None
        """The sessions of clients of the eras up to 2025-11-25; None on stdio."""

    async def verify(self, token: str) -> Access | None:
        """Return what a token grants, None if it is invalid. Reads this deployment's tokens from Redis each time."""
        from memory_core.records import token as tokens  # not needed before the first call

        if self._oauth:
            return await self._oauth.verify(token)
        backend = await self._backend()
        return await backend.read(lambda client: tokens.verify(client, token, backend.integrity))

    @asynccontextmanager
    async def call(
        self, context: ServerRequestContext[Any, Any], op: str, named: list[str], effects: Iterable[Effect]
    ) -> AsyncGenerator[RequestContext]:
        """Admit a call and hold an admission slot; raises as `admitted`, and Overloaded without an audit entry."""
        async with AsyncExitStack() as held:
            try:
                slot = await self._slot(context, held)
            except Overloaded as error:
                self._counters.called(op, error.code, 0.0)
                raise
            yield await held.enter_async_context(self.admitted(context, op, named, effects, slot))

    async def _slot(self, context: ServerRequestContext[Any, Any], held: AsyncExitStack) -> Slot:
        """Hold the slot of the HTTP request, or one of its own for a call that has outlived its request."""
        if slot := _slot_of(context):
            return held.enter_context(slot.shared())
        holder = None if context.request is None else identity.holder_of(context.request, self._settings)
        return await held.enter_async_context(self.admission.slot(holder))

    @asynccontextmanager
    async def admitted(
        self,
        context: ServerRequestContext[Any, Any],
        op: str,
        named: list[str],
        effects: Iterable[Effect],
        slot: Slot | None = None,
    ) -> AsyncGenerator[RequestContext]:
        """Admit an operation, and write its audit entry at the end. Raises Unauthenticated, Forbidden, RateLimited."""
        async with self._identified(context, op, named, slot or _slot_of(context)) as request:
            self.take(request.caller)
            request.check(effects)
            yield request

    @asynccontextmanager
    async def audited(self, context: ServerRequestContext[Any, Any], op: str) -> AsyncGenerator[RequestContext]:
        """Write the audit entry of an operation that has no effects and no rate limit."""
        async with self._identified(context, op, [], None) as request:
            yield request

    @contextmanager
    def operation(
        self, batch: RequestContext, op: str, named: list[str], effects: Iterable[Effect], cache: BatchCache | None
    ) -> Generator[RequestContext]:
        """Admit one operation of an admitted batch; raises Forbidden if the token lacks a scope."""
        call = AuditedCall(op, named)
        with self._followed(call, lambda: batch.caller):
            request = batch.operation(call, cache)
            request.check(effects)
            yield request

    def take(self, caller: Caller, calls: int = 1) -> None:
        """Count calls against an agent's rate limit; raises RateLimited if there are too many."""
        self._rates.take(caller.namespace, caller.agent, calls)

    def take_message(self, context: ServerRequestContext[Any, Any]) -> None:
        """Count a message other than a call against its sender's rate limit; raises RateLimited.

        A sender with names that would be refused counts as its token's agent, or as the unnamed one.
        """
        access = identity.http_access(context.request, self._settings) if context.request is not None else None
        try:
            caller = identity.caller_of(context, self._settings, access)
        except MemoryServiceError:
            caller = identity.refused_caller(context, self._settings, access)
        self._message_rates.take(caller.namespace, caller.agent)

    @asynccontextmanager
    async def _identified(
        self, context: ServerRequestContext[Any, Any], op: str, named: list[str], slot: Slot | None
    ) -> AsyncGenerator[RequestContext]:
        call, caller = AuditedCall(op, named), identity.refused_caller(context, self._settings, None)
        with self._followed(call, lambda: caller):
            access = await self._access(context)
            caller = identity.refused_caller(context, self._settings, access)
            caller = identity.caller_of(context, self._settings, access)
            await (await self._backend()).check_signer(caller.namespace)
            await self.presence.end_killed()
            credential = await self._credential(context, access) if access is not None else None
            session = identity.session_of(context, self.presence.process_session)
            request = RequestContext(
                caller, call=call, access=access, credential=credential, slot=slot, session=session
            )
            with self.presence.call(AgentSession(caller.namespace, caller.agent, session)):
                yield request
            with after_write() if call.written else nullcontext():
                await request.check_stale_credential()

    @contextmanager
    def _followed(self, call: AuditedCall, caller: Callable[[], Caller]) -> Generator[None]:
        """Count, trace and audit an operation, under the caller that is known when it ends."""
        started, log_id = time.perf_counter(), request_id.set(next(_request_ids))
        try:
            with tracing.span(call.op, server=True) as span:
                try:
                    yield
                except MemoryServiceError as error:
                    call.outcome = error.code
                    raise
                except Exception:
                    call.outcome = MemoryServiceError.code
                    raise
                finally:
                    span.set_attribute("outcome", call.outcome)
        finally:
            seconds = time.perf_counter() - started
            self._counters.called(call.op, call.outcome, seconds)
            if self._settings.observe.log_calls:
                fields = {"operation": call.op, "outcome": call.outcome, "milliseconds": round(seconds * 1000, 2)}
                log.info("%s: %s in %s ms", *fields.values(), extra={"fields": fields})
            request_id.reset(log_id)
            if entry := call.entry(caller().agent, caller().origin):
                self._recorder.add(caller().namespace, entry)

    def count_refusal(self) -> None:
        """Count the refusal of a request that was not parsed."""
        self._counters.turned_away += 1

    async def _access(self, context: ServerRequestContext[Any, Any]) -> Access | None:
        if context.request is not None:
            return identity.http_access(context.request, self._settings)
        return await self.stdio_access() if self._settings.token is not None else None

    async def _credential(self, context: ServerRequestContext[Any, Any], access: Access) -> Credential:
        """Return the credential of a request; raises Unauthenticated if it has ended since its first check."""
        checked_at = time.monotonic() if context.request is None else identity.checked_at(context.request)
        credential = Credential(access, lambda: self._renewed(context), checked_at)
        await credential.check_if_stale()
        return credential

    async def _renewed(self, context: ServerRequestContext[Any, Any]) -> Access | None:
        """Read what a caller's credential grants now; None if it has ended."""
        request = context.request
        if request is None:
            return await self.stdio_access()
        is_open: Callable[[], bool] | None = request.scope.get(identity.SESSION_IS_OPEN)
        if is_open is not None and not is_open():
            return None
        operator: Access | None = request.scope.get(identity.OPERATOR)
        return operator or await self.verify(request.user.access_token.token)

    def note_bad_token(self) -> None:
        """Write the audit entry of a request with an invalid token. Its caller is unknown."""
        self._counters.bad_tokens += 1
        entry = new_entry(identity.ANONYMOUS, "authenticate", (), "http")
        self._recorder.add(self._settings.namespace, {**entry, "outcome": Unauthenticated.code})

    async def stdio_access(self) -> Access:
        """Return what the token of the settings grants; raises Unauthenticated if it is invalid."""
        assert self._settings.token is not None
        access = await self.verify(self._settings.token.get_secret_value())
        if access is None:
            raise Unauthenticated("the token is not valid", hint=_HINT)
        return access

    async def warn_of_bad_token(self) -> None:
        """Log an error at start if every call will fail because of the configured token."""
        try:
            identity.check_names(await self.stdio_access(), *identity.declared_on_stdio(self._settings))
        except MemoryServiceError as error:
            log.error("all calls will be refused because of MEMORY_TOKEN: %s", error.message)


def _slot_of(context: ServerRequestContext[Any, Any]) -> Slot | None:
    slot: Slot | None = None if context.request is None else context.request.scope.get(SLOT)
    return None if slot is None or slot.is_over else slot


class SdkVerifier:
    """Adapts a verifier to the SDK, which calls it for each HTTP request."""

    def __init__(self, gate: Gate, issuer: str | None) -> None:
        self._gate = gate
        self._issuer = issuer

    async def verify_token(self, token: str) -> AccessToken | None:
        """Return what a token grants. The SDK binds a session to its `client_id`: one agent of one namespace."""
        access = await self._gate.verify(token)
        if access is None:
            self._gate.note_bad_token()
            return None
        claims = {
            identity.AGENT_CLAIM: access.agent,
            identity.NAMESPACE_CLAIM: access.namespace,
            identity.TOKEN_CLAIM: access.token,
            identity.CHECKED_CLAIM: time.monotonic(),
        }
        return AccessToken(
            token=token,
            client_id=f"{access.namespace}/{access.agent}",
            scopes=sorted(access.scopes),
            subject=access.agent,
            claims={"iss": self._issuer, **claims},
        )


def sdk_auth(gate: Gate, settings: Settings) -> dict[str, Any]:
    """Return the SDK server's authentication arguments; none while authentication is off."""
    auth = settings.auth
    if auth.mode == "off":
        return {}
    is_url = auth.mode == "oauth" and (auth.audience or "").startswith(("https://", "http://"))
    # Plain strings: a URL object would add a slash to a bare host, and clients compare issuers exactly.
    sdk_settings = SdkSettings.model_validate(
        {
            "issuer_url": auth.issuer or "http://localhost",
            "resource_server_url": auth.audience if is_url else None,
            "validate_token_resource": False,  # nosec B105
        }
    )
    return {"auth": sdk_settings, "token_verifier": SdkVerifier(gate, auth.issuer)}
