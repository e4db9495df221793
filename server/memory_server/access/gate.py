"""Lets requests in: whoever calls is who the token says, holds the scope that the call needs, and calls not too often.

Over HTTP the SDK's middleware has a token checked before anything is read; on stdio it is checked here. Either way
that happens for each request, so that a revoked token is of no use at once.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import AsyncGenerator, Generator
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
from memory_core.records.audit_entry import said
from memory_core.settings.settings import Settings
from memory_server.access.identity import (
    AGENT_CLAIM,
    ANONYMOUS,
    NAMESPACE_CLAIM,
    OPERATOR,
    TOKEN_CLAIM,
    access_of,
    caller_of_request,
    check_names,
    declared_on_stdio,
    on_stdio,
    whoever_called,
)
from memory_server.access.oauth import OAuthVerifier
from memory_server.access.rate_limits import Rates
from memory_server.engine.admission import ON_ITS_WAY, Admission
from memory_server.engine.audited_calls import Call, in_hand

if TYPE_CHECKING:
    from memory_server.runtime import Runtime

log = logging.getLogger(__name__)
_request_ids = map(f"{os.urandom(4).hex()}-{{:x}}".format, count(1))
"""Of the calls of this process, for its log."""
_HINT = "ask whoever runs the memory for a new one"


class Verifier(Protocol):
    """Checks one kind of token."""

    async def verify(self, token: str) -> Access | None:
        """Give what a token grants; None if it is not to be believed."""
        ...


class OwnTokens:
    """Checks the tokens that this deployment issued, in Redis, each time."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    async def verify(self, token: str) -> Access | None:
        """Give what a token grants; None if it is not to be believed."""
        service = await self._runtime.service()
        from memory_core.records import token as tokens

        return await service.backend.read(lambda client: tokens.verify(client, token))


