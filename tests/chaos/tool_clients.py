"""Two ways to call the tools: in this process, or over MCP and HTTP."""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Protocol

import uvicorn
from mcp import Client as McpClient
from mcp_types import CallToolResult

from memory_core import errors
from memory_core.errors import MemoryServiceError, OutcomeUnknown
from memory_core.records.task import TaskPriority, TaskState
from memory_core.settings.settings import Settings
from memory_server.agents import registry
from memory_server.contract.task_arguments import (
    CompleteArguments,
    DistributeArguments,
    FailArguments,
    HeartbeatArguments,
    ListTasksArguments,
    PendingArguments,
    RegisterArguments,
)
from memory_server.engine.presence import AgentSession
from memory_server.engine.request_context import Caller, RequestContext
from memory_server.http.app import http_application
from memory_server.mcp.server import build_server
from memory_server.operations import sweeper
from memory_server.runtime import Runtime
from memory_server.service import Service
from memory_server.tasks import leases, lifecycle, submit

from .history import Json

TASK_SETTINGS: dict[str, Any] = {"backoff_seconds": 0.05, "backoff_most_seconds": 0.5, "claim_seconds": 2.0}
_ERRORS = {kind.code: kind for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "code")}


class ToolClient(Protocol):
    """Calls tools by name, for any agent."""

    async def __call__(self, tool: str, agent: str, **arguments: Any) -> Json:
        """Call a tool.

        Raises:
            MemoryServiceError: the tool refused.
        """
        ...


class LocalTools:
    """Calls the use cases of a service in this process."""

    def __init__(self, service: Service, namespace: str) -> None:
        self._service = service
        self._namespace = namespace

    async def __call__(self, tool: str, agent: str, **arguments: Any) -> Json:
        """Call a tool."""
        presence = self._service.presence
        request = RequestContext(Caller(self._namespace, agent), session=presence.process_session)
        with presence.call(AgentSession(self._namespace, agent, request.session)):
            answer = await getattr(self, f"_{tool}")(request, **arguments)
        return answer.model_dump(mode="json")

    async def _register_agent(self, request: RequestContext, **fields: Any) -> Any:
        return await registry.register_agent(self._service, request, RegisterArguments(**fields))

    async def _update_agent_heartbeat(self, request: RequestContext, lease_tokens: list[str]) -> Any:
        return await registry.heartbeat(self._service, request, HeartbeatArguments(lease_tokens=lease_tokens))

    async def _get_pending_tasks(self, request: RequestContext, **options: Any) -> Any:
        return await leases.get_pending_tasks(self._service, request, PendingArguments(**options))

    async def _complete_task(self, request: RequestContext, task_id: str, lease_token: str) -> Any:
        args = CompleteArguments(task_id=task_id, lease_token=lease_token, result={"by": request.caller.agent})
        return await leases.complete_task(self._service, request, args)

    async def _fail_task(self, request: RequestContext, task_id: str, lease_token: str, error: str, retry: bool) -> Any:
        args = FailArguments(task_id=task_id, lease_token=lease_token, error=error, retry=retry, handoff="I began it")
        return await leases.fail_task(self._service, request, args)

    async def _distribute_task(self, request: RequestContext, priority: str, **new: Any) -> Any:
        wanted = DistributeArguments(priority=TaskPriority(priority), **new)
        return await submit.distribute_task(self._service, request, wanted)

    async def _cancel_task(self, request: RequestContext, task_id: str) -> Any:
        return await lifecycle.cancel_task(self._service, request, task_id, "no longer needed")

    async def _requeue_task(self, request: RequestContext, task_id: str) -> Any:
        return await lifecycle.requeue_task(self._service, request, task_id)

    async def _list_tasks(self, request: RequestContext, states: list[str], limit: int) -> Any:
        chosen = ListTasksArguments(states=[TaskState(state) for state in states], limit=limit)
        return await lifecycle.list_tasks(self._service, request.caller, chosen)


@asynccontextmanager
async def direct(url: str, namespace: str) -> AsyncGenerator[LocalTools]:
    """Run a service with its sweeper in this process."""
    settings = Settings.load(redis_url=url, tasks=TASK_SETTINGS, limits={"burst": 1_000_000_000})
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(Service(settings).running())
        await stack.enter_async_context(sweeper.sweeping(service))
        yield LocalTools(service, namespace)


class RemoteTools:
    """Calls tools over MCP. A call without an answer has an unknown outcome."""

    def __init__(self, client: McpClient) -> None:
        self._client = client

    async def __call__(self, tool: str, agent: str, **arguments: Any) -> Json:
        """Call a tool."""
        try:
            result = await self._client.call_tool(tool, arguments)
        except Exception as error:
            raise OutcomeUnknown(f"no answer: {error}") from error
        assert isinstance(result, CallToolResult)
        answer = result.structured_content or {}
        if not result.is_error:
            return answer
        error = answer.get("error", {})
        raise _ERRORS.get(error.get("code", ""), MemoryServiceError)(str(result.content)[:200])


@asynccontextmanager
async def remote(address: str, namespace: str, agent: str) -> AsyncGenerator[RemoteTools]:
    """Connect one agent to a server."""
    async with McpClient(f"{address}/mcp?agent={agent}&namespace={namespace}") as client:
        yield RemoteTools(client)


async def serve(url: str, port: int) -> None:
    """Serve MCP over HTTP until killed."""
    logging.disable()
    runtime = Runtime(Settings.load(redis_url=url, tasks=TASK_SETTINGS, limits={"burst": 1_000_000_000}))
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        application = http_application(build_server(runtime), runtime)
        config = uvicorn.Config(application, log_level="critical", access_log=False)
        async with runtime.running():
            await uvicorn.Server(config).serve(sockets=[listener])
