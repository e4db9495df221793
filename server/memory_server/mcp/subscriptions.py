"""Notifies clients when a resource that they subscribed to changes.

Since protocol 2026-07-28, each `subscriptions/listen` request opens a stream. Older clients use `resources/subscribe`
and receive changes on the connection. The SDK does not know the caller here, so each stream has its own bus.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from typing import TYPE_CHECKING, Any

import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.server.mcpserver import MCPServer
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler, ResourceUpdated, ServerEvent
from mcp.shared.exceptions import MCPError

from memory_core.errors import MemoryServiceError
from memory_server.access import identity
from memory_server.engine.audited_calls import named_ids
from memory_server.mcp import lazy
from memory_server.mcp.metering import protocol_error
from memory_server.mcp.resources import EFFECTS
from memory_server.runtime import Runtime

if TYPE_CHECKING:
    from memory_server.engine.request_context import RequestContext

log = logging.getLogger(__name__)
MAX_RESOURCES = 256
_STATE = "subscriptions"
Request = ServerRequestContext[Any, Any]


def add_subscriptions(server: MCPServer[Any], runtime: Runtime, bus: InMemorySubscriptionBus) -> None:
    """Serve subscriptions; `bus` carries events for all clients, such as changed lists."""
    handlers = Subscriptions(runtime, bus)
    methods = server._lowlevel_server  # pyright: ignore[reportPrivateUsage] - the SDK has no public way to add these
    methods.add_request_handler("subscriptions/listen", types.SubscriptionsListenRequestParams, handlers.listen)
    methods.add_request_handler("resources/subscribe", types.SubscribeRequestParams, handlers.subscribe)
    methods.add_request_handler("resources/unsubscribe", types.UnsubscribeRequestParams, handlers.unsubscribe)


class Subscriptions:
    """The handlers over one runtime."""

    def __init__(self, runtime: Runtime, bus: InMemorySubscriptionBus) -> None:
        self._runtime = runtime
        self._bus = bus

    async def listen(
        self, ctx: Request, params: types.SubscriptionsListenRequestParams
    ) -> types.SubscriptionsListenResult:
        """Serve one stream until the client leaves or the server stops."""
        uris = frozenset(params.notifications.resource_subscriptions or ())
        _check_number(len(uris))
        bus = _CallersBus(self._bus)
        handler = ListenHandler(bus)
        try:
            request = await self._admit(ctx, uris)
            async with lazy.live_feed.following(await self._runtime.service(), request, uris) as changes:
                relay = asyncio.create_task(_relay(_while_admitted(request, changes), bus, handler))
                try:
                    with request.without_slot():
                        return await handler(ctx, params)
                finally:
                    relay.cancel()
        except MemoryServiceError as error:
            raise protocol_error(error) from error

    async def subscribe(self, ctx: Request, params: types.SubscribeRequestParams) -> types.EmptyResult:
        """Follow one resource while the connection lasts; an unknown one never changes."""
        tasks = _tasks_of(ctx)
        if params.uri not in tasks:
            _check_number(len(tasks) + 1)
            begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            tasks[params.uri] = asyncio.create_task(self._tell(ctx, params.uri, begun))
            try:
                await begun
            except MemoryServiceError as error:
                del tasks[params.uri]
                raise protocol_error(error) from error
            await self._record(ctx, params.uri, follows=True)
        return types.EmptyResult()

    async def unsubscribe(self, ctx: Request, params: types.UnsubscribeRequestParams) -> types.EmptyResult:
        """Stop following a resource."""
        task = _tasks_of(ctx).pop(params.uri, None)
        if task:
            task.cancel()
        await self._record(ctx, params.uri, follows=False)
        return types.EmptyResult()

    async def _record(self, ctx: Request, uri: str, *, follows: bool) -> None:
        """Record a subscription for other servers, which serve the same session."""
        sessions, request = self._runtime.gate.sessions, ctx.request
        if sessions is None or request is None or identity.REPEATED in request.scope:
            return
        try:
            owner = identity.session_owner(request, self._runtime.settings)
            if session := await sessions.find(owner, request.headers.get("mcp-session-id", "")):
                await (sessions.follow if follows else sessions.unfollow)(session, uri)
        except MemoryServiceError as error:
            raise protocol_error(error) from error

    async def _tell(self, ctx: Request, uri: str, begun: asyncio.Future[None]) -> None:
        try:
            request = await self._admit(ctx, [uri])
            service = await self._runtime.service()
            async with lazy.live_feed.following(service, request, frozenset({uri})) as changes:
                begun.set_result(None)
                async for changed in _while_admitted(request, changes):
                    await ctx.session.send_resource_updated(changed)
        except MemoryServiceError as error:
            begun.set_exception(error)
        except Exception:
            log.exception("a subscription ended")

    async def _admit(self, ctx: Request, uris: Iterable[str]) -> RequestContext:
        ids = [uri.rpartition("/")[2] for uri in uris]
        named, effects = named_ids({"memory_ids": ids}), EFFECTS.values()  # unknown URIs look like forbidden ones
        async with self._runtime.gate.admitted(ctx, "subscribe", named, effects) as request:
            request.call.succeeded()
            return request


class _CallersBus(InMemorySubscriptionBus):
    """Carries one caller's resource changes, and the other events of the shared bus."""

    def __init__(self, shared: InMemorySubscriptionBus) -> None:
        super().__init__()
        self._shared = shared

    def subscribe(self, listener: Callable[[ServerEvent], None]) -> Callable[[], None]:
        def hear(event: ServerEvent) -> None:
            if not isinstance(event, ResourceUpdated):
                listener(event)

        leaves = super().subscribe(listener), self._shared.subscribe(hear)

        def leave() -> None:
            for each in leaves:
                each()

        return leave


async def _while_admitted(request: RequestContext, changes: AsyncIterator[str]) -> AsyncIterator[str]:
    """Pass changes on until the caller's token is no longer valid."""
    async for changed in changes:
        if not await request.is_still_admitted():
            return
        yield changed


async def _relay(changes: AsyncIterator[str], bus: InMemorySubscriptionBus, handler: ListenHandler) -> None:
    async for uri in changes:
        await bus.publish(ResourceUpdated(uri))
    handler.close()


def _tasks_of(ctx: Request) -> dict[str, asyncio.Task[None]]:
    """Return the subscriptions of the client's connection, which end with it."""
    connection = ctx.session._connection  # pyright: ignore[reportPrivateUsage] - no public way to see it close
    if _STATE not in connection.state:
        tasks: dict[str, asyncio.Task[None]] = {}
        connection.exit_stack.callback(lambda: [task.cancel() for task in tasks.values()])
        connection.state[_STATE] = tasks
    return connection.state[_STATE]


def _check_number(number: int) -> None:
    if number > MAX_RESOURCES:
        raise MCPError(types.INVALID_PARAMS, f"{number} resources; at most {MAX_RESOURCES} can be subscribed to")