class Gate:
    """Admits requests to one runtime."""

    def __init__(self, runtime: Runtime) -> None:
        settings = self._settings = runtime.settings
        oauth = settings.auth.mode == "oauth"
        self.verifier: Verifier = OAuthVerifier(settings.auth, settings.namespace) if oauth else OwnTokens(runtime)
        limits = settings.limits
        self._rates = Rates(limits.calls_per_second, limits.burst)
        self.admission = Admission(limits.calls_at_once, limits.calls_waiting, limits.patience_seconds)
        self._recorder, self._figures = runtime.recorder, runtime.figures

    @contextmanager
    def noting(self, context: ServerRequestContext[Any, Any], op: str, named: list[str]) -> Generator[Call]:
        """Have an operation leave its entry in the audit when it ends, however it ends."""
        call, started = Call(op, named), time.perf_counter()
        mark, request = in_hand.set(call), request_id.set(next(_request_ids))
        try:
            with tracing.span(op, server=True) as span:
                try:
                    yield call
                except MemoryServiceError as error:
                    call.outcome = error.code
                    raise
                except Exception:
                    call.outcome = MemoryServiceError.code
                    raise
                finally:
                    span.set_attribute("outcome", call.outcome)
        finally:
            in_hand.reset(mark)
            self._ended(call, time.perf_counter() - started)
            request_id.reset(request)
            caller = whoever_called(context, self._settings)
            entry = call.entry(caller.agent, caller.origin)
            if entry is not None:
                self._recorder.add(caller.namespace, entry)

    def _ended(self, call: Call, seconds: float) -> None:
        self._figures.called(call.op, call.outcome, seconds)
        if self._settings.observe.log_calls:
            said = {"operation": call.op, "outcome": call.outcome, "milliseconds": round(seconds * 1000, 2)}
            log.info("%s: %s in %s ms", *said.values(), extra={"fields": said})

    @asynccontextmanager
    async def working(self, context: ServerRequestContext[Any, Any], op: str) -> AsyncGenerator[None]:
        """Work on a call while inside. One that is turned away is counted, and leaves nothing in the audit.

        Raises:
            Overloaded: there is too much to do already.
        """
        on_its_way = context.request.scope.get(ON_ITS_WAY) if context.request is not None else None
        if on_its_way is not None:
            on_its_way.arrive()
        async with AsyncExitStack() as held:
            try:
                await held.enter_async_context(self.admission.slot())
            except Overloaded as error:
                self._figures.called(op, error.code, 0.0)
                raise
            yield

    def turn_away(self) -> Overloaded:
        """Refuse a call before it is known of what; its name would be the caller's own word."""
        self._figures.turned_away += 1
        return self.admission.refusal()

    async def admit(self, context: ServerRequestContext[Any, Any], scope: Scope | None, calls: int = 1) -> None:
        """Let a request in, or not.

        Raises:
            Unauthenticated: the token given on stdio is not, or no longer, to be believed.
            Forbidden: it names another agent or namespace than its token, or lacks the scope.
            RateLimited: the agent calls too often.
        """
        if context.request is None and self._settings.token is not None:
            on_stdio.set(await self.stdio_access())
        caller = caller_of_request(context, self._settings)
        self._rates.take(caller.namespace, caller.agent, calls)
        self.check(context, scope)

    def check(self, context: ServerRequestContext[Any, Any], scope: Scope | None) -> None:
        """Let pass a part of a request that was admitted.

        Raises:
            Forbidden: the scope is missing.
        """
        access = access_of(context, self._settings)
        if access is not None:
            access.check(scope)

    async def still_in(self, context: ServerRequestContext[Any, Any]) -> bool:
        """Whether the token of a request that goes on for long is still good."""
        if access_of(context, self._settings) is None:
            return True
        if context.request is not None and OPERATOR in context.request.scope:
            return True  # the dashboard asks its own sessions
        try:
            if context.request is None:
                await self.stdio_access()
                return True
            token: AccessToken = context.request.user.access_token
            return await self.verifier.verify(token.token) is not None
        except MemoryServiceError:
            return False

    async def check_still_in(self, context: ServerRequestContext[Any, Any]) -> None:
        """Refuse the answer to a call that took long, if its token was good only when it began.

        Raises:
            Unauthenticated: it is no longer.
        """
        if not await self.still_in(context):
            raise Unauthenticated("the token is no longer valid", hint=_HINT)

    def note_bad_token(self) -> None:
        """Note that somebody came with a token that is not to be believed; of who it was nothing is known."""
        self._figures.bad_tokens += 1
        entry = {**said(ANONYMOUS, "authenticate", (), "http"), "outcome": Unauthenticated.code}
        self._recorder.add(self._settings.namespace, entry)

    async def stdio_access(self) -> Access:
        """Give what the token of the settings grants.

        Raises:
            Unauthenticated: it is not to be believed.
        """
        assert self._settings.token is not None
        access = await self.verifier.verify(self._settings.token.get_secret_value())
        if access is None:
            raise Unauthenticated("the token is not valid", hint=_HINT)
        return access

    async def warn_of_bad_token(self) -> None:
        """Say in the log at start what every call would say."""
        try:
            check_names(await self.stdio_access(), *declared_on_stdio(self._settings))
        except MemoryServiceError as error:
            log.error("calls will be refused, because of MEMORY_TOKEN: %s", error.message)


class SdkVerifier:
    """Shows a verifier to the SDK, which asks it for each HTTP request."""

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
    """Give the SDK's server what it needs to ask for tokens; nothing while authentication is off."""
    auth = settings.auth
    if auth.mode == "off":
        return {}
    is_url = auth.mode == "oauth" and (auth.audience or "").startswith(("https://", "http://"))
    # As texts: a URL object would end a bare host with a slash, and clients compare issuers letter by letter.
    told = SdkSettings.model_validate(
        {
            "issuer_url": auth.issuer or "http://localhost",
            "resource_server_url": auth.audience if is_url else None,
            "validate_token_resource": False,  # nosec B105
        }
    )
    return {"auth": told, "token_verifier": SdkVerifier(gate, auth.issuer)}
