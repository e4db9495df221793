"""Admits requests: checks the token, the scope and the rate of each call, and makes the context of its work.

Over HTTP the SDK's middleware has the token checked before anything is read; on stdio it is checked here. Both happen
for each request, so that a revoked token stops working at once.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol

from mcp.server.auth.provider import AccessToken
from mcp.server.auth.settings import AuthSettings as SdkSettings
from mcp.server.context import ServerRequestContext

from memory_core.errors import MemoryServiceError, Overloaded, Unauthenticated
from memory_core.observe import tracing
from memory_core.observe.logs import request_id
from memory_core.records.access import Access, Scope
from memory_core.records.audit_entry import new_entry
from memory_core.settings.settings import Settings
from memory_server.access.identity import (
    AGENT_CLAIM,
    ANONYMOUS,
    NAMESPACE_CLAIM,
    OPERATOR,
    TOKEN_CLAIM,
    caller_of,
    check_names,
    declared_on_stdio,
    http_access,
    refused_caller,
)
from memory_server.access.oauth import OAuthVerifier
from memory_server.access.rate_limits import Rates
from memory_server.engine.admission import ON_ITS_WAY, Admission, Slot
from memory_server.engine.audited_calls import AuditedCall
from memory_server.engine.batch_cache import BatchCache
from memory_server.engine.counters import Counters
from memory_server.engine.request import Caller, RequestContext
from memory_server.security.audit.recorder import Recorder

if TYPE_CHECKING:
    from memory_server.engine.backend import Backend

log = logging.getLogger(__name__)
_request_ids = map(f"{os.urandom(4).hex()}-{{:x}}".format, count(1))
"""Ids of the calls of this process, for its log."""
_HINT = "ask whoever runs the memory for a new one"


class Verifier(Protocol):
    """Checks one kind of token."""

    async def verify(self, token: str) -> Access | None:
        """Give what a token grants; None if it is not valid."""
        ...


class OwnTokens:
    """Checks the tokens that this deployment issued, in Redis, each time."""

    def __init__(self, backend: Callable[[], Awaitable[Backend]]) -> None:
        self._backend = backend

    async def verify(self, token: str) -> Access | None:
        """Give what a token grants; None if it is not valid."""
        backend = await self._backend()
        from memory_core.records import token as tokens

        return await backend.read(lambda client: tokens.verify(client, token))


class Gate:
    """Admits requests to one server process."""

    def __init__(
        self, settings: Settings, recorder: Recorder, counters: Counters, backend: Callable[[], Awaitable[Backend]]
    ) -> None:
        self._settings = settings
        oauth = settings.auth.mode == "oauth"
        self.verifier: Verifier = OAuthVerifier(settings.auth, settings.namespace) if oauth else OwnTokens(backend)
        limits = settings.limits
        self._rates = Rates(limits.calls_per_second, limits.burst)
        self.admission = Admission(limits.calls_at_once, limits.calls_waiting, limits.patience_seconds)
        self._recorder, self._counters = recorder, counters

    @asynccontextmanager
    async def call(
        self, context: ServerRequestContext[Any, Any], op: str, named: list[str], scope: Scope | None
    ) -> AsyncGenerator[RequestContext]:
        """Admit a call, hold an admission slot while inside, and write its audit entry at the end.

        Raises:
            Overloaded: the server has too much to do. The call is counted, and leaves no audit entry.
            MemoryServiceError: as `admitted`.
        """
        on_its_way = context.request.scope.get(ON_ITS_WAY) if context.request is not None else None
        if on_its_way is not None:
            on_its_way.arrive()
        async with AsyncExitStack() as held:
            try:
                slot = await held.enter_async_context(self.admission.slot())
            except Overloaded as error:
                self._counters.called(op, error.code, 0.0)
                raise
            yield await held.enter_async_context(self.admitted(context, op, named, scope, slot))

    @asynccontextmanager
    async def admitted(
        self,
        context: ServerRequestContext[Any, Any],
        op: str,
        named: list[str],
        scope: Scope | None,
        slot: Slot | None = None,
    ) -> AsyncGenerator[RequestContext]:
        """Admit an operation, and write its audit entry however it ends.

        Raises:
            Unauthenticated: the token given on stdio is not, or no longer, valid.
            Forbidden: the request names another agent or namespace than its token, or lacks the scope.
            RateLimited: the agent calls too often.
        """
        async with self._identified(context, op, named, slot) as request:
            self.take(request.caller)
            request.check(scope)
            yield request

    @asynccontextmanager
    async def audited(self, context: ServerRequestContext[Any, Any], op: str) -> AsyncGenerator[RequestContext]:
        """Write the audit entry of an operation that needs no scope and counts for no rate."""
        async with self._identified(context, op, [], None) as request:
            yield request

    @contextmanager
    def operation(
        self, batch: RequestContext, op: str, named: list[str], scope: Scope | None, cache: BatchCache | None
    ) -> Generator[RequestContext]:
        """Admit one operation of a batch that was admitted, and write its audit entry however it ends.

        Raises:
            Forbidden: the token lacks the scope.
        """
        call = AuditedCall(op, named)
        with self._followed(call, lambda: batch.caller):
            request = batch.operation(call, cache)
            request.check(scope)
            yield request

    def take(self, caller: Caller, calls: int = 1) -> None:
        """Count calls against the rate limit of an agent.

        Raises:
            RateLimited: the agent calls too often.
        """
        self._rates.take(caller.namespace, caller.agent, calls)

    @asynccontextmanager
    async def _identified(
        self, context: ServerRequestContext[Any, Any], op: str, named: list[str], slot: Slot | None
    ) -> AsyncGenerator[RequestContext]:
        call, caller = AuditedCall(op, named), refused_caller(context, self._settings, None)
        with self._followed(call, lambda: caller):
            access = await self._access(context)
            caller = refused_caller(context, self._settings, access)
            caller = caller_of(context, self._settings, access)
            yield RequestContext(caller, call=call, access=access, slot=slot)

    @contextmanager
    def _followed(self, call: AuditedCall, caller: Callable[[], Caller]) -> Generator[None]:
        """Count and trace an operation, and write its audit entry under the name that is known when it ends."""
        started = time.perf_counter()
        mark = request_id.set(next(_request_ids))
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
            self._ended(call, time.perf_counter() - started)
            request_id.reset(mark)
            entry = call.entry(caller().agent, caller().origin)
            if entry is not None:
                self._recorder.add(caller().namespace, entry)

    def _ended(self, call: AuditedCall, seconds: float) -> None:
        self._counters.called(call.op, call.outcome, seconds)
        if self._settings.observe.log_calls:
            said = {"operation": call.op, "outcome": call.outcome, "milliseconds": round(seconds * 1000, 2)}
            log.info("%s: %s in %s ms", *said.values(), extra={"fields": said})

    def turn_away(self) -> Overloaded:
        """Refuse a call before its operation is known: the name would be the caller's own word."""
        self._counters.turned_away += 1
        return self.admission.refusal()

    async def _access(self, context: ServerRequestContext[Any, Any]) -> Access | None:
        """Give what the token of a request grants; None where no token is needed.

        Raises:
            Unauthenticated: the token is missing or not valid.
        """
        if context.request is not None:
            return http_access(context.request, self._settings)
        return await self.stdio_access() if self._settings.token is not None else None

    async def still_in(self, context: ServerRequestContext[Any, Any]) -> bool:
        """Tell whether the token of a long request is still valid."""
        try:
            access = await self._access(context)
            if access is None or context.request is None or OPERATOR in context.request.scope:
                return True  # the dashboard checks an operator's session itself
            token: AccessToken = context.request.user.access_token
            return await self.verifier.verify(token.token) is not None
        except MemoryServiceError:
            return False

    async def check_still_in(self, context: ServerRequestContext[Any, Any]) -> None:
        """Refuse the answer to a long call whose token is no longer valid.

        Raises:
            Unauthenticated: it is not.
        """
        if not await self.still_in(context):
            raise Unauthenticated("the token is no longer valid", hint=_HINT)

    def note_bad_token(self) -> None:
        """Write the audit entry of a request with an invalid token; its caller is not known."""
        self._counters.bad_tokens += 1
        entry = {**new_entry(ANONYMOUS, "authenticate", (), "http"), "outcome": Unauthenticated.code}
        self._recorder.add(self._settings.namespace, entry)

    async def stdio_access(self) -> Access:
        """Give what the token of the settings grants.

        Raises:
            Unauthenticated: it is not valid.
        """
        assert self._settings.token is not None
        access = await self.verifier.verify(self._settings.token.get_secret_value())
        if access is None:
            raise Unauthenticated("the token is not valid", hint=_HINT)
        return access

    async def warn_of_bad_token(self) -> None:
        """Log at start that the token of the settings is refused, as every call will be."""
        try:
            check_names(await self.stdio_access(), *declared_on_stdio(self._settings))
        except MemoryServiceError as error:
            log.error("calls will be refused, because of MEMORY_TOKEN: %s", error.message)


class SdkVerifier:
    """Adapts a verifier to the SDK, which calls it for each HTTP request."""

    def __init__(self, gate: Gate, issuer: str | None) -> None:
        self._gate = gate
        self._issuer = issuer

    async def verify_token(self, token: str) -> AccessToken | None:
        """Give what a token grants. By `client_id` the SDK keeps a session to one agent of one namespace."""
        access = await self._gate.verifier.verify(token)
        if access is None:
            self._gate.note_bad_token()
            return None
        claims = {
            "iss": self._issuer,
            AGENT_CLAIM: access.agent,
            NAMESPACE_CLAIM: access.namespace,
            TOKEN_CLAIM: access.token,
        }
        return AccessToken(
            token=token,
            client_id=f"{access.namespace}/{access.agent}",
            scopes=sorted(access.scopes),
            subject=access.agent,
            claims=claims,
        )


def sdk_auth(gate: Gate, settings: Settings) -> dict[str, Any]:
    """Give the SDK's server the settings of authentication; none while it is off."""
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
