"""Notifies clients that subscribed to a resource when it changes, on both eras of the protocol.

Since 2026-07-28 one `subscriptions/listen` request is one stream of changes; before, `resources/subscribe` made the
connection's own channel carry them. The SDK knows no caller here, so each stream has its own bus.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from typing import TYPE_CHECKING, Any

from mcp.server.connection import Connection
from mcp.server.context import ServerRequestContext
from mcp.server.mcpserver import MCPServer
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler, ResourceUpdated, ServerEvent
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    EmptyResult,
    SubscribeRequestParams,
    SubscriptionsListenRequestParams,
    SubscriptionsListenResult,
    UnsubscribeRequestParams,
)

from memory_core.errors import InvalidArgument, MemoryServiceError
from memory_server.engine.audited_calls import named_ids
from memory_server.runtime import Runtime

if TYPE_CHECKING:
    from memory_server.engine.request import RequestContext

log = logging.getLogger(__name__)
MOST_RESOURCES = 256
_STATE = "subscriptions"
Request = ServerRequestContext[Any, Any]


def add_subscriptions(server: MCPServer[Any], runtime: Runtime, bus: InMemorySubscriptionBus) -> None:
    """Serve subscriptions; `bus` carries what concerns all clients alike, such as changed lists."""
    handlers = Subscriptions(runtime, bus)
    methods = server._lowlevel_server  # pyright: ignore[reportPrivateUsage] - the SDK has no public way to add these
    methods.add_request_handler("subscriptions/listen", SubscriptionsListenRequestParams, handlers.listen)
    methods.add_request_handler("resources/subscribe", SubscribeRequestParams, handlers.subscribe)
    methods.add_request_handler("resources/unsubscribe", UnsubscribeRequestParams, handlers.unsubscribe)


class Subscriptions:
    """The handlers over one runtime."""

    def __init__(self, runtime: Runtime, bus: InMemorySubscriptionBus) -> None:
        self._runtime = runtime
        self._bus = bus

    async def listen(self, ctx: Request, params: SubscriptionsListenRequestParams) -> SubscriptionsListenResult:
        """Serve one stream until the client leaves or the server stops."""
        from memory_server.events.live_feed import following

        uris = frozenset(params.notifications.resource_subscriptions or ())
        _check_number(len(uris))
        bus = _CallersBus(self._bus)
        handler = ListenHandler(bus)
        try:
            request = await self._admit(ctx, uris)
            async with following(await self._runtime.service(), request, uris) as changes:
                relay = asyncio.create_task(_relay(self._while_let_in(ctx, changes), bus, handler))
                try:
                    return await handler(ctx, params)
                finally:
                    relay.cancel()
        except MemoryServiceError as error:
            raise _refusal(error) from error

    async def subscribe(self, ctx: Request, params: SubscribeRequestParams) -> EmptyResult:
        """Follow one resource for as long as the connection lasts; an unknown one never changes."""
        tasks = _tasks_of(_connection_of(ctx))
        if params.uri not in tasks:
            _check_number(len(tasks) + 1)
            begun: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            tasks[params.uri] = asyncio.create_task(self._tell(ctx, params.uri, begun))
            try:
                await begun
            except MemoryServiceError as error:
                del tasks[params.uri]
                raise _refusal(error) from error
        return EmptyResult()

    async def unsubscribe(self, ctx: Request, params: UnsubscribeRequestParams) -> EmptyResult:
        """Follow a resource no longer."""
        task = _tasks_of(_connection_of(ctx)).pop(params.uri, None)
        if task:
            task.cancel()
        return EmptyResult()

    async def _tell(self, ctx: Request, uri: str, begun: asyncio.Future[None]) -> None:
        from memory_server.events.live_feed import following

        try:
            request = await self._admit(ctx, [uri])
            async with following(await self._runtime.service(), request, frozenset({uri})) as changes:
                begun.set_result(None)
                async for changed in self._while_let_in(ctx, changes):
                    await ctx.session.send_resource_updated(changed)
        except MemoryServiceError as error:
            begun.set_exception(error)
        except Exception:
            log.exception("a subscription ended")

    async def _admit(self, ctx: Request, uris: Iterable[str]) -> RequestContext:
        """Admit a subscription; the audit entry says when it began.

        Raises:
            MemoryServiceError: as `Gate.admitted`.
        """
        ids = [uri.rpartition("/")[2] for uri in uris]
        async with self._runtime.gate.admitted(ctx, "subscribe", named_ids({"memory_ids": ids}), "read") as request:
            request.call.succeeded()
            return request

    async def _while_let_in(self, ctx: Request, changes: AsyncIterator[str]) -> AsyncIterator[str]:
        """Pass changes on until the caller's token is no longer good."""
        async for changed in changes:
            if not await self._runtime.gate.still_in(ctx):
                return
            yield changed


class _CallersBus(InMemorySubscriptionBus):
    """Carries one caller's resources, and from the shared bus what is no resource."""

    def __init__(self, shared: InMemorySubscriptionBus) -> None:
        super().__init__()
        self._shared = shared

    def subscribe(self, listener: Callable[[ServerEvent], None]) -> Callable[[], None]:
        """Register a listener with both."""

        def hear(event: ServerEvent) -> None:
            if not isinstance(event, ResourceUpdated):
                listener(event)

        leaves = super().subscribe(listener), self._shared.subscribe(hear)

        def leave() -> None:
            for each in leaves:
                each()

        return leave


async def _relay(changes: AsyncIterator[str], bus: InMemorySubscriptionBus, handler: ListenHandler) -> None:
    async for uri in changes:
        await bus.publish(ResourceUpdated(uri))
    handler.close()


def _connection_of(ctx: Request) -> Connection:
    return ctx.session._connection  # pyright: ignore[reportPrivateUsage] - nothing public tells when it closes


def _tasks_of(connection: Connection) -> dict[str, asyncio.Task[None]]:
    """Give the connection's subscriptions, which end with it."""
    tasks: dict[str, asyncio.Task[None]] | None = connection.state.get(_STATE)
    if tasks is None:
        own: dict[str, asyncio.Task[None]] = {}

        def end() -> None:
            for task in own.values():
                task.cancel()

        connection.exit_stack.callback(end)
        tasks = connection.state[_STATE] = own
    return tasks


def _check_number(number: int) -> None:
    if number > MOST_RESOURCES:
        raise MCPError(INVALID_PARAMS, f"{number} resources; at most {MOST_RESOURCES} can be subscribed to")


def _refusal(error: MemoryServiceError) -> MCPError:
    code = INVALID_PARAMS if isinstance(error, InvalidArgument) else INTERNAL_ERROR
    return MCPError(code, f"{error.code}: {error.message}")
